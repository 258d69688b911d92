"""`Model`: a loaded network, whoever runs it. `device_model.py` and `mixed.py` say who does."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from driver_shim.errors import Closed
from sdk.compiler import CompiledProgram, Plan, Signature, TensorInfo
from sdk.compiler.compiled import StateInfo
from sdk.compiler.graph import Graph
from sdk.compiler.placement import NodePlacement
from sdk.here_only import HereOnly
from sdk.memory.buffers import Span
from sdk.model.inputs import Call, InputChecks, check_out
from sdk.model.parts import Parts
from sdk.model.port import ModelOwner
from sdk.model.programs import CommandRun
from sdk.model.runs import Outputs
from sdk.model.stateful import chosen_states
from sdk.queue.events import Event
from sdk.state.state import State

if TYPE_CHECKING:
    from sdk.compiler.estimate import Estimate

DEFAULT_PROFILE = "generic"
NO_STATES = "the model has no states: the host runs some of it, and keeps none"


class Model(HereOnly, ABC):
    """A loaded network. Call it with arrays, by name or in the order of `inputs`. Thread-safe.

    An input may be a buffer of the device's or of the host's memory. Runs may end in another order than they were
    started in.
    """

    def __init__(self, owner: ModelOwner, graph: Graph, signature: Signature, parts: Parts) -> None:
        """Use `Device.load`."""
        self._owner = owner
        self._graph = graph
        self._signature = signature
        self._inputs = InputChecks(signature)
        self._parts = parts
        """What the device tells of its reset and end."""

    @property
    def inputs(self) -> tuple[TensorInfo, ...]:
        """Name, shape (symbolic extents by name) and dtype of every input."""
        return self._signature.inputs

    @property
    def optional_inputs(self) -> tuple[TensorInfo, ...]:
        """Inputs of which the model holds a default; a call may name them."""
        return self._signature.optional

    @property
    def outputs(self) -> tuple[TensorInfo, ...]:
        """Name, shape and dtype of every output, in graph order."""
        return self._signature.outputs

    @property
    @abstractmethod
    def report(self) -> tuple[NodePlacement, ...]:
        """Where each node runs, why not on the device, and what crosses the bus because of that."""

    @property
    def plan(self) -> Plan | None:
        """What the program takes that was compiled last: device memory, and what lives in it when.

        Where none was, that for the shapes that the model declares, which this compiles and does not load; None where
        it leaves dimensions open, or where the host runs some of it.
        """
        compiled = self._latest()
        return None if compiled is None else compiled.plan

    def estimate(
        self,
        profile: str | Path | None = None,
        *,
        tokens: int | None = None,
        rows: int | None = None,
        context: int | None = None,
    ) -> Estimate | None:
        """What a run takes on a chip, this device's unless another is named, by the program that `plan` is of.

        Of a model with states, what a step of `tokens` in `rows` rows takes (1 where only the other is given) that have
        `context` tokens each when it ends: as many as there is room for, unless it is given.

        Raises ValueError for a profile that there is not, and for what the model has no room for; TypeError.
        """
        from sdk.compiler.estimate import estimate  # few programs ask

        for name, number in (("tokens", tokens), ("rows", rows), ("context", context)):
            _check_count(name, number, 0 if name == "context" else 1)
        compiled = self._latest() if tokens is rows is None else self._step_program(int(rows or 1), int(tokens or 1))
        if compiled is None:
            return None
        return estimate(compiled, profile or self._owner.profile or DEFAULT_PROFILE, context=context)

    @property
    def states(self) -> tuple[StateInfo, ...]:
        """What it remembers from run to run in a state; none for most models.

        Raises UnsupportedModel for what looks like a state and cannot be one.
        """
        return ()

    @property
    def state_memory_free_bytes(self) -> int:
        """Device memory that its states may still take. Raises TypeError for a model without states."""
        raise TypeError(NO_STATES)

    def state(self, *, max_tokens: int | None = None, restore: bytes | None = None) -> State:
        """A new state, for up to `max_tokens`: as many as fit, and as the model's context has, unless it is given.

        `restore` are the bytes of one that was saved. Raises TypeError for a model without states, ValueError,
        OutOfDeviceMemory, Closed.
        """
        raise TypeError(NO_STATES)

    def __call__(
        self, *arrays: Any, timeout: float | None = None, out: Mapping[str, Span] | None = None, **named: Any
    ) -> Outputs:
        """Run and wait: `model({"data": x})`, `model(x)` or `model(data=x)`; returns {output name: array}.

        With `state=s` (or `states=[s, ...]`, one for each row) the run goes on from what the state holds and appends
        its tokens; the inputs that hold the past, and those that follow from it, are left out. Tokens are taken in
        chunks of the shapes that were loaded. StateFull and OutOfDeviceMemory then say what would have fitted.

        `out` gives buffers for outputs, {name: buffer}, which are filled and returned in place of arrays; where the
        host runs some of the model it gives arrays alone.
        Raises TypeError or ValueError for wrong inputs, CommandFailed, Timeout, DeviceLost, Closed.
        """
        return self.submit(*arrays, out=out, **named).result(timeout)

    def submit(self, *arrays: Any, out: Mapping[str, Span] | None = None, **named: Any) -> Event[Outputs]:
        """Start a run. The input arrays may be reused when this returns, buffers when the run has ended."""
        chosen = chosen_states(named, self._inputs)
        if chosen is not None:
            return self._submit_step(chosen, arrays, named, out)
        call = self._inputs.in_order(arrays, named, self._owner)
        return self._submit(call, self._checked_out(out) if out else {})

    async def run_async(self, *arrays: Any, out: Mapping[str, Span] | None = None, **named: Any) -> Outputs:
        """Run without holding up the event loop: what takes time, to compile or to copy much, is done in a thread.

        The input arrays may be reused when this returns.
        """
        chosen = chosen_states(named, self._inputs)
        if chosen is not None:
            return await self._run_step_async(chosen, arrays, named, out)
        call = self._inputs.in_order(arrays, named, self._owner)
        return await self._run_async(call, self._checked_out(out) if out else {})

    @abstractmethod
    def command_runs(self) -> tuple[CommandRun, ...]:
        """The device's commands of the newest run that succeeded, with the kernels that carried them out.

        Empty before one. Raises Closed, Timeout, DeviceLost.
        """

    def close(self) -> None:
        """Take the model off the device; runs in flight end with CommandFailed. Idempotent."""
        self._end(Closed("the model is closed", device=self._owner.address, remedy="load it again"))

    def __repr__(self) -> str:
        return f"<Model {', '.join(map(str, self.inputs))} -> {', '.join(map(str, self.outputs))}>"

    # --- what the kinds of models do each in its way ---------------------------------------------------------------

    @abstractmethod
    def _compile_for(self, shapes: Mapping[str, Sequence[Sequence[int]]]) -> None:
        """Compile for input shapes that are known beforehand."""

    @abstractmethod
    def _latest(self) -> CompiledProgram | None:
        """The one program that `plan` speaks of, if there is one."""

    def _step_program(self, rows: int, tokens: int) -> CompiledProgram:
        """The program for a step of this shape, which need not be loaded."""
        raise TypeError(NO_STATES)

    @abstractmethod
    def _submit(self, call: Call, into: Mapping[str, Span]) -> Event[Outputs]:
        """Start a run whose arguments are checked."""

    @abstractmethod
    async def _run_async(self, call: Call, into: Mapping[str, Span]) -> Outputs:
        """Run from within an event loop."""

    def _submit_step(
        self, chosen: Sequence[State], arrays: tuple[Any, ...], named: Mapping[str, Any], out: object
    ) -> Event[Outputs]:
        """Start a run that appends to states."""
        raise TypeError(NO_STATES)

    async def _run_step_async(
        self, chosen: Sequence[State], arrays: tuple[Any, ...], named: Mapping[str, Any], out: object
    ) -> Outputs:
        """The same from within an event loop."""
        raise TypeError(NO_STATES)

    @abstractmethod
    def _end(self, error: Closed) -> None:
        """Take the model off the device; whoever uses it is told this from now on."""

    def _checked_out(self, out: Mapping[str, Span]) -> Mapping[str, Span]:
        """Buffers for outputs, which have to be such. Raises TypeError, ValueError."""
        check_out(out, self.outputs, self._owner)
        return dict(out)


def _check_count(name: str, number: object, least: int) -> None:
    """Raise TypeError, ValueError for what is given and no number from `least` on."""
    if number is None:
        return
    if isinstance(number, bool) or not isinstance(number, (int, np.integer)):
        raise TypeError(f"{name} takes a whole number, got {number!r}")
    if number < least:
        raise ValueError(f"{name}={number}: from {least} on is possible")
