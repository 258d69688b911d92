"""What can be sent to another process comes back equal there: errors with their data, and what devices say."""

from __future__ import annotations

import copy
import importlib
import pickle
import pkgutil
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest

import driver_shim
import firmware_tools
import sdk
from driver_shim.errors import ModelProblem, NpuError
from driver_shim.firmware.core_state import BootProgress, SensorReadings
from driver_shim.function.pre_open import PreOpenRecord
from driver_shim.protocol.dfu import Status
from driver_shim.shared.runtime_folder import Holder
from sdk.compiler import TensorInfo
from sdk.compiler.compiled import CompiledProgram, Plan, Signature
from sdk.log_pages import Activity, ErrorLogEntry
from sdk.opening.listing import DeviceInfo
from tests.support.rigs import in_process_rig

HOLDER = Holder(41, "train.py", 12.5)
TENSOR = TensorInfo("x", ("batch", 3), "float32")
PLAN = Plan(1, 2, 3, 4, 5, 6, 7, 8, 9, ())
CARRIED: dict[str, dict[str, Any]] = {
    "DeviceBusy": {"holder": HOLDER},
    "CommandFailed": {"status": 3, "index": 7},
    "QueueFull": {"depth": 4},
    "OutOfDeviceMemory": {"requested": 3, "available": 2, "largest": 1},
    "UnsupportedModel": {"node": "n1", "op": "Det", "problems": (ModelProblem("no", "n1", "Det"),)},
    "FirmwareError": {"result": 9},
    "RecoveryRefused": {"status": Status.ERR_TARGET},
}
"""What an error carries beside what all errors do."""

Trip = Callable[[Any], Any]
TRIPS: list[Trip] = [
    *(lambda thing, p=protocol: pickle.loads(pickle.dumps(thing, p)) for protocol in range(2, 6)),
    copy.copy,
    copy.deepcopy,
]


def modules(package: ModuleType) -> Iterator[str]:
    for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        if not found.name.endswith("__main__"):
            yield found.name


def kinds(base: type[NpuError]) -> Iterator[type[NpuError]]:
    yield base
    for kind in base.__subclasses__():
        yield from kinds(kind)


def every_error() -> list[type[NpuError]]:
    for package in (driver_shim, firmware_tools):
        for name in modules(package):
            if name.rpartition(".")[2] in ("errors", "dfu", "files"):
                importlib.import_module(name)
    ours = (kind for kind in kinds(NpuError) if kind.__module__.partition(".")[0] in ("driver_shim", "firmware_tools"))
    return sorted(set(ours), key=lambda kind: kind.__qualname__)


@pytest.mark.parametrize("kind", every_error(), ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("trip", TRIPS)
def test_an_error_comes_back_with_all_that_it_carries(kind: type[NpuError], trip: Trip) -> None:
    common = {"device": "pci:0", "subsystem": "queue", "cause": "dust", "remedy": "wipe it", "code": "dusty"}
    error = kind("it broke", **common, **CARRIED.get(kind.__name__, {}))
    error.add_note("seen on a Monday")
    back = trip(error)
    assert type(back) is kind and back is not error
    assert (back.args, str(back)) == (("it broke",), "it broke (wipe it)")
    assert back.__dict__ == error.__dict__


FACTS: list[Any] = [
    DeviceInfo("NPU", "pci:0000:03:00.0"),
    DeviceInfo(
        "NPU generic (emulator)",
        "emulator:generic",
        boot=BootProgress(0x40, 1, 1, False),
        pre_open=PreOpenRecord({"reset_history": {"causes": 4}}, 1.5),
        holder=HOLDER,
        numa_node=0,
        link_speed_gt_per_s=5.0,
    ),
    TENSOR,
    Signature((TENSOR,), ()),
    PLAN,
    CompiledProgram(b"image", (), ("node",), (TENSOR,), (), PLAN),
    ErrorLogEntry(1, "dma", None, "unmapped", 4096, 1, 2, 3, 4, 5),
    Activity(*range(16)),
    SensorReadings(44.0, 30.0, 0.8, 0, 0.3),
    HOLDER,
    ModelProblem("no", "n1", "Det"),
]


@pytest.mark.parametrize("facts", FACTS, ids=lambda facts: type(facts).__name__)
@pytest.mark.parametrize("trip", TRIPS)
def test_facts_come_back_equal(facts: Any, trip: Trip) -> None:
    back = trip(facts)
    assert type(back) is type(facts)
    assert back == facts


@pytest.mark.parametrize(
    ("kind", "instead"),
    [
        (sdk.Device, "address"),
        (sdk.Queue, "address"),
        (sdk.Batch, "call"),
        (sdk.InferenceSession, "path or bytes"),
        (sdk.Program, "compile that there"),
        (sdk.HostBuffer, ".array.copy()"),
        (sdk.DeviceBuffer, ".array.copy()"),
        (sdk.Event, ".result()"),
        (importlib.import_module("sdk.memory.buffers").Span, ".array"),
        (importlib.import_module("sdk.model.device_model").DeviceModel, "ModelProto"),
        (importlib.import_module("sdk.model.mixed").MixedModel, "ModelProto"),
        (importlib.import_module("sdk.model.runs").RunEvent, ".result()"),
        (importlib.import_module("sdk.queue.events").StatusesEvent, ".result()"),
    ],
)
@pytest.mark.parametrize("trip", TRIPS)
def test_what_belongs_to_a_device_says_what_to_send_instead(kind: type[Any], instead: str, trip: Trip) -> None:
    with pytest.raises(TypeError) as caught:
        trip(object.__new__(kind))
    message = str(caught.value)
    assert message.startswith(f"{kind.__name__} cannot be pickled or copied")
    assert instead in message


def test_registers_say_so_too() -> None:
    with in_process_rig() as rig, rig.device() as device, pytest.raises(TypeError, match="send the address, or what"):
        pickle.dumps(device.registers)
