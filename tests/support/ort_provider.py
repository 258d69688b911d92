"""onnxruntime with our devices among its own, in the process that imports this: for programs that tests start."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from sdk.inference_session import PROVIDER
from sdk.shared_devices import share
from tests.support.models import model, node
from tests.support.needs import ORT_PROVIDER

EMULATOR = "emulator:?kernels=numpy&core=none"
X: NDArray[Any] = np.array([[1, 2, 3], [-4, 5, 6]], np.float32)
Y: NDArray[Any] = np.array([[17, 17], [35, 36]], np.float32)
"""What `net` gives for `X`."""


def register() -> None:
    """Have onnxruntime load the library."""
    onnxruntime.register_execution_provider_library("npu", str(ORT_PROVIDER))


def options(strict: bool = False, **ours: str) -> onnxruntime.SessionOptions:
    """Options of a session on a device; `strict` refuses what runs elsewhere."""
    made = onnxruntime.SessionOptions()
    devices = [device for device in onnxruntime.get_ep_devices() if device.ep_name == PROVIDER]
    made.add_provider_for_devices(devices, ours or {"device": EMULATOR})
    if strict:
        made.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    return made


def session(net: onnx.ModelProto, strict: bool = True, **ours: str) -> onnxruntime.InferenceSession:
    """A session on a device."""
    return onnxruntime.InferenceSession(net.SerializeToString(), options(strict, **ours))


def net() -> onnx.ModelProto:
    """A layer with any number of rows."""
    return model(
        [node("MatMul", ["x", "w"], ["m"]), node("Add", ["m", "b"], ["a"]), node("Relu", ["a"], ["y"])],
        {"x": (np.float32, ("rows", 3))},
        {"y": np.float32},
        {"w": np.arange(6, dtype=np.float32).reshape(3, 2), "b": np.array([1, -5], np.float32)},
    )


def unsupported_net() -> onnx.ModelProto:
    """A model with an operator that the device has not."""
    return model(
        [node("Relu", ["x"], ["r"]), node("StringNormalizer", ["s"], ["n"])],
        {"x": (np.float32, (2,)), "s": (np.dtype(object), (1,))},
        {"r": np.float32, "n": np.dtype(object)},
    )


def emulator() -> int:
    """The process of the device that sessions have open."""
    mine = share(EMULATOR)
    pid = mine.device.info.pid
    mine.close()
    assert pid is not None
    return pid


def agree(
    net: onnx.ModelProto, feed: dict[str, NDArray[Any]], *, tolerance: float = 1e-4, strict: bool = True
) -> onnxruntime.InferenceSession:
    """Fail unless the device gives the CPU provider's outputs, of the same types and shapes; the device's session."""
    ours = session(net, strict)
    theirs = onnxruntime.InferenceSession(net.SerializeToString(), providers=["CPUExecutionProvider"])
    pairs = list(zip(ours.run(None, feed), theirs.run(None, feed), strict=True))
    assert pairs
    for got, expected in pairs:
        assert (got.dtype, got.shape) == (expected.dtype, expected.shape)
        scale = np.abs(expected.astype(np.float64)).max(initial=1e-9)
        np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * scale)
    return ours
