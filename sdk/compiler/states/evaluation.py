"""Values that follow from the rows alone, computed on the host for rows that are made up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from emulator.model.operators import OPERATORS, KernelFault
from sdk.compiler.ir import Array, Value


class Unknown(Exception):
    """A value depends on what is not known; `root` is that."""

    def __init__(self, root: Value) -> None:
        super().__init__()
        self.root = root


class Evaluation:
    """Values by golden kernels, each computed once."""

    def __init__(self, known: Mapping[Value, Array]) -> None:
        self._arrays = {id(value): array for value, array in known.items()}
        self._kept: list[Value] = list(known)
        """So that no other value gets the identity of one that is known."""

    def of(self, value: Value) -> Array:
        """What a value is. Raises Unknown where it follows from something else, or cannot be computed."""
        waiting = [value]
        while waiting:
            wanted = waiting[-1]
            missing = self._missing(wanted)
            if missing:
                waiting += missing
            else:
                waiting.pop()
                self._compute(wanted)
        return self._array(value)

    def _array(self, value: Value) -> Array:
        return self._arrays[id(value)] if value.constant is None else value.constant

    def _missing(self, value: Value) -> Sequence[Value]:
        """The operands that have to be computed before."""
        if value.constant is not None or id(value) in self._arrays:
            return ()
        if value.producer is None:
            raise Unknown(value)
        operands = [each for each in value.producer.inputs if each is not None]
        return [each for each in operands if each.constant is None and id(each) not in self._arrays]

    def _compute(self, value: Value) -> None:
        if value.constant is not None or id(value) in self._arrays or value.producer is None:
            return
        made = value.producer
        operands = [None if each is None else self._array(each) for each in made.inputs]
        results = [np.empty(each.shape, each.dtype.dtype) for each in made.outputs]
        try:
            with np.errstate(all="ignore"):
                OPERATORS[made.kind].run(made.attributes, operands, results)
        except KernelFault:
            raise Unknown(value) from None
        for output, array in zip(made.outputs, results, strict=True):
            self._arrays[id(output)] = array
            self._kept.append(output)
