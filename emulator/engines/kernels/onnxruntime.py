"""Kernels of onnxruntime: one for one command, never more.

Each is a session over a model of that command alone; its constants are read where they lie in device memory, and packed
by onnxruntime when the session is made. All sessions of a process share one memory arena and one pool of threads.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from driver_shim.protocol.program import TensorType
from driver_shim.protocol.program_commands import (
    Activation,
    Cell,
    CellActivation,
    CommandKind,
    Coordinates,
    Direction,
    GridPadding,
    NearestMode,
    PoolFunction,
    QBinaryFunction,
    ReduceFunction,
    ResizeMode,
    UnaryFunction,
)
from driver_shim.protocol.types import QUANTISED, WireType
from emulator.engines.kernels.provider import Kernel, KernelRequest
from emulator.model.operators import OPERATORS
from emulator.model.operators.arrays import Array, required
from emulator.model.operators.attention import MASK, extents_of
from emulator.model.operators.recurrent import LENGTHS, TRAITS, direction_count
from emulator.model.operators.reductions import axes_of

_OPSET, _IR_VERSION = 21, 10
_CONTRIB = "com.microsoft"
_FLOAT32 = WireType.FLOAT32
_SMALL = 1 << 14
"""Elements below which numpy is done before onnxruntime has begun."""


@dataclasses.dataclass(slots=True)
class _Graph:
    """The model of one command as it grows: operand i is "i0", "i1", …; the last node gives the outputs."""

    nodes: list[onnx.NodeProto] = dataclasses.field(default_factory=list)
    small: list[onnx.TensorProto] = dataclasses.field(default_factory=list)
    """Constants of the model's own."""
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

    def activate(self, attributes: Any, x: str) -> None:
        """The activation of MATMUL and CONV, which onnxruntime fuses into the product."""
        activation = Activation(attributes.activation)
        if activation is Activation.CLIP:
            self.add("Clip", [x, self.constant(attributes.low), self.constant(attributes.high)])
        elif activation is not Activation.NONE:
            self.add(activation.name.capitalize(), [x])


def prepare(request: KernelRequest) -> Kernel | None:
    """A kernel of onnxruntime, where there is one that does exactly what the command means."""
    build = _BUILD.get(request.kind)
    tensors = [*request.inputs, *request.outputs]
    if build is None or any(tensor is not None and not tensor.elements for tensor in tensors):
        return None
    graph = build(request)
    kernel = _session(request, graph) if graph is not None else None
    return _finite(request, kernel) if kernel is not None and graph is not None and graph.finite else kernel


def _finite(request: KernelRequest, kernel: Kernel) -> Kernel:
    """The kernel where the data are finite; golden's else."""
    golden = functools.partial(OPERATORS[request.kind].run, request.attributes)

    def run(inputs: Sequence[Array | None], outputs: Sequence[Array]) -> None:
        chosen = kernel if np.isfinite(required(inputs, 0).sum()) else golden
        chosen(inputs, outputs)

    return run


# --- one function a kind: the command as nodes of ONNX; None where onnxruntime has nothing equal --------------------


def _is_float32(request: KernelRequest) -> bool:
    return all(t.dtype is _FLOAT32 for t in (*request.inputs, *request.outputs) if t is not None)


def _matmul(request: KernelRequest) -> _Graph | None:
    a, b = request.inputs[:2]
    if not _is_float32(request) or a is None or b is None:
        return None
    attributes, graph = request.attributes, _Graph()
    bias = len(request.inputs) > 2 and request.inputs[2] is not None
    flags: dict[str, Any] = {
        "transA": attributes.transpose_a,
        "transB": attributes.transpose_b,
        "alpha": attributes.alpha,
    }
    if len(a.shape) == len(b.shape) == 2:
        inputs = ["i0", "i1", "i2"] if bias else ["i0", "i1"]
        product = graph.add("Gemm", inputs, **flags, beta=attributes.beta)
    else:
        if not any(flags[name] for name in ("transA", "transB")) and attributes.alpha == 1:
            product = graph.add("MatMul", ["i0", "i1"])
        else:
            product = graph.add("FusedMatMul", ["i0", "i1"], _CONTRIB, **flags)
        if bias:
            addend = "i2" if attributes.beta == 1 else graph.add("Mul", ["i2", graph.constant(attributes.beta)])
            product = graph.add("Add", [product, addend])
    graph.activate(attributes, product)
    return graph


def _window(attributes: Any, rank: int) -> dict[str, Any]:
    return {
        "strides": list(attributes.strides[:rank]),
        "dilations": list(attributes.dilations[:rank]),
        "pads": [*attributes.pads_begin[:rank], *attributes.pads_end[:rank]],
    }


def _spatial_rank(request: KernelRequest) -> int:
    return len(request.outputs[0].shape) - 2


def _conv(request: KernelRequest) -> _Graph | None:
    return _convolution(request, "Conv")


def _conv_transpose(request: KernelRequest) -> _Graph | None:
    padding = list(request.attributes.output_padding[: _spatial_rank(request)])
    return _convolution(request, "ConvTranspose", output_padding=padding)


def _convolution(request: KernelRequest, op: str, **more: Any) -> _Graph | None:
    if not _is_float32(request):
        return None
    attributes, graph = request.attributes, _Graph()
    product = graph.add(
        op,
        [f"i{i}" for i, operand in enumerate(request.inputs[:3]) if operand is not None],
        group=attributes.group,
        **_window(attributes, _spatial_rank(request)),
        **more,
    )
    if len(request.inputs) > 3:
        product = graph.add("Add", [product, "i3"])
    graph.activate(attributes, product)
    return graph


def _pool(request: KernelRequest) -> _Graph | None:
    """Averages; of maxima numpy's kernel is as quick, and does not pass over NaN."""
    attributes, graph, rank = request.attributes, _Graph(), _spatial_rank(request)
    if attributes.function != PoolFunction.AVERAGE or not _is_float32(request):
        return None
    if attributes.ceil_mode:  # its averages count beyond the end
        return None
    window: dict[str, Any] = {"kernel_shape": list(attributes.kernel[:rank]), **_window(attributes, rank)}
    graph.add("AveragePool", ["i0"], count_include_pad=attributes.count_include_pad, **window)
    return graph


def _qconv(request: KernelRequest) -> _Graph | None:
    attributes, graph = request.attributes, _Graph(floor=_floor(request))
    if not _eight_bit_is_exact(request):
        return None
    order = (0, 2, 3, 1, 4, 5, 6, 7, 8)
    inputs = [f"i{i}" for i in order if i < len(request.inputs) and request.inputs[i] is not None]
    graph.add("QLinearConv", inputs, group=attributes.group, **_window(attributes, _spatial_rank(request)))
    return graph


def _qmatmul(request: KernelRequest) -> _Graph | None:
    a, b = request.inputs[:2]
    scale = request.inputs[4]
    graph = _Graph(floor=_floor(request))
    if not _eight_bit_is_exact(request):
        return None
    if scale is None or b is None or (scale.elements > 1 and len(b.shape) > 2):  # columns of stacks it refuses
        return None
    if len(request.inputs) <= 8 or request.inputs[8] is None:
        graph.add("QLinearMatMul", [f"i{i}" for i in (0, 2, 3, 1, 4, 5, 6, 7)])
    elif a is not None and b is not None and len(a.shape) == len(b.shape) == 2:
        graph.add("QGemm", [f"i{i}" for i in (0, 2, 3, 1, 4, 5, 8, 6, 7)], _CONTRIB)
    else:
        return None
    return graph


def _matmul_integer(request: KernelRequest) -> _Graph | None:
    graph, b = _Graph(), request.inputs[1]
    by_column = b is not None and len(b.shape) == 2 and not _one_zero_point(request, 3)
    if not _has_byte_products() or not _one_zero_point(request, 2) or not (by_column or _one_zero_point(request, 3)):
        return None
    graph.add("MatMulInteger", _present(request))
    return graph


def _conv_integer(request: KernelRequest) -> _Graph | None:
    graph = _Graph()
    if not _has_byte_products() or not _one_zero_point(request, 3):
        return None
    graph.add(
        "ConvInteger",
        _present(request),
        group=request.attributes.group,
        **_window(request.attributes, _spatial_rank(request)),
    )
    return graph


def _one_zero_point(request: KernelRequest, position: int) -> bool:
    zero = request.inputs[position] if position < len(request.inputs) else None
    return zero is None or zero.elements == 1


def _present(request: KernelRequest) -> list[str]:
    """All operands; "" for one that is absent."""
    return ["" if operand is None else f"i{i}" for i, operand in enumerate(request.inputs)]


def _quantize(request: KernelRequest) -> _Graph | None:
    axis = _scaled_floats(request, request.inputs[0], request.outputs[0])
    if axis is None:
        return None
    graph = _Graph(finite=True)
    graph.add("QuantizeLinear", ["i0", "i1", "i2"], axis=axis)
    return graph


def _dynamic_quantize(request: KernelRequest) -> _Graph | None:
    if len(request.outputs) < 3 or request.outputs[0].elements < _SMALL:
        return None
    graph = _Graph(finite=True)
    graph.add("DynamicQuantizeLinear", ["i0"])
    return graph


def _dequantize(request: KernelRequest) -> _Graph | None:
    axis = _scaled_floats(request, request.outputs[0], request.inputs[0])
    if axis is None:
        return None
    graph = _Graph()
    graph.add("DequantizeLinear", _present(request), axis=axis)
    return graph


def _scaled_floats(request: KernelRequest, real: TensorType | None, stored: TensorType | None) -> int | None:
    """The axis of a quantisation between float32 and 8 bits that onnxruntime does alike; None for any other."""
    scale, zero, attributes = request.constant(1), request.constant(2), request.attributes
    if real is None or stored is None or real.elements < _SMALL or scale is None or zero is None:
        return None
    alike = scale.shape == zero.shape and np.all((scale >= _MODEST_SCALE[0]) & (scale <= _MODEST_SCALE[1]))
    if real.dtype is not _FLOAT32 or stored.dtype not in QUANTISED or attributes.block or not alike:
        return None
    return int(attributes.axis)


def _qbinary(request: KernelRequest) -> _Graph | None:
    a = request.inputs[0]
    known = all(request.constant(i) is not None for i in range(2, 8))
    # the first operand is the one that is not repeated: onnxruntime rounds in another order otherwise
    if a is None or a.shape != request.outputs[0].shape or not known or not _rounds_once() or not _modest(request):
        return None
    graph = _Graph()
    op = "QLinearAdd" if request.attributes.function == QBinaryFunction.ADD else "QLinearMul"
    graph.add(op, [f"i{i}" for i in (0, 2, 3, 1, 4, 5, 6, 7)], _CONTRIB)
    return graph


def _qpool(request: KernelRequest) -> _Graph | None:
    attributes, graph, rank = request.attributes, _Graph(), _spatial_rank(request)
    scales = [request.constant(position) for position in (1, 3)]
    modest = all(s is not None and _MODEST_SCALE[0] <= s.reshape(()) <= _MODEST_SCALE[1] for s in scales)
    dilated = any(dilation != 1 for dilation in attributes.dilations[:rank])
    if attributes.ceil_mode or dilated or not modest or rank > _QPOOL_RANK:
        return None
    window = {name: value for name, value in _window(attributes, rank).items() if name != "dilations"}
    graph.add(
        "QLinearAveragePool",
        _present(request),
        _CONTRIB,
        kernel_shape=list(attributes.kernel[:rank]),
        count_include_pad=attributes.count_include_pad,
        **window,
    )
    return graph


_QPOOL_RANK = 2
"""Most spatial dimensions that onnxruntime pools in integers."""


def _matmul_nbits(request: KernelRequest) -> _Graph | None:
    a, b = request.inputs[:2]
    attributes, zeros = request.attributes, request.inputs[3] if len(request.inputs) > 3 else None
    packed_zeros = zeros is None or zeros.dtype is WireType.UINT8
    if a is None or b is None or a.dtype is not _FLOAT32 or not packed_zeros or attributes.block not in _NBITS_BLOCKS:
        return None
    graph = _Graph()
    present = _present(request)
    inputs = [*present[:4], *[""] * (4 - len(present)), "", *present[4:]]
    while not inputs[-1]:
        inputs.pop()
    sizes = {"N": b.shape[0], "K": a.shape[-1], "block_size": attributes.block, "bits": attributes.bits}
    graph.add("MatMulNBits", inputs, _CONTRIB, **sizes)
    return graph


_NBITS_BLOCKS = (16, 32, 64, 128, 256)
"""Sizes of blocks that onnxruntime knows."""


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


_UNARY = {
    UnaryFunction.EXP: "Exp",
    UnaryFunction.TANH: "Tanh",
    UnaryFunction.SIGMOID: "Sigmoid",
    UnaryFunction.ERF: "Erf",
    UnaryFunction.GELU: "Gelu",
    UnaryFunction.GELU_TANH: "Gelu",
    UnaryFunction.HARD_SWISH: "HardSwish",
    UnaryFunction.SWISH: "QuickGelu",
}


def _unary(request: KernelRequest) -> _Graph | None:
    function = request.attributes.function
    op = _UNARY.get(function)
    if op is None or not _is_float32(request) or request.outputs[0].elements < _SMALL:
        return None
    graph = _Graph()
    if function == UnaryFunction.SWISH:
        graph.add(op, ["i0"], _CONTRIB, alpha=request.attributes.alpha)
    elif function == UnaryFunction.GELU_TANH:
        graph.add(op, ["i0"], approximate="tanh")
    else:
        graph.add(op, ["i0"])
    return graph


def _layer_norm(request: KernelRequest) -> _Graph | None:
    """Over the last dimensions, with a scale for each of their elements."""
    x, scale, bias = (*request.inputs, None, None)[:3]
    axes = axes_of(request.attributes.axes)
    if x is None or scale is None or not _is_float32(request) or len(request.outputs) > 1 or not axes:
        return None
    rank = len(x.shape)
    fits = all(vector is None or vector.shape == x.shape[axes[0] :] for vector in (scale, bias))
    if axes != tuple(range(axes[0], rank)) or not fits or (request.attributes.root_mean_square and bias is not None):
        return None
    graph = _Graph()
    given = {"axis": axes[0], "epsilon": request.attributes.epsilon}
    if request.attributes.root_mean_square:
        graph.add("SimplifiedLayerNormalization", ["i0", "i1"], **given)
    else:
        graph.add("LayerNormalization", ["i0", "i1"] if bias is None else ["i0", "i1", "i2"], **given)
    return graph


_CELL_ACTIVATIONS = {
    CellActivation.RELU: "Relu",
    CellActivation.TANH: "Tanh",
    CellActivation.SIGMOID: "Sigmoid",
    CellActivation.SOFTSIGN: "Softsign",
    CellActivation.SOFTPLUS: "Softplus",
}
"""Those without parameters."""


def _recurrent(request: KernelRequest) -> _Graph | None:
    """Sequences of one length; what is wrong with several is golden's business."""
    attributes = request.attributes
    lengths = len(request.inputs) > LENGTHS and request.inputs[LENGTHS] is not None
    cell, count = Cell(attributes.cell), direction_count(attributes.direction)
    chosen = attributes.activations[: TRAITS[cell].activations * count]
    if lengths or not _is_float32(request) or any(function not in _CELL_ACTIVATIONS for function in chosen):
        return None
    special: dict[str, Any] = {"clip": attributes.clip} if attributes.clip else {}
    if cell is Cell.GRU:
        special["linear_before_reset"] = attributes.linear_before_reset
    elif cell is Cell.LSTM:
        special["input_forget"] = attributes.input_forget
    graph = _Graph()
    graph.add(
        cell.name,
        ["" if operand is None else f"i{i}" for i, operand in enumerate(request.inputs)],
        activations=[_CELL_ACTIVATIONS[CellActivation(function)] for function in chosen],
        direction=Direction(attributes.direction).name.lower(),
        hidden_size=request.outputs[0].shape[-1],
        **special,
    )
    return graph


def _attention(request: KernelRequest) -> _Graph | None:
    """With a mask for all keys at most, and no past."""
    attributes, given = request.attributes, request.inputs
    mask = given[MASK] if len(given) > MASK else None
    floats = all(t.dtype is _FLOAT32 for t in (*given[:MASK], *request.outputs) if t is not None)
    if not floats or len(request.outputs) > 1 or any(operand is not None for operand in given[MASK + 1 :]):
        return None
    extents = extents_of(attributes, given)
    narrowed = attributes.softcap or max(attributes.left_window, attributes.right_window) >= 0
    whole = mask is None or mask.shape[-1] == extents.total
    if narrowed or not whole or not _has_attention():
        return None
    graph = _Graph(opset=_ATTENTION_SINCE)
    inputs = ["i0", "i1", "i2"]
    if mask is not None:
        shape = (*mask.shape[:-2], extents.queries, extents.total)
        inputs.append("i3" if mask.shape == shape else graph.add("Expand", ["i3", graph.constant(shape, np.int64)]))
    heads: dict[str, Any] = {}
    if attributes.query_heads:
        heads = {"q_num_heads": attributes.query_heads, "kv_num_heads": attributes.key_heads}
    graph.add("Attention", inputs, scale=attributes.scale, is_causal=attributes.causal, **heads)
    return graph


_ATTENTION_SINCE = 23
"""Opset that has Attention."""


@functools.cache
def _has_attention() -> bool:
    """Whether this onnxruntime attends as golden does, also where queries may attend nothing: from 1.32 on."""
    import onnxruntime

    return tuple(int(part) for part in onnxruntime.__version__.split(".")[:2]) >= (1, 32)


def _softmax(request: KernelRequest) -> _Graph | None:
    if not _is_float32(request):
        return None
    graph = _Graph()
    graph.add("LogSoftmax" if request.attributes.logarithm else "Softmax", ["i0"], axis=request.attributes.axis)
    return graph


def _transpose(request: KernelRequest) -> _Graph | None:
    if not _is_float32(request) or request.outputs[0].elements < _SMALL:
        return None
    graph = _Graph()
    graph.add("Transpose", ["i0"], perm=list(request.attributes.permutation[: len(request.outputs[0].shape)]))
    return graph


_REDUCE = {ReduceFunction.MEAN: "ReduceMean", ReduceFunction.SUM: "ReduceSum"}  # its extremes pass over NaN


def _reduce(request: KernelRequest) -> _Graph | None:
    op, axes = _REDUCE.get(request.attributes.function), axes_of(request.attributes.axes)
    if op is None or not axes or not _is_float32(request):
        return None
    graph = _Graph()
    graph.add(op, ["i0", graph.constant(axes, np.int64)], keepdims=request.attributes.keep)
    return graph


_PLAIN_COORDINATES = frozenset(
    {Coordinates.HALF_PIXEL, Coordinates.PYTORCH_HALF_PIXEL, Coordinates.ASYMMETRIC, Coordinates.ALIGN_CORNERS}
)


def _resize(request: KernelRequest) -> _Graph | None:
    """The last two dimensions of images, where onnxruntime's places are the specification's."""
    x, y, attributes = request.inputs[0], request.outputs[0], request.attributes
    if x is None or len(x.shape) != 4 or x.shape[:2] != y.shape[:2] or not _is_float32(request):
        return None
    scales = attributes.scales[:4]
    reached = [np.float32(extent) * np.float32(scale) for extent, scale in zip(x.shape, scales, strict=True)]
    whole = attributes.coordinates != Coordinates.ALIGN_CORNERS or all(length == int(length) for length in reached)
    plain = not attributes.antialias and not attributes.exclude_outside and list(scales[:2]) == [1, 1]
    if not (plain and whole and attributes.coordinates in _PLAIN_COORDINATES and tuple(map(int, reached)) == y.shape):
        return None
    graph = _Graph()
    graph.add(
        "Resize",
        ["i0", "", graph.constant(scales)],
        mode=ResizeMode(attributes.mode).name.lower(),
        coordinate_transformation_mode=Coordinates(attributes.coordinates).name.lower(),
        nearest_mode=NearestMode(attributes.nearest).name.lower(),
        cubic_coeff_a=attributes.cubic,
    )
    return graph


def _grid_sample(request: KernelRequest) -> _Graph | None:
    """Reflection is left out: onnxruntime has no bounds for a place that is no number."""
    attributes = request.attributes
    rank = _spatial_rank(request)
    if not _is_float32(request) or attributes.padding == GridPadding.REFLECTION or rank not in (2, 3):
        return None
    if rank > 2 and attributes.mode == ResizeMode.CUBIC:
        return None
    graph = _Graph()
    graph.add(
        "GridSample",
        ["i0", "i1"],
        mode=ResizeMode(attributes.mode).name.lower(),
        padding_mode=GridPadding(attributes.padding).name.lower(),
        align_corners=attributes.align_corners,
    )
    return graph


_BUILD: dict[CommandKind, Callable[[KernelRequest], _Graph | None]] = {
    CommandKind.MATMUL: _matmul,
    CommandKind.CONV: _conv,
    CommandKind.CONV_TRANSPOSE: _conv_transpose,
    CommandKind.POOL: _pool,
    CommandKind.QMATMUL: _qmatmul,
    CommandKind.QCONV: _qconv,
    CommandKind.MATMUL_INTEGER: _matmul_integer,
    CommandKind.CONV_INTEGER: _conv_integer,
    CommandKind.QUANTIZE: _quantize,
    CommandKind.DEQUANTIZE: _dequantize,
    CommandKind.DYNAMIC_QUANTIZE: _dynamic_quantize,
    CommandKind.QBINARY: _qbinary,
    CommandKind.MATMUL_NBITS: _matmul_nbits,
    CommandKind.QPOOL: _qpool,
    CommandKind.UNARY: _unary,
    CommandKind.SOFTMAX: _softmax,
    CommandKind.TRANSPOSE: _transpose,
    CommandKind.REDUCE: _reduce,
    CommandKind.RESIZE: _resize,
    CommandKind.LAYER_NORM: _layer_norm,
    CommandKind.RECURRENT: _recurrent,
    CommandKind.ATTENTION: _attention,
    CommandKind.GRID_SAMPLE: _grid_sample,
}
KINDS = _BUILD.keys()
"""Kinds of command that have a kernel here."""


# --- sessions ---------------------------------------------------------------------------------------------------------


def _session(request: KernelRequest, graph: _Graph) -> Kernel | None:
    """A kernel that runs the graph straight on the arrays it is given."""
    import onnxruntime

    runtime = _runtime()
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.use_env_allocators", "1")
    options.log_severity_level = 3
    options.use_deterministic_compute = True
    if runtime.threads == 1:
        options.intra_op_num_threads = 1
    else:
        options.use_per_session_threads = False
    constants = {f"i{i}": array for i, array in enumerate(request.constants) if array is not None}
    shared = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in constants.values()]
    options.add_external_initializers(list(constants), shared)
    model = _model(request, graph, constants.keys())
    try:
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except onnxruntime.capi.onnxruntime_pybind11_state.NotImplemented:  # for these element types
        return None
    return _Session(request, session, shared, graph.floor).run


class _Session:
    """A session bound to the arrays of its last run: programs run on the same ones again and again."""

    def __init__(self, request: KernelRequest, session: Any, constants: list[Any], floor: int | None) -> None:
        self._session = session
        self._floor = floor
        self._constants = constants
        """Kept: the session reads their memory."""
        self._binding = session.io_binding()
        named = [(f"i{i}", i) for i, operand in enumerate(request.inputs) if operand is not None]
        self._inputs = [(name, i) for name, i in named if request.constants[i] is None]
        self._bound: list[int] = []

    def run(self, inputs: Sequence[Array | None], outputs: Sequence[Array]) -> None:
        """Fill the outputs."""
        arrays = [np.ascontiguousarray(inputs[position]) for _, position in self._inputs]
        places = [array.ctypes.data for array in (*arrays, *outputs)]
        if places != self._bound:
            for (name, _), array, place in zip(self._inputs, arrays, places, strict=False):
                self._binding.bind_input(name, "cpu", 0, array.dtype, array.shape, place)
            for i, y in enumerate(outputs):
                self._binding.bind_output(f"y{i}", "cpu", 0, y.dtype, y.shape, y.ctypes.data)
            self._bound = places
        self._session.run_with_iobinding(self._binding)
        if self._floor is not None:
            np.maximum(outputs[0], outputs[0].dtype.type(self._floor), out=outputs[0])


def _model(request: KernelRequest, graph: _Graph, constants: Any) -> bytes:
    results = [f"y{i}" for i in range(len(request.outputs))]
    graph.nodes[-1].output[:] = results
    inputs, initialisers = [], list(graph.small)
    for index, operand in enumerate(request.inputs):
        name = f"i{index}"
        if operand is None:
            continue
        if name in constants:
            initialisers.append(_elsewhere(name, operand))
        else:
            inputs.append(helper.make_tensor_value_info(name, operand.dtype, operand.shape))
    outputs = [
        helper.make_tensor_value_info(y, t.dtype, t.shape) for y, t in zip(results, request.outputs, strict=True)
    ]
    proto = helper.make_graph(graph.nodes, "command", inputs, outputs, initialisers)
    opsets = [helper.make_opsetid("", graph.opset), helper.make_opsetid(_CONTRIB, 1)]
    serialised: bytes = helper.make_model(proto, opset_imports=opsets, ir_version=_IR_VERSION).SerializeToString()
    return serialised


def _elsewhere(name: str, tensor: TensorType) -> onnx.TensorProto:
    """An initialiser whose values are given beside the model, not in it."""
    proto = TensorProto(name=name, dims=tensor.shape, data_type=tensor.dtype, data_location=TensorProto.EXTERNAL)
    for key, value in (("location", "device memory"), ("length", str(tensor.size_bytes))):
        entry = proto.external_data.add()
        entry.key, entry.value = key, value
    return proto


@dataclasses.dataclass(frozen=True, slots=True)
class _Runtime:
    threads: int


@functools.cache
def _runtime() -> _Runtime:
    """onnxruntime set up for this process: as many threads as BLAS has, one arena for all sessions."""
    import onnxruntime

    threads = int(os.environ.get("OMP_NUM_THREADS", "1"))
    if threads > 1:
        onnxruntime.set_global_thread_pool_sizes(threads, 1)
    arena = onnxruntime.OrtMemoryInfo(
        "Cpu", onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, onnxruntime.OrtMemType.DEFAULT
    )
    onnxruntime.create_and_register_allocator(arena, None)
    return _Runtime(threads)
