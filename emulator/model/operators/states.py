"""The kinds that update a tensor, in place where it is a state: a cache of what came before, for one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from driver_shim.protocol.commands import Status
from driver_shim.protocol.program import TensorType
from driver_shim.protocol.program_commands import CommandKind, ScatterMode
from driver_shim.protocol.types import WireType
from emulator.model.operators.arrays import Array, KernelFault, optional, required
from emulator.model.operators.operator import Operator, Types, checked_axis, function, given
from emulator.model.operators.shapes import need


class TensorScatter(Operator):
    """TENSOR_SCATTER."""

    kind = CommandKind.TENSOR_SCATTER

    def infer(self, attributes: Any, inputs: Types) -> Sequence[TensorType]:
        past, update, indices = given(inputs, 0), given(inputs, 1), optional(inputs, 2)
        function(ScatterMode, attributes.mode)
        axis = checked_axis(attributes.axis, len(past.shape))
        need(axis > 0, "axis 0 is the batch's")
        fits = update.dtype is past.dtype and len(update.shape) == len(past.shape)
        fits = fits and all(
            there == here or (i == axis and here <= there)
            for i, (there, here) in enumerate(zip(past.shape, update.shape, strict=True))
        )
        need(fits, f"{update} does not go into {past} along {axis}")
        if indices is not None:
            wanted = TensorType(WireType.INT64, past.shape[:1])
            need(indices == wanted, f"write_indices are {indices}, must be {wanted}")
        return [past]

    def run(self, attributes: Any, inputs: Sequence[Array | None], outputs: Sequence[Array]) -> None:
        """TensorScatter (opset 24): `update` written into `past` along `axis`, for each of the batch from its index on.

        Where the output is `past` itself nothing else is touched. Circular writes go on at the beginning.
        """
        past, update, indices = required(inputs, 0), required(inputs, 1), optional(inputs, 2)
        axis, extent, length = attributes.axis, past.shape[attributes.axis], update.shape[attributes.axis]
        starts = np.zeros(len(past), np.int64) if indices is None else indices
        circular = attributes.mode == ScatterMode.CIRCULAR
        last = extent - 1 if circular else extent - length
        if not np.all((starts >= 0) & (starts <= last)):
            raise KernelFault(Status.INDEX_OUT_OF_RANGE, f"a write index lies outside [0, {last}]")
        present = outputs[0]
        if not np.may_share_memory(past, present):
            present[...] = past
        for row, new, start in zip(present, update, starts, strict=True):
            room = min(length, extent - int(start))
            target, source = np.moveaxis(row, axis - 1, 0), np.moveaxis(new, axis - 1, 0)
            target[start : start + room] = source[:room]
            target[: length - room] = source[room:]


OPERATORS: tuple[Operator, ...] = (TensorScatter(),)
