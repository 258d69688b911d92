"""What the public classes show is what applications use; what the library's parts need of each other is underscored."""

from __future__ import annotations

import pytest

import sdk
from sdk.model.model import Model
from sdk.state.state import State

PUBLIC: dict[type, set[str]] = {
    sdk.Device: {
        *("info", "address", "timeout", "closed", "registers", "sensors", "errors", "activity", "black_box"),
        *("host_buffer", "buffer", "queue", "load", "programs", "reset", "close"),
    },
    sdk.Queue: {"nop", "barrier", "copy", "fill", "submit", "batch", "drain", "close", "closed"},
    sdk.Batch: {"nop", "barrier", "copy", "fill"},
    sdk.Event: {"done", "wait", "result", "start_tick", "end_tick"},
    sdk.HostBuffer: {"address", "ndim", "size", "closed", "array", "free"},
    sdk.DeviceBuffer: {"address", "ndim", "size", "closed", "free"},
    sdk.InferenceSession: {
        *("run", "run_async", "close", "get_inputs", "get_outputs", "get_overridable_initializers", "get_modelmeta"),
        *("get_providers", "get_provider_options", "get_session_options", "disable_fallback"),
    },
    sdk.SessionOptions: {"add_free_dimension_override_by_name", "free_dimensions"},
    Model: {
        *("inputs", "optional_inputs", "outputs", "submit", "run_async", "close"),
        *("report", "plan", "estimate", "command_runs"),
        *("states", "state", "state_memory_free_bytes"),
    },
    State: {"length", "max_tokens", "memory_bytes", "rewind", "fork", "save", "free", "closed", "masked_tokens"},
    sdk.Program: {"inputs", "outputs", "plan", "estimate"},
}


@pytest.mark.parametrize("kind", PUBLIC, ids=lambda kind: kind.__name__)
def test_a_class_shows_what_applications_use(kind: type) -> None:
    assert {name for name in dir(kind) if not name.startswith("_")} == PUBLIC[kind]


def test_objects_show_little_more_than_their_classes() -> None:
    with sdk.Device("emulator") as device, device.queue() as queue:
        buffer = device.host_buffer(4, "int8")
        shown = {
            kind.__name__: {name for name in dir(thing) if not name.startswith("_")} - PUBLIC[kind]
            for kind, thing in ((sdk.Device, device), (sdk.Queue, queue), (sdk.HostBuffer, buffer))
        }
    assert shown == {"Device": set(), "Queue": {"depth", "when_full"}, "HostBuffer": {"shape", "dtype", "nbytes"}}
