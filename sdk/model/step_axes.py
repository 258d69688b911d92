"""Where the inputs and outputs of a model with states have rows and tokens, and how a call's are cut and filled up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sdk.compiler import Signature, TensorInfo
from sdk.compiler.states import StateKind, StatePair, step_input
from sdk.model.inputs import Shape
from sdk.model.step_widths import Chunk


class Axes(NamedTuple):
    """Along which axes of a tensor rows and tokens lie; None for one that has no rows, or no tokens."""

    row: int | None
    token: int | None


class StepAxes:
    """The axes of one model's inputs and outputs.

    One input says how many rows and tokens a step has, as input_ids do: its first two dimensions are rows and tokens,
    or tokens and rows where a replaced state has its rows by the name of the second.
    """

    def __init__(self, signature: Signature, pasts: Sequence[TensorInfo], pairs: Sequence[StatePair]) -> None:
        """`signature` is what a step takes and gives, `pasts` are the inputs that are states. Raises TypeError."""
        self._outputs = {info.name: info for info in signature.outputs}
        primary = step_input({info.name: len(info.shape) for info in signature.inputs}, ())
        if primary is None:
            raise TypeError("a model with states takes an input of [rows, tokens], as input_ids are; this has none")
        self.primary = next(info for info in signature.inputs if info.name == primary)
        replaced = {pair.past for pair in pairs if pair.kind is StateKind.REPLACE}
        names = {extent for info in pasts if info.name in replaced for extent in info.shape if isinstance(extent, str)}
        swapped = self.primary.shape[1] in names and self.primary.shape[0] not in names
        first, second = self.primary.shape[:2]
        self._rows, self._tokens = (second, first) if swapped else (first, second)
        self._own = Axes(1, 0) if swapped else Axes(0, 1)
        self._inputs = {info.name: self._of(info) for info in (*signature.inputs, *signature.optional)}
        self._pasts = {info.name: _open_axis(info) for info in pasts}

    def _of(self, info: TensorInfo) -> Axes:
        """Where an input has what the primary one has."""
        if info is self.primary:
            return self._own
        row = next((at for at, extent in enumerate(info.shape) if extent == self._rows), None)
        token = next((at for at, extent in enumerate(info.shape) if extent == self._tokens and at != row), None)
        return Axes(row, token)

    def extent(self, shapes: Mapping[str, Shape]) -> tuple[int, int]:
        """(rows, tokens) of a step by the shapes of its inputs."""
        shape = shapes[self.primary.name]
        return shape[self._own.row or 0], shape[self._own.token or 0]

    def row_axis_of_past(self, name: str) -> int | None:
        """Where a replaced state has its rows: in its one dimension without a number; None where it has none."""
        return self._pasts[name]

    def shape_for(self, info: TensorInfo, rows: int, tokens: int) -> Shape:
        """The shape of an input in a step. Raises ValueError for one that has other open dimensions."""
        axes = self._inputs[info.name]
        shape = [{axes.row: rows, axes.token: tokens}.get(at, extent) for at, extent in enumerate(info.shape)]
        still_open = next((extent for extent in shape if isinstance(extent, str)), None)
        if still_open is not None:
            raise ValueError(f"input {info.name!r} leaves {still_open!r} open, which neither rows nor tokens say")
        return tuple(int(extent) for extent in shape)

    def shapes(self, values: Mapping[str, NDArray[Any]], width: int) -> dict[str, Shape]:
        """The shapes of a call's inputs in chunks of `width` tokens."""
        return {name: _with(value.shape, self._inputs[name].token, width) for name, value in values.items()}

    def filled(self, name: str, value: NDArray[Any], rows: int) -> NDArray[Any]:
        """An input with zeros for idle rows."""
        return _grown(value, self._inputs[name].row, rows)

    def cut(self, name: str, value: NDArray[Any], start: int, chunk: Chunk) -> NDArray[Any]:
        """What of an input a chunk takes, filled up with zeros."""
        axis = self._inputs[name].token
        if axis is None:
            return value
        piece = value[(slice(None),) * axis + (slice(start, start + chunk.tokens),)]
        return _grown(piece, axis, chunk.width)

    def of_output(self, name: str, shape: Shape, chunk: Chunk) -> Axes:
        """Along which axes of an output rows and tokens lie; no tokens where it is of the last ones alone."""
        info = self._outputs.get(name)
        declared: tuple[int | str, ...] = () if info is None else info.shape
        row = declared.index(self._rows) if isinstance(self._rows, str) and self._rows in declared else self._own.row
        if isinstance(self._tokens, str) and self._tokens in declared:
            return Axes(row, declared.index(self._tokens))
        at = self._own.token or 0
        is_open = len(declared) <= at or isinstance(declared[at], str)
        return Axes(row, at if is_open and len(shape) > max(1, at) and shape[at] == chunk.width else None)


def _open_axis(info: TensorInfo) -> int | None:
    return next((at for at, extent in enumerate(info.shape) if isinstance(extent, str)), None)


def _with(shape: Shape, axis: int | None, extent: int) -> Shape:
    return shape if axis is None else (*shape[:axis], extent, *shape[axis + 1 :])


def _grown(value: NDArray[Any], axis: int | None, extent: int) -> NDArray[Any]:
    """The same with zeros behind it along an axis."""
    if axis is None or value.shape[axis] == extent:
        return value
    grown = np.zeros(_with(value.shape, axis, extent), value.dtype)
    grown[(slice(None),) * axis + (slice(value.shape[axis]),)] = value
    return grown
