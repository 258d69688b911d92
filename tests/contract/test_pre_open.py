"""What a device showed before its driver touched it: read first, kept for others, shown by `npuctl info`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from driver_shim.function.pre_open import PreOpenRecord, read_pre_open, save_pre_open, saved_pre_open
from driver_shim.protocol.config_space import DEVICE_CONTROL_INITIATE_FLR
from driver_shim.protocol.registers import BAR0
from sdk import Device
from tests.contract.test_reset_matrix import DEVICE_CONTROL
from tests.support.bus_client import BOTH, BusClient
from tests.support.npuctl import Npuctl
from tests.support.rigs import Rig

ADDRESS = "pci:0000:03:00.0"


def test_the_record_is_what_the_device_showed_before_it_was_enabled(rig: Rig) -> None:
    bus = BusClient(rig.transport)
    bus.transport.read(BAR0, 0x1002, 2)
    rig.transport.reset()
    bus.command(BOTH)
    faults = bus.registers.fault_count.read()
    bus.close()
    with rig.device() as device:
        record = device.info.pre_open
        assert record is not None
        assert record.reset_causes[0] == "device-reset"
        assert "register" in record.faults
        assert record.fault_count == faults
        assert record.black_box is None
        device.reset()
        assert device.info.pre_open is record  # as it was at open, whatever happens later


def test_the_history_holds_the_last_eight_causes(bus: BusClient) -> None:
    for _ in range(9):
        bus.transport.reset()
    bus.command(BOTH)
    assert read_pre_open(bus.registers).reset_causes == ("device-reset",) * 8
    bus.transport.config_write(DEVICE_CONTROL, DEVICE_CONTROL_INITIATE_FLR.to_bytes(2, "little"))
    bus.command(BOTH)
    assert read_pre_open(bus.registers).reset_causes == ("flr", *["device-reset"] * 7)


def record() -> PreOpenRecord:
    registers = {
        "reset_cause": {"cause": 4, "count": 2},
        "reset_history": {"causes": 0x0204},
        "black_box": {"bytes": 100, "cause": 4},
        "boot_progress": {"post_code": 0},
        "fault_status": {"register": 0, "dma": 1, "client": 1},
        "fault_count": {"count": 7},
        "fault_address": {"address": 0x1000},
    }
    return PreOpenRecord(registers, 1_700_000_000.0)


def test_a_saved_record_reads_back(tmp_path: Path) -> None:
    assert saved_pre_open(ADDRESS, tmp_path) is None
    save_pre_open(ADDRESS, record(), tmp_path)
    found = saved_pre_open(ADDRESS, tmp_path)
    assert found == record()
    assert found is not None and found.reset_causes == ("client-lost", "flr")
    assert (found.faults, found.fault_count, found.black_box) == (("dma", "client"), 7, "client-lost")
    assert saved_pre_open("pci:0000:04:00.0", tmp_path) is None


@pytest.mark.parametrize("change", [{"version": 2}, {"address": "pci:0000:09:00.0"}, {"registers": {}}, {"time": "x"}])
def test_what_is_no_record_of_this_device_is_passed_over(tmp_path: Path, change: dict[str, object]) -> None:
    save_pre_open(ADDRESS, record(), tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    assert saved_pre_open(ADDRESS, tmp_path) is None
    path.write_text("{")
    assert saved_pre_open(ADDRESS, tmp_path) is None


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    save_pre_open(ADDRESS, record(), tmp_path / "file" / "folder")


def test_opening_a_served_device_keeps_its_record_and_info_shows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = Npuctl(tmp_path)
    with tool.served(tmp_path / "npu.sock"):
        monkeypatch.setenv("NPU_RUNTIME_DIR", str(tool.runtime_folder))
        address = f"vfio-user:{tmp_path / 'npu.sock'}"
        with Device(address) as device:
            assert saved_pre_open(address) == device.info.pre_open
            held = tool.document("info", "-d", address)["devices"][0]
        assert (held["opened"], held["pre_open"]["reset_causes"]) == (False, [])
        (entry,) = tool.document("info", "-d", address)["devices"]
        assert entry["pre_open"]["reset_causes"] == ["client-lost", "controller-disable"]
        assert entry["pre_open"]["black_box"] is None
