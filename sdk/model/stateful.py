"""A model's states, from the first time that anybody asks for them: which there are, their memory, their runs."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import Any

from sdk.compiler import CompiledProgram
from sdk.compiler.graph import Graph
from sdk.compiler.placement import NodePlacement
from sdk.compiler.states import StateInfo, StatePair, derived_inputs, find_states, state_infos
from sdk.compiler.states.report import state_placements
from sdk.model.lane_set import LaneSet
from sdk.model.parts import DeviceParts
from sdk.model.port import ModelOwner
from sdk.model.runs import RunEvent
from sdk.model.steps import Steps
from sdk.state.model_states import ModelStates
from sdk.state.sizing import layout_for
from sdk.state.state import State


class StateOptions:
    """What `Device.load` was told of states."""

    def __init__(
        self,
        memory: int | str | None = None,
        pairs: Mapping[str, str] | None = None,
        idle_rows: bool = False,
    ) -> None:
        """Raises TypeError for `pairs` that are none."""
        if pairs is not None and not isinstance(pairs, Mapping):
            raise TypeError(f'states takes outputs by input: {{"past.0": "present.0"}}, got {type(pairs).__name__}')
        self.memory = memory
        self.pairs = pairs
        self.idle_rows = idle_rows

    @property
    def any(self) -> bool:
        """Whether it was told anything, so that it is meant for a model with states."""
        return self.memory is not None or self.pairs is not None or self.idle_rows


class Stateful:
    """The states of one model. Thread-safe."""

    def __init__(
        self, owner: ModelOwner, parts: DeviceParts, lanes: LaneSet, graph: Graph, options: StateOptions
    ) -> None:
        self._owner = owner
        self._parts = parts
        self._lanes = lanes
        self._graph = graph
        self._options = options
        self._pairs: tuple[StatePair, ...] | None = None
        self._steps: Steps | None = None
        self._states: ModelStates | None = None

    @property
    def pairs(self) -> tuple[StatePair, ...]:
        """Inputs with the outputs that are their next values. Raises UnsupportedModel, ValueError."""
        if self._pairs is None:
            self._pairs = find_states(self._graph, self._options.pairs)
        return self._pairs

    @property
    def left_out(self) -> frozenset[str]:
        """Inputs that a run with a state leaves out."""
        return frozenset({pair.past for pair in self.pairs} | derived_inputs(self._graph, self.pairs).keys())

    @property
    def infos(self) -> tuple[StateInfo, ...]:
        """What a state holds. Raises UnsupportedModel."""
        return state_infos(self._graph, self.pairs)

    @property
    def report(self) -> tuple[NodePlacement, ...]:
        """One line for each pair: what it is, how it was found, what a token takes."""
        return state_placements(self._graph, self.pairs)

    @property
    def states(self) -> ModelStates:
        """Their memory, taken when it is first needed. Raises TypeError for a model without, OutOfDeviceMemory."""
        states = self._states
        if states is not None:  # without the lock, which is held while another shape is compiled
            self._parts.check_open()
            return states
        with self._parts.lock:
            self._parts.check_open()
            if self._states is None:
                self._states = self._made()
            return self._states

    def _made(self) -> ModelStates:
        infos = self.infos
        if not infos:
            raise TypeError("the model has no states: none of its outputs is the next value of an input")
        layout = layout_for(infos, self._options.memory, self._graph, self._owner.free_bytes)
        states = ModelStates(self._owner, infos, layout, self._graph)
        self._parts.states = states.memory
        if self._parts.closed is not None:  # a reset came meanwhile, which may not have seen them
            states.memory.invalidate(self._parts.closed)
            self._parts.check_open()
        return states

    @property
    def steps(self) -> Steps:
        """Their runs. Raises TypeError where no input says rows and tokens, UnsupportedModel."""
        steps = self._steps
        if steps is None:
            with self._parts.lock:
                steps = self._steps = self._steps or self._new_steps()
        return steps

    def _new_steps(self) -> Steps:
        return Steps(self._owner, self._parts, self._lanes, self._graph, self.pairs, self._options.idle_rows)

    @property
    def last_steps(self) -> Steps | None:
        """Their runs, where there were any."""
        return self._steps

    def takes(self, shapes: Mapping[str, Any]) -> bool:
        """Whether shapes to compile for are those of runs with states: they leave out what a state holds."""
        if not shapes or not isinstance(shapes, Mapping):
            return False
        pasts = {pair.past for pair in self.pairs}
        return bool(pasts) and not pasts & shapes.keys()

    def compile_for(self, shapes: Mapping[str, Sequence[Sequence[int]]]) -> None:
        """Compile and load steps of these shapes."""
        self.steps.compile_for(self.states, shapes)

    def program_for(self, rows: int, tokens: int) -> CompiledProgram:
        """The program for a step of this shape, which need not be loaded."""
        return self.steps.program_for(self.states, rows, tokens)

    def start(
        self, chosen: Sequence[State], arrays: tuple[Any, ...], named: Mapping[str, Any], *, answered: bool
    ) -> RunEvent:
        """Start a run whose rows append to these states."""
        states, steps = self.states, self.steps
        return steps.start(states, steps.call(arrays, named), chosen, answered=answered)


_TAKEN = {"state": "what model.state() gave", "states": "a list of what model.state() gave, one for each row"}


def chosen_states(named: dict[str, Any], inputs: Container[str]) -> Sequence[State] | None:
    """The states that a call names by `state=` or `states=`, which are taken out of its inputs.

    A model may have an input of such a name, as `inputs` says: it is one unless a State is given. Raises TypeError.
    """
    one, many = named.get("state"), named.get("states")
    if isinstance(one, State):
        del named["state"]
        if "states" in named:
            raise TypeError("give state= or states=, not both")
        return [one]
    if isinstance(many, (list, tuple)):
        del named["states"]
        wrong = next((each for each in many if not isinstance(each, State)), None)
        if wrong is not None or not many:
            raise TypeError(f"states= takes a state for each row, got {wrong if many else many!r}")
        return many
    for name, takes in _TAKEN.items():
        if name in named and name not in inputs:
            raise TypeError(f"{name}= takes {takes}, got {type(named[name]).__name__}")
    return None
