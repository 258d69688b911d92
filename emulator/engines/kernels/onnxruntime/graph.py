"""The model of one command, and what its builders ask of commands."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper

from driver_shim.protocol.program_commands import Activation
from driver_shim.protocol.types import WireType
from emulator.engines.kernels.provider import KernelRequest
from emulator.model.operators.arrays import Array

_OPSET = 21
CONTRIB = "com.microsoft"
BLOCKED = "com.microsoft.nchwc"
"""Operators on channels in blocks."""
FLOAT32 = WireType.FLOAT32
SMALL = 1 << 14
"""Elements below which numpy is done before onnxruntime has begun."""


@dataclasses.dataclass(slots=True)
class CommandGraph:
    """The model of one command as it grows: operand i is "i0", "i1", …; the last node gives the outputs."""

    nodes: list[onnx.NodeProto] = dataclasses.field(default_factory=list)
    small: list[onnx.TensorProto] = dataclasses.field(default_factory=list)
    """Constants of the model's own."""
    large: dict[str, Array] = dataclasses.field(default_factory=dict)
    """Those that are given beside the model, as operands are."""
    opset: int = _OPSET
    floor: int | None = None
    """What the result is raised to afterwards: the zero point, where a quantised product is followed by ReLU."""
    finite: bool = False
    """Whether the kernel is for finite data alone: what onnxruntime makes of others depends on the processor."""

    def add(self, op: str, inputs: Sequence[str], domain: str = "", **attributes: Any) -> str:
        """Append a node; returns its result's name."""
        result = f"n{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [result], domain=domain, **attributes))
        return result

    def constant(self, values: Any, dtype: Any = np.float32) -> str:
        """A small constant."""
        name = f"k{len(self.small)}"
        self.small.append(onnx.numpy_helper.from_array(np.asarray(values, dtype), name))
        return name

    def given(self, values: Array) -> str:
        """A constant of any size."""
        name = f"g{len(self.large)}"
        self.large[name] = np.ascontiguousarray(values)
        return name

    def activate(self, attributes: Any, x: str) -> None:
        """The activation of MATMUL and CONV, which onnxruntime fuses into the product."""
        activation = Activation(attributes.activation)
        if activation is Activation.CLIP:
            self.add("Clip", [x, self.constant(attributes.low), self.constant(attributes.high)])
        elif activation is not Activation.NONE:
            self.add(activation.name.capitalize(), [x])


def is_float32(request: KernelRequest) -> bool:
    """Whether all operands and outputs are float32."""
    return all(t.dtype is FLOAT32 for t in (*request.inputs, *request.outputs) if t is not None)


def window_fields(attributes: Any, rank: int) -> dict[str, Any]:
    """How a window moves, as attributes of Conv and pooling."""
    return {
        "strides": list(attributes.strides[:rank]),
        "dilations": list(attributes.dilations[:rank]),
        "pads": [*attributes.pads_begin[:rank], *attributes.pads_end[:rank]],
    }


def spatial_rank(request: KernelRequest) -> int:
    """Dimensions behind batch and channels."""
    return len(request.outputs[0].shape) - 2


def present_operands(request: KernelRequest) -> list[str]:
    """All operands; "" for one that is absent."""
    return ["" if operand is None else f"i{i}" for i, operand in enumerate(request.inputs)]


Build = Callable[[KernelRequest], CommandGraph | None]
"""None where onnxruntime has nothing equal to the command."""
