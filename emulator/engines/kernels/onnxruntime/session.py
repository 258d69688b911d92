"""Sessions of onnxruntime over the model of one command."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from driver_shim.protocol.program import TensorType
from driver_shim.protocol.types import wire_type_of
from emulator.engines.kernels.onnxruntime.graph import CONTRIB, CommandGraph
from emulator.engines.kernels.provider import Kernel, KernelRequest
from emulator.model.operators.arrays import Array

_IR_VERSION = 10


def session_kernel(request: KernelRequest, graph: CommandGraph) -> Kernel | None:
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
    read = {name for node in graph.nodes for name in node.input}
    constants = {f"i{i}": array for i, array in enumerate(request.constants) if array is not None and f"i{i}" in read}
    beside = constants | graph.large
    shared = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in beside.values()]
    options.add_external_initializers(list(beside), shared)
    model = _model(request, graph, constants.keys())
    errors = onnxruntime.capi.onnxruntime_pybind11_state
    try:
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except (errors.NotImplemented, errors.Fail, errors.InvalidArgument):  # for these element types or attributes
        return None
    return _Session(request, session, shared, graph.floor).run


class _Session:
    """A session bound to the arrays of its last run: programs run on the same ones again and again."""

    def __init__(self, request: KernelRequest, session: Any, constants: list[Any], floor: int | None) -> None:
        self.session_kernel = session
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
        places = [array.__array_interface__["data"][0] for array in (*arrays, *outputs)]
        if places != self._bound:
            for (name, _), array, place in zip(self._inputs, arrays, places, strict=False):
                self._binding.bind_input(name, "cpu", 0, array.dtype, array.shape, place)
            for i, y in enumerate(outputs):
                self._binding.bind_output(f"y{i}", "cpu", 0, y.dtype, y.shape, y.ctypes.data)
            self._bound = places
        self.session_kernel.run_with_iobinding(self._binding)
        if self._floor is not None:
            np.maximum(outputs[0], outputs[0].dtype.type(self._floor), out=outputs[0])


def _model(request: KernelRequest, graph: CommandGraph, constants: Any) -> bytes:
    results = [f"y{i}" for i in range(len(request.outputs))]
    graph.nodes[-1].output[:] = results
    large = [
        _elsewhere(name, TensorType(wire_type_of(array.dtype), array.shape)) for name, array in graph.large.items()
    ]
    inputs, initialisers = [], [*graph.small, *large]
    for index, operand in enumerate(request.inputs):
        name = f"i{index}"
        if operand is None:
            continue
        if name in constants:
            initialisers.append(_elsewhere(name, operand))
        elif request.constants[index] is None:
            inputs.append(helper.make_tensor_value_info(name, operand.dtype, operand.shape))
    outputs = [
        helper.make_tensor_value_info(y, t.dtype, t.shape) for y, t in zip(results, request.outputs, strict=True)
    ]
    proto = helper.make_graph(graph.nodes, "command", inputs, outputs, initialisers)
    others = sorted({CONTRIB, *(node.domain for node in graph.nodes)} - {""})
    opsets = [helper.make_opsetid("", graph.opset), *(helper.make_opsetid(domain, 1) for domain in others)]
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
