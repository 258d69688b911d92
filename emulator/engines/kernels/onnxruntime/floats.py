"""Commands of float32 as nodes of ONNX."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from driver_shim.protocol.program_commands import (
    Cell,
    CellActivation,
    CellDirection,
    CommandKind,
    Coordinates,
    GridPadding,
    Interpolation,
    NearestMode,
    PoolFunction,
    ReduceFunction,
    UnaryFunction,
)
from emulator.engines.kernels.onnxruntime.graph import (
    CONTRIB,
    FLOAT32,
    SMALL,
    Build,
    CommandGraph,
    is_float32,
    present_operands,
    spatial_rank,
    window_fields,
)
from emulator.engines.kernels.provider import KernelRequest
from emulator.model.operators.attention import MASK, extents_of
from emulator.model.operators.recurrent import LENGTHS, TRAITS, direction_count
from emulator.model.operators.reductions import axes_of


def _matmul(request: KernelRequest) -> CommandGraph | None:
    a, b = request.inputs[:2]
    if not is_float32(request) or a is None or b is None:
        return None
    attributes, graph = request.attributes, CommandGraph()
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
            product = graph.add("FusedMatMul", ["i0", "i1"], CONTRIB, **flags)
        if bias:
            addend = "i2" if attributes.beta == 1 else graph.add("Mul", ["i2", graph.constant(attributes.beta)])
            product = graph.add("Add", [product, addend])
    graph.activate(attributes, product)
    return graph


def _conv(request: KernelRequest) -> CommandGraph | None:
    return _convolution(request, "Conv")


def _conv_transpose(request: KernelRequest) -> CommandGraph | None:
    padding = list(request.attributes.output_padding[: spatial_rank(request)])
    return _convolution(request, "ConvTranspose", output_padding=padding)


def _convolution(request: KernelRequest, op: str, **more: Any) -> CommandGraph | None:
    if request.blocks is not None or not is_float32(request):
        return None
    attributes, graph = request.attributes, CommandGraph()
    product = graph.add(
        op,
        [f"i{i}" for i, operand in enumerate(request.inputs[:3]) if operand is not None],
        group=attributes.group,
        **window_fields(attributes, spatial_rank(request)),
        **more,
    )
    if len(request.inputs) > 3:
        product = graph.add("Add", [product, "i3"])
    graph.activate(attributes, product)
    return graph


def _pool(request: KernelRequest) -> CommandGraph | None:
    """Averages; of maxima numpy's kernel is as quick, and does not pass over NaN."""
    attributes, graph, rank = request.attributes, CommandGraph(), spatial_rank(request)
    if attributes.function != PoolFunction.AVERAGE or not is_float32(request):
        return None
    if attributes.ceil_mode:  # its averages count beyond the end
        return None
    window: dict[str, Any] = {"kernel_shape": list(attributes.kernel[:rank]), **window_fields(attributes, rank)}
    graph.add("AveragePool", ["i0"], count_include_pad=attributes.count_include_pad, **window)
    return graph


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


def _unary(request: KernelRequest) -> CommandGraph | None:
    function = request.attributes.function
    op = _UNARY.get(function)
    if op is None or not is_float32(request) or request.outputs[0].elements < SMALL:
        return None
    graph = CommandGraph()
    if function == UnaryFunction.SWISH:
        graph.add(op, ["i0"], CONTRIB, alpha=request.attributes.alpha)
    elif function == UnaryFunction.GELU_TANH:
        graph.add(op, ["i0"], approximate="tanh")
    else:
        graph.add(op, ["i0"])
    return graph


def _layer_norm(request: KernelRequest) -> CommandGraph | None:
    """Over the last dimensions, with a scale for each of their elements."""
    x, scale, bias = (*request.inputs, None, None)[:3]
    axes = axes_of(request.attributes.axes)
    if x is None or scale is None or not is_float32(request) or len(request.outputs) > 1 or not axes:
        return None
    rank = len(x.shape)
    fits = all(vector is None or vector.shape == x.shape[axes[0] :] for vector in (scale, bias))
    if axes != tuple(range(axes[0], rank)) or not fits or (request.attributes.root_mean_square and bias is not None):
        return None
    graph = CommandGraph()
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


def _recurrent(request: KernelRequest) -> CommandGraph | None:
    """Sequences of one length; what is wrong with several is golden's business."""
    attributes = request.attributes
    lengths = len(request.inputs) > LENGTHS and request.inputs[LENGTHS] is not None
    cell, count = Cell(attributes.cell), direction_count(attributes.direction)
    chosen = attributes.activations[: TRAITS[cell].activations * count]
    if lengths or not is_float32(request) or any(function not in _CELL_ACTIVATIONS for function in chosen):
        return None
    special: dict[str, Any] = {"clip": attributes.clip} if attributes.clip else {}
    if cell is Cell.GRU:
        special["linear_before_reset"] = attributes.linear_before_reset
    elif cell is Cell.LSTM:
        special["input_forget"] = attributes.input_forget
    graph = CommandGraph()
    graph.add(
        cell.name,
        present_operands(request),
        activations=[_CELL_ACTIVATIONS[CellActivation(function)] for function in chosen],
        direction=CellDirection(attributes.direction).name.lower(),
        hidden_size=request.outputs[0].shape[-1],
        **special,
    )
    return graph


def _attention(request: KernelRequest) -> CommandGraph | None:
    """With a mask for all keys at most, and no past."""
    attributes, given = request.attributes, request.inputs
    mask = given[MASK] if len(given) > MASK else None
    floats = all(t.dtype is FLOAT32 for t in (*given[:MASK], *request.outputs) if t is not None)
    if not floats or len(request.outputs) > 1 or any(operand is not None for operand in given[MASK + 1 :]):
        return None
    extents = extents_of(attributes, given)
    narrowed = attributes.softcap or max(attributes.left_window, attributes.right_window) >= 0
    whole = mask is None or mask.shape[-1] == extents.total
    positive = attributes.scale > 0  # onnxruntime refuses others, and takes NaN for none
    if narrowed or not whole or not positive or not _has_attention():
        return None
    graph = CommandGraph(opset=_ATTENTION_SINCE)
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


def _softmax(request: KernelRequest) -> CommandGraph | None:
    if not is_float32(request):
        return None
    graph = CommandGraph()
    graph.add("LogSoftmax" if request.attributes.logarithm else "Softmax", ["i0"], axis=request.attributes.axis)
    return graph


def _transpose(request: KernelRequest) -> CommandGraph | None:
    if not is_float32(request) or request.outputs[0].elements < SMALL:
        return None
    graph = CommandGraph()
    graph.add("Transpose", ["i0"], perm=list(request.attributes.permutation[: len(request.outputs[0].shape)]))
    return graph


_REDUCE = {ReduceFunction.MEAN: "ReduceMean", ReduceFunction.SUM: "ReduceSum"}  # its extremes pass over NaN


def _reduce(request: KernelRequest) -> CommandGraph | None:
    op, axes = _REDUCE.get(request.attributes.function), axes_of(request.attributes.axes)
    if op is None or not axes or not is_float32(request):
        return None
    graph = CommandGraph()
    graph.add(op, ["i0", graph.constant(axes, np.int64)], keepdims=request.attributes.keep)
    return graph


_PLAIN_COORDINATES = frozenset(
    {Coordinates.HALF_PIXEL, Coordinates.PYTORCH_HALF_PIXEL, Coordinates.ASYMMETRIC, Coordinates.ALIGN_CORNERS}
)


def _resize(request: KernelRequest) -> CommandGraph | None:
    """The last two dimensions of images, where onnxruntime's places are the specification's."""
    x, y, attributes = request.inputs[0], request.outputs[0], request.attributes
    if x is None or len(x.shape) != 4 or x.shape[:2] != y.shape[:2] or not is_float32(request):
        return None
    scales = attributes.scales[:4]
    reached = [np.float32(extent) * np.float32(scale) for extent, scale in zip(x.shape, scales, strict=True)]
    whole = attributes.coordinates != Coordinates.ALIGN_CORNERS or all(length == int(length) for length in reached)
    plain = not attributes.antialias and not attributes.exclude_outside and list(scales[:2]) == [1, 1]
    if not (plain and whole and attributes.coordinates in _PLAIN_COORDINATES and tuple(map(int, reached)) == y.shape):
        return None
    graph = CommandGraph()
    graph.add(
        "Resize",
        ["i0", "", graph.constant(scales)],
        mode=Interpolation(attributes.mode).name.lower(),
        coordinate_transformation_mode=Coordinates(attributes.coordinates).name.lower(),
        nearest_mode=NearestMode(attributes.nearest).name.lower(),
        cubic_coeff_a=attributes.cubic,
    )
    return graph


def _grid_sample(request: KernelRequest) -> CommandGraph | None:
    """Reflection is left out: onnxruntime has no bounds for a place that is no number."""
    attributes = request.attributes
    rank = spatial_rank(request)
    if not is_float32(request) or attributes.padding == GridPadding.REFLECTION or rank not in (2, 3):
        return None
    if rank > 2 and attributes.mode == Interpolation.CUBIC:
        return None
    graph = CommandGraph()
    graph.add(
        "GridSample",
        ["i0", "i1"],
        mode=Interpolation(attributes.mode).name.lower(),
        padding_mode=GridPadding(attributes.padding).name.lower(),
        align_corners=attributes.align_corners,
    )
    return graph


BUILD: dict[CommandKind, Build] = {
    CommandKind.MATMUL: _matmul,
    CommandKind.CONV: _conv,
    CommandKind.CONV_TRANSPOSE: _conv_transpose,
    CommandKind.POOL: _pool,
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
"""The command of each kind as nodes of ONNX; None where onnxruntime has nothing equal."""
