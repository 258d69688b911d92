"""The programs of a model: one for each set of input shapes, compiled when a run first needs it."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdk.compiler import CompiledProgram, compile_model
from sdk.compiler.compile import NeedsValues
from sdk.compiler.graph import Graph
from sdk.model import progress
from sdk.model.inputs import Call, InputChecks, Planned, Shape, ShapeKey
from sdk.model.parts import DeviceParts, Key
from sdk.model.port import ModelOwner
from sdk.model.program_run import Input
from sdk.model.programs import ModelProgram

_log = logging.getLogger("npu")
MOST_NAMED = 4
"""Inputs that a message names."""


class KeyedPrograms:
    """The programs of one model, by the shapes of their inputs. Thread-safe.

    Where shapes depend on the values of inputs, there is a program for each of those values.
    """

    def __init__(
        self, owner: ModelOwner, parts: DeviceParts, graph: Graph, inputs: InputChecks, ahead: CompiledProgram | None
    ) -> None:
        """`ahead` was compiled before there was a device."""
        self._owner = owner
        self._parts = parts
        self._graph = graph
        self._inputs = inputs
        self._ahead = ahead
        """Compiled before it was needed: before the model was loaded, or for its plan."""
        self._is_dynamic = any(not isinstance(extent, int) for info in graph.signature.inputs for extent in info.shape)
        self._by_value: frozenset[str] = frozenset()
        """Inputs on whose values shapes depend."""
        self._last: CompiledProgram | None = None
        self.tells_of_shapes = True
        """Whether a compilation during a run is worth a warning."""

    def find(self, call: Call) -> tuple[ModelProgram | None, list[Input]]:
        """(the program that a call takes, or None where it is to be made; what of the call is the program's input)"""
        key, inputs = self._keyed(call)
        return self._parts.loaded.get(key), inputs

    def make(self, call: Call, *, expected: bool = False) -> ModelProgram:
        """The program that a call takes, compiled if there is none yet, its weights on the device.

        `expected`: before any run, which is worth no warning. Raises NeedsValues then, where only runs give values.
        """
        parts = self._parts
        with parts.lock:
            while True:
                parts.check_open()
                key, _ = self._keyed(call)
                program = parts.loaded.get(key)
                if program is not None:
                    return program
                try:
                    program = self._compile(call, expected)
                except NeedsValues as error:
                    if expected or self._by_value.issuperset(error.inputs):
                        raise
                    self._note_by_value(error)
                    continue
                parts.check_open()  # a reset may have come meanwhile
                parts.loaded[key] = program
                return program

    def make_for_shapes(self, shapes: ShapeKey) -> ModelProgram | None:
        """The program for inputs of these shapes; None where only the runs tell which programs there will be."""
        try:
            return self.make(Call([Planned(shape) for shape in shapes]), expected=True)
        except NeedsValues as error:
            self._note_by_value(error)
            return None

    def latest(self) -> CompiledProgram | None:
        """What was compiled last; before that, the program for the shapes that the model declares, if it does."""
        if self._last is None and self._ahead is None and not self._is_dynamic and not self._by_value:
            told = progress.current().compiling
            self._ahead = compile_model(self._graph, target=self._owner.profile, progress=told)
        return self._last or self._ahead

    def _keyed(self, call: Call) -> tuple[Key, list[Input]]:
        """(the key of the program that the call takes, its inputs)"""
        if not self._by_value and not call.optional:
            return tuple([value.shape for value in call.values]), call.values
        inputs = [value for name, value in self._inputs.named(call).items() if name not in self._by_value]
        fixed = tuple((name, array.shape, array.tobytes()) for name, array in self._fixed(call).items())
        return (tuple([value.shape for value in inputs]), call.optional, fixed), inputs

    def _fixed(self, call: Call) -> dict[str, NDArray[Any]]:
        """The inputs that a program is compiled for by value. Raises TypeError where one is in device memory."""
        if not self._by_value:
            return {}
        return {name: np.asarray(value) for name, value in self._inputs.named(call).items() if name in self._by_value}

    def _note_by_value(self, error: NeedsValues) -> None:
        level = logging.INFO if self._by_value else logging.WARNING  # one warning for a model is enough
        self._by_value |= frozenset(error.inputs)
        named = ", ".join(map(repr, sorted(self._by_value)))
        _log.log(level, "shapes depend on the values of %s: a program is compiled for each of them", named)

    def _compile(self, call: Call, expected: bool) -> ModelProgram:
        began = time.monotonic()
        parts = self._parts
        fixed = self._fixed(call)
        shapes = {name: value.shape for name, value in self._inputs.named(call).items() if name not in fixed}
        compiled = self._compiled_ahead(shapes, fixed)
        if compiled is None:
            told = progress.current().compiling
            compiled = compile_model(self._graph, shapes, fixed, target=self._owner.profile, progress=told)
        program = on_device(self._owner, parts, compiled)
        self._last = program.compiled
        if compiled is self._ahead:
            self._ahead = None  # with its constants, which are on the device now
        if self._is_dynamic and not expected and not fixed and self.tells_of_shapes:
            _log.warning(
                "compiled for new input shapes %s in %.2f s; name them in load(shapes=...) to do it there",
                _listed(shapes),
                time.monotonic() - began,
            )
        return program

    def _compiled_ahead(self, shapes: Mapping[str, Shape], fixed: Mapping[str, NDArray[Any]]) -> CompiledProgram | None:
        """The program that was compiled before it was needed, where it is that for a call."""
        ahead = self._ahead
        if ahead is None or fixed or {info.name: info.shape for info in ahead.inputs} != dict(shapes):
            return None
        return ahead


def on_device(owner: ModelOwner, parts: DeviceParts, compiled: CompiledProgram) -> ModelProgram:
    """A compiled program, loaded while those of its weights travel that are not there yet; called with the parts' lock.

    Raises OutOfDeviceMemory, HostMemoryLimit, CommandFailed, Timeout, DeviceLost, Closed.
    """
    placement = parts.weights.reserve(compiled.constants)
    program = ModelProgram(compiled, placement.addresses, parts.reset_count, placement.keep)
    try:
        parts.weights.send(placement, partial(owner.make_resident, program))
    except BaseException:
        owner.drop_program(program)  # which it may have become meanwhile
        raise
    return program


def _listed(shapes: Mapping[str, Shape]) -> str:
    """Inputs with their shapes, the first of many."""
    text = ", ".join(f"{name} {shape}" for name, shape in list(shapes.items())[:MOST_NAMED])
    return text if len(shapes) <= MOST_NAMED else f"{text} and {len(shapes) - MOST_NAMED} more"
