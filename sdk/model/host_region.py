"""Nodes that run in onnxruntime on the host, because the device has no command for them."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from driver_shim.errors import NpuError, UnsupportedModel
from sdk.compiler.graph import Graph, GraphInput
from sdk.compiler.host_model import model_of, outside
from sdk.compiler.placement import Region
from sdk.compiler.problems import Reason

Array = NDArray[Any]
_SignatureKey = tuple[tuple[str, int], ...]
_ERRORS_ONLY = 3


def require_engine() -> Any:
    """The onnxruntime package. Raises NpuError that names the extra to install."""
    try:
        import onnxruntime
    except ImportError as error:
        raise NpuError(
            "onnxruntime, in which fallback='cpu' runs what the device has no command for, is not installed",
            subsystem="model",
            remedy="pip install 'npu-sdk[models]'",
            code="missing-extra",
        ) from error
    return onnxruntime


class HostRegion:
    """One region of a graph, on the host. Thread-safe."""

    def __init__(self, graph: Graph, region: Region) -> None:
        self._graph = graph
        self._region = region
        self._lock = threading.Lock()
        self._sessions: dict[_SignatureKey, Any] = {}

    def run(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """What the region computes of these values. Raises UnsupportedModel when onnxruntime cannot either."""
        given = {name: np.asarray(arrays[name]) for name in self._region.inputs}
        key = tuple((array.dtype.str, array.ndim) for array in given.values())
        with self._lock:
            session = self._sessions.get(key)
            if session is None:
                session = self._sessions[key] = self._open(given)
        try:
            results: Sequence[Any] = session.run(list(self._region.outputs), given)
        except Exception as error:
            raise self._failed(error) from error
        return {name: _array(name, result) for name, result in zip(self._region.outputs, results, strict=True)}

    def _open(self, given: Mapping[str, Array]) -> Any:
        engine = require_engine()
        inputs = [
            GraphInput(name, None, tuple(f"{name}.{axis}" for axis in range(array.ndim)), array.dtype.name)
            for name, array in given.items()
        ]
        model = model_of(self._graph, self._region.nodes, inputs, self._region.outputs)
        options = engine.SessionOptions()
        options.log_severity_level = _ERRORS_ONLY
        names = outside(self._graph, model)
        if names:
            values = [engine.OrtValue.ortvalue_from_numpy(_aligned(self._graph.initializers[name])) for name in names]
            options.add_external_initializers(names, values)
        try:
            return engine.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise self._failed(error) from error

    def _failed(self, error: Exception) -> UnsupportedModel:
        first = self._region.nodes[0]
        return UnsupportedModel(
            f"neither the device nor onnxruntime runs {first.subject.found_by('node')} and what follows it:"
            f" {str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__}",
            node=first.subject.node,
            op=first.op,
            subsystem="model",
            cause=str(error),
        )


def _array(name: str, result: Any) -> Array:
    """A result, where it is an array. Types that ONNX cannot infer show only now."""
    if isinstance(result, np.ndarray):
        return result
    raise UnsupportedModel(
        f"{name!r} came from onnxruntime as a {type(result).__name__}, no array; only tensors are supported",
        subsystem="model",
        code=Reason.INTERFACE.value,
    )


def _aligned(array: Array) -> Array:
    """The array where its elements are aligned; a mapped file holds them anywhere."""
    return array if array.flags.aligned else array.copy()
