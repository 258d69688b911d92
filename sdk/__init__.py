"""The SDK: open a device, move arrays, run models. Start with `Device` (device.py), then `memory/`, `queue/`, `model/`.

What is on the bus is in `driver_shim`; the device in software is a process of its own (`emulator`).
"""

from driver_shim import errors
from driver_shim.errors import *  # noqa: F403 - exactly the names of its __all__
from driver_shim.protocol.commands import DESCRIPTOR
from driver_shim.shared.runtime_folder import Holder
from sdk.compiler import compile_program as compile  # noqa: A004 - the name users look for
from sdk.compiler.program import Program
from sdk.device import Device
from sdk.errors import EmulatorFallbackWarning
from sdk.gguf import read_gguf
from sdk.inference_session import ExecutionMode, GraphOptimizationLevel, InferenceSession, SessionOptions
from sdk.memory.buffers import DeviceBuffer, HostBuffer
from sdk.opening.listing import DeviceInfo, list_devices
from sdk.quantisation import quantization_losses, quantize
from sdk.queue.batch import Batch
from sdk.queue.events import Event
from sdk.queue.queue import Queue

__all__ = [
    "DESCRIPTOR",
    "Batch",
    "Device",
    "DeviceBuffer",
    "DeviceInfo",
    "EmulatorFallbackWarning",
    "Event",
    "ExecutionMode",
    "GraphOptimizationLevel",
    "Holder",
    "HostBuffer",
    "InferenceSession",
    "Program",
    "Queue",
    "SessionOptions",
    "compile",
    "list_devices",
    "quantization_losses",
    "quantize",
    "read_gguf",
]
__all__ += errors.__all__


def __getattr__(name: str) -> object:
    """Say of names that onnxruntime has what to do instead; programs are ported by importing this in its place."""
    from sdk.inference_session import INSTEAD

    advice = INSTEAD.get(name)
    raise AttributeError(f"module 'sdk' has no attribute {name!r}" + (f": {advice}" if advice else ""))
