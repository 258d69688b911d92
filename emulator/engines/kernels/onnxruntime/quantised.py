"""Commands of 8-bit integers, as far as onnxruntime rounds them as golden does."""

from __future__ import annotations

import functools

import numpy as np

from driver_shim.protocol.program import TensorType
from driver_shim.protocol.program_commands import CommandKind, QBinaryFunction
from driver_shim.protocol.types import QUANTISED
from emulator.engines.kernels.onnxruntime.graph import (
    CONTRIB,
    FLOAT32,
    SMALL,
    Build,
    CommandGraph,
    present_operands,
    spatial_rank,
    window_fields,
)
from emulator.engines.kernels.provider import KernelRequest


def _qconv(request: KernelRequest) -> CommandGraph | None:
    attributes, graph = request.attributes, CommandGraph(floor=_floor(request))
    if not _eight_bit_is_exact(request):
        return None
    order = (0, 2, 3, 1, 4, 5, 6, 7, 8)
    inputs = [f"i{i}" for i in order if i < len(request.inputs) and request.inputs[i] is not None]
    graph.add("QLinearConv", inputs, group=attributes.group, **window_fields(attributes, spatial_rank(request)))
    return graph


def _qmatmul(request: KernelRequest) -> CommandGraph | None:
    a, b = request.inputs[:2]
    scale = request.inputs[4]
    graph = CommandGraph(floor=_floor(request))
    if not _eight_bit_is_exact(request):
        return None
    if scale is None or b is None or (scale.elements > 1 and len(b.shape) > 2):  # columns of stacks it refuses
        return None
    if len(request.inputs) <= 8 or request.inputs[8] is None:
        graph.add("QLinearMatMul", [f"i{i}" for i in (0, 2, 3, 1, 4, 5, 6, 7)])
    elif a is not None and b is not None and len(a.shape) == len(b.shape) == 2:
        graph.add("QGemm", [f"i{i}" for i in (0, 2, 3, 1, 4, 5, 8, 6, 7)], CONTRIB)
    else:
        return None
    return graph


def _matmul_integer(request: KernelRequest) -> CommandGraph | None:
    graph, b = CommandGraph(), request.inputs[1]
    by_column = b is not None and len(b.shape) == 2 and not _one_zero_point(request, 3)
    if not _has_byte_products() or not _one_zero_point(request, 2) or not (by_column or _one_zero_point(request, 3)):
        return None
    graph.add("MatMulInteger", present_operands(request))
    return graph


def _conv_integer(request: KernelRequest) -> CommandGraph | None:
    graph = CommandGraph()
    if not _has_byte_products() or not _one_zero_point(request, 3):
        return None
    graph.add(
        "ConvInteger",
        present_operands(request),
        group=request.attributes.group,
        **window_fields(request.attributes, spatial_rank(request)),
    )
    return graph


def _one_zero_point(request: KernelRequest, position: int) -> bool:
    zero = request.inputs[position] if position < len(request.inputs) else None
    return zero is None or zero.elements == 1


def _quantize(request: KernelRequest) -> CommandGraph | None:
    axis = _scaled_floats(request, request.inputs[0], request.outputs[0])
    if axis is None:
        return None
    graph = CommandGraph(finite=True)
    graph.add("QuantizeLinear", ["i0", "i1", "i2"], axis=axis)
    return graph


def _dynamic_quantize(request: KernelRequest) -> CommandGraph | None:
    if len(request.outputs) < 3 or request.outputs[0].elements < SMALL:
        return None
    graph = CommandGraph(finite=True)
    graph.add("DynamicQuantizeLinear", ["i0"])
    return graph


def _dequantize(request: KernelRequest) -> CommandGraph | None:
    axis = _scaled_floats(request, request.outputs[0], request.inputs[0])
    if axis is None:
        return None
    graph = CommandGraph()
    graph.add("DequantizeLinear", present_operands(request), axis=axis)
    return graph


def _scaled_floats(request: KernelRequest, real: TensorType | None, stored: TensorType | None) -> int | None:
    """The axis of a quantisation between float32 and 8 bits that onnxruntime does alike; None for any other."""
    scale, zero, attributes = request.constant(1), request.constant(2), request.attributes
    if real is None or stored is None or real.elements < SMALL or scale is None or zero is None:
        return None
    alike = scale.shape == zero.shape and np.all((scale >= _MODEST_SCALE[0]) & (scale <= _MODEST_SCALE[1]))
    if real.dtype is not FLOAT32 or stored.dtype not in QUANTISED or attributes.block or not alike:
        return None
    return int(attributes.axis)


def _qbinary(request: KernelRequest) -> CommandGraph | None:
    a = request.inputs[0]
    known = all(request.constant(i) is not None for i in range(2, 8))
    # the first operand is the one that is not repeated: onnxruntime rounds in another order otherwise
    if a is None or a.shape != request.outputs[0].shape or not known or not _rounds_once() or not _modest(request):
        return None
    graph = CommandGraph()
    op = "QLinearAdd" if request.attributes.function == QBinaryFunction.ADD else "QLinearMul"
    graph.add(op, [f"i{i}" for i in (0, 2, 3, 1, 4, 5, 6, 7)], CONTRIB)
    return graph


def _qpool(request: KernelRequest) -> CommandGraph | None:
    attributes, graph, rank = request.attributes, CommandGraph(), spatial_rank(request)
    scales = [request.constant(position) for position in (1, 3)]
    modest = all(s is not None and _MODEST_SCALE[0] <= s.reshape(()) <= _MODEST_SCALE[1] for s in scales)
    dilated = any(dilation != 1 for dilation in attributes.dilations[:rank])
    if attributes.ceil_mode or dilated or not modest or rank > _QPOOL_RANK:
        return None
    window = {name: value for name, value in window_fields(attributes, rank).items() if name != "dilations"}
    graph.add(
        "QLinearAveragePool",
        present_operands(request),
        CONTRIB,
        kernel_shape=list(attributes.kernel[:rank]),
        count_include_pad=attributes.count_include_pad,
        **window,
    )
    return graph


_QPOOL_RANK = 2
"""Most spatial dimensions that onnxruntime pools in integers."""


def _floor(request: KernelRequest) -> int | None:
    zero = request.constant(7)
    return int(zero.reshape(())) if request.attributes.relu and zero is not None else None


_MODEST_SCALE = 2.0**-20, 2.0**20


def _eight_bit_is_exact(request: KernelRequest) -> bool:
    """Whether onnxruntime's 8-bit products are golden's to the bit on this machine, with these scales.

    It takes float32's way over int32 sums as golden does, unless the CPU lacks dot products of bytes: its kernels then
    add pairs in 16 bits, which saturate. Scales that make infinities or subnormal numbers are golden's business, and so
    are scales and zero points that are not known beforehand.
    """
    scales = [request.constant(position) for position in (2, 4, 6)]
    zeros = [request.constant(position) for position in (3, 5, 7)]
    if any(values is None for values in (*scales, *zeros)) or not _has_byte_products():
        return False
    if any(values is not None and (values.size != 1 or values.ndim > 1) for values in (scales[0], zeros[0])):
        return False
    same_weights_zero = zeros[1] is not None and bool(np.all(zeros[1] == zeros[1].reshape(-1)[0]))
    return _modest(request) and same_weights_zero


def _modest(request: KernelRequest) -> bool:
    """Whether no scale of two operands and a result is extreme, which makes infinities or subnormal numbers."""
    scales = [request.constant(position) for position in (2, 4, 6)]
    return all(np.all((s >= _MODEST_SCALE[0]) & (s <= _MODEST_SCALE[1])) for s in scales if s is not None)


@functools.cache
def _has_byte_products() -> bool:
    """Whether the CPU multiplies and adds bytes into 32 bits (VNNI, or AArch64's dot products)."""
    return not _cpu_features().isdisjoint({"avx512_vnni", "avx_vnni", "asimddp"})


@functools.cache
def _rounds_once() -> bool:
    """Whether onnxruntime multiplies and adds floats in one rounding: its kernels for x86 do where the CPU can."""
    return {"avx2", "fma"} <= _cpu_features()


@functools.cache
def _cpu_features() -> frozenset[str]:
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
            return frozenset(file.read().split())
    except OSError:
        return frozenset()


BUILD: dict[CommandKind, Build] = {
    CommandKind.QMATMUL: _qmatmul,
    CommandKind.QCONV: _qconv,
    CommandKind.MATMUL_INTEGER: _matmul_integer,
    CommandKind.CONV_INTEGER: _conv_integer,
    CommandKind.QUANTIZE: _quantize,
    CommandKind.DEQUANTIZE: _dequantize,
    CommandKind.DYNAMIC_QUANTIZE: _dynamic_quantize,
    CommandKind.QBINARY: _qbinary,
    CommandKind.QPOOL: _qpool,
}
"""The command of each kind as nodes of ONNX; None where onnxruntime has nothing equal."""
