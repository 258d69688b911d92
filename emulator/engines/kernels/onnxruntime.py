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
    CommandKind,
    Coordinates,
    NearestMode,
    PoolFunction,
    ReduceFunction,
    ResizeMode,
    UnaryFunction,
)
from driver_shim.protocol.types import QUANTISED, WireType
from emulator.engines.kernels.provider import Kernel, KernelRequest
from emulator.model.operators.arrays import Array
from emulator.model.operators.reductions import axes_of

_OPSET, _IR_VERSION = 21, 10
_CONTRIB = "com.microsoft"
_FLOAT32 = WireType.FLOAT32
_SMALL = 1 << 14
"""Elements below which numpy is done before onnxruntime has begun."""


@dataclasses.dataclass(slots=True)
class _Graph:
    """The model of one command as it grows: operand i is "i0", "i1", …; the result of the last node is "y"."""

    nodes: list[onnx.NodeProto] = dataclasses.field(default_factory=list)
    small: list[onnx.TensorProto] = dataclasses.field(default_factory=list)
    """Constants of the model's own."""
    floor: int | None = None
    """What the result is raised to afterwards: the zero point, where a quantised product is followed by ReLU."""

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
    return _session(request, graph) if graph is not None else None


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
        [f"i{i}" for i, operand in enumerate(request.inputs) if operand is not None],
        group=attributes.group,
        **_window(attributes, _spatial_rank(request)),
        **more,
    )
    graph.activate(attributes, product)
    return graph


def _pool(request: KernelRequest) -> _Graph | None:
    attributes, graph, rank = request.attributes, _Graph(), _spatial_rank(request)
    window: dict[str, Any] = {"kernel_shape": list(attributes.kernel[:rank]), **_window(attributes, rank)}
    if len(request.outputs) > 1 or attributes.ceil_mode:  # its averages count beyond the end otherwise
        return None
    if attributes.function == PoolFunction.MAX:
        if not _is_float32(request) and request.outputs[0].dtype not in QUANTISED:
            return None
        graph.add("MaxPool", ["i0"], **window)
    elif _is_float32(request):
        graph.add("AveragePool", ["i0"], count_include_pad=attributes.count_include_pad, **window)
    else:
        return None
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
    graph = _Graph(floor=_floor(request))
    if len(request.inputs) > 8 or not _eight_bit_is_exact(request):
        return None
    graph.add("QLinearMatMul", [f"i{i}" for i in (0, 2, 3, 1, 4, 5, 6, 7)])
    return graph


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
    modest = all(np.all((s >= _MODEST_SCALE[0]) & (s <= _MODEST_SCALE[1])) for s in scales if s is not None)
    same_weights_zero = zeros[1] is not None and bool(np.all(zeros[1] == zeros[1].reshape(-1)[0]))
    return modest and same_weights_zero


@functools.cache
def _has_byte_products() -> bool:
    """Whether the CPU multiplies and adds bytes into 32 bits (VNNI, or AArch64's dot products)."""
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
            words = set(file.read().split())
    except OSError:
        return False
    return not words.isdisjoint({"avx512_vnni", "avx_vnni", "asimddp"})


_UNARY = {
    UnaryFunction.EXP: "Exp",
    UnaryFunction.TANH: "Tanh",
    UnaryFunction.SIGMOID: "Sigmoid",
    UnaryFunction.ERF: "Erf",
}


def _unary(request: KernelRequest) -> _Graph | None:
    op = _UNARY.get(request.attributes.function)
    if op is None or not _is_float32(request) or request.outputs[0].elements < _SMALL:
        return None
    graph = _Graph()
    graph.add(op, ["i0"])
    return graph


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


_REDUCE = {ReduceFunction.MEAN: "ReduceMean", ReduceFunction.MAX: "ReduceMax", ReduceFunction.SUM: "ReduceSum"}


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


_BUILD: dict[CommandKind, Callable[[KernelRequest], _Graph | None]] = {
    CommandKind.MATMUL: _matmul,
    CommandKind.CONV: _conv,
    CommandKind.CONV_TRANSPOSE: _conv_transpose,
    CommandKind.POOL: _pool,
    CommandKind.QMATMUL: _qmatmul,
    CommandKind.QCONV: _qconv,
    CommandKind.UNARY: _unary,
    CommandKind.SOFTMAX: _softmax,
    CommandKind.TRANSPOSE: _transpose,
    CommandKind.REDUCE: _reduce,
    CommandKind.RESIZE: _resize,
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
        """Fill the output."""
        arrays = [np.ascontiguousarray(inputs[position]) for _, position in self._inputs]
        y = outputs[0]
        places = [array.ctypes.data for array in (*arrays, y)]
        if places != self._bound:
            for (name, _), array, place in zip(self._inputs, arrays, places, strict=False):
                self._binding.bind_input(name, "cpu", 0, array.dtype, array.shape, place)
            self._binding.bind_output("y", "cpu", 0, y.dtype, y.shape, places[-1])
            self._bound = places
        self._session.run_with_iobinding(self._binding)
        if self._floor is not None:
            np.maximum(y, y.dtype.type(self._floor), out=y)


def _model(request: KernelRequest, graph: _Graph, constants: Any) -> bytes:
    graph.nodes[-1].output[0] = "y"
    inputs, initialisers = [], list(graph.small)
    for index, operand in enumerate(request.inputs):
        name = f"i{index}"
        if operand is None:
            continue
        if name in constants:
            initialisers.append(_elsewhere(name, operand))
        else:
            inputs.append(helper.make_tensor_value_info(name, operand.dtype, operand.shape))
    y = request.outputs[0]
    proto = helper.make_graph(
        graph.nodes, "command", inputs, [helper.make_tensor_value_info("y", y.dtype, y.shape)], initialisers
    )
    opsets = [helper.make_opsetid("", _OPSET), helper.make_opsetid(_CONTRIB, 1)]
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
