"""Which devices `-d` names, and what `npuctl list` and `npuctl info` say of cards that nobody opens."""

from __future__ import annotations

import io
import socket
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table

from driver_shim.cards.discovery import PciCard, find_cards
from driver_shim.shared.runtime_folder import Holder
from sdk import environment
from sdk.cli import device_facts, device_selection, list_devices
from sdk.cli import info as info_verb
from sdk.cli.frame import Frame
from sdk.errors import DeviceNotFound
from sdk.opening import listing as info
from sdk.opening.listing import DeviceInfo
from tests.support import sysfs
from tests.support.npuctl import validator

CARDS = [
    PciCard("0000:03:00.0", "vfio-pci", "17", 0, 2.5, 1, 5.0, 16, "NPU-0001", "D0"),
    PciCard("0000:05:00.0", None, None, None, 5.0, 16, 5.0, 16, None, "D3hot"),
]

SERVED = DeviceInfo("NPU generic (emulator)", "vfio-user:/run/npu0.sock", serial="E3", pid=41)


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """Two cards, no served emulator, no variable of ours."""
    for name in ("NPU_DEVICE", "NPU_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NPU_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setattr(info, "find_cards", lambda: CARDS)
    return monkeypatch


def addresses(devices: list[DeviceInfo]) -> list[str]:
    return [device.address for device in devices]


def lines(table: Table) -> list[str]:
    stream = io.StringIO()
    Console(file=stream, width=80).print(table)
    return [line.rstrip() for line in stream.getvalue().splitlines()]


# --- the SDK's list -------------------------------------------------------------------------------------------------


def test_a_cards_facts_reach_its_device_info(tmp_path: Path, machine: pytest.MonkeyPatch) -> None:
    folder = sysfs.add_card(tmp_path / "devices", serial="NPU-2026-00000042")
    sysfs.link(folder, "iommu_group", "17")
    machine.setattr(info, "find_cards", lambda: find_cards(tmp_path / "devices"))
    (device,) = info.list_devices()
    assert device == DeviceInfo(
        "NPU", "pci:0000:03:00.0", serial="00000042", emulated=False, iommu_group="17", driver=None
    )


@pytest.mark.parametrize(
    ("variable", "shown"),
    [("", []), ("1", ["pci:0000:05:00.0"]), ("05:00.0,NPU-0001", ["pci:0000:05:00.0", "pci:0000:03:00.0"])],
)
def test_only_visible_cards_are_listed(machine: pytest.MonkeyPatch, variable: str, shown: list[str]) -> None:
    machine.setenv("NPU_VISIBLE_DEVICES", variable)
    assert addresses(info.list_devices()) == shown


@pytest.mark.parametrize(("variable", "entries"), [(" 0 , 1,", ("0", "1")), ("", ()), (" ", ()), (None, None)])
def test_the_variable_is_a_comma_separated_list(
    machine: pytest.MonkeyPatch, variable: str | None, entries: tuple[str, ...] | None
) -> None:
    if variable is not None:
        machine.setenv("NPU_VISIBLE_DEVICES", variable)
    assert environment.visible_devices() == entries


def test_a_visible_card_that_is_not_there_is_an_error(machine: pytest.MonkeyPatch) -> None:
    machine.setenv("NPU_VISIBLE_DEVICES", "7")
    with pytest.raises(DeviceNotFound, match=r"'7'.*0 = 0000:03:00\.0"):
        info.list_devices()


def test_an_open_card_has_the_facts_of_its_bus(machine: pytest.MonkeyPatch) -> None:
    assert info.bus_facts("pci:0000:03:00.0") == {
        "iommu_group": "17",
        "numa_node": 0,
        "link_speed_gt_per_s": 2.5,
        "link_width_lanes": 1,
        "link_max_speed_gt_per_s": 5.0,
        "link_max_width_lanes": 16,
        "power_state": "D0",
    }
    assert info.bus_facts("emulator:generic") == info.bus_facts("pci:0000:07:00.0") == {}


# --- -d -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "address"),
    [
        ("pci:0000:03:00.0", "pci:0000:03:00.0"),
        ("pci:05:00.0", "pci:0000:05:00.0"),
        ("sysfs:0000:03:00.0", "sysfs:0000:03:00.0"),
        ("sysfs:05:00.0", "sysfs:0000:05:00.0"),
        ("NPU-0001", "pci:0000:03:00.0"),
        ("05:00.0", "pci:0000:05:00.0"),
    ],
)
def test_a_device_is_named_by_address_or_serial(name: str, address: str) -> None:
    assert addresses(device_selection.queried([name])) == [address]


def test_a_card_reached_through_sysfs_keeps_its_facts() -> None:
    (device,) = device_selection.queried(["sysfs:0000:03:00.0"])
    assert (device.serial, device.driver, device.link_width_lanes) == ("NPU-0001", "vfio-pci", 1)


@pytest.mark.parametrize("variable", ["", "1", "no such card"])
def test_an_address_names_a_hidden_card_all_the_same(machine: pytest.MonkeyPatch, variable: str) -> None:
    machine.setenv("NPU_VISIBLE_DEVICES", variable)
    for name in ("pci:0000:03:00.0", "sysfs:0000:03:00.0"):
        assert addresses(device_selection.queried([name])) == [name]
        machine.setenv("NPU_DEVICE", name)
        assert addresses(device_selection.queried([])) == [name]


@pytest.mark.parametrize("name", ["pci:0000:04:00.0", "sysfs:04:00.0", "pci:", "NPU-0007"])
def test_what_is_not_there_is_answered_with_what_is(name: str) -> None:
    with pytest.raises(DeviceNotFound, match=f"'{name}'.*pci:0000:03:00.0, pci:0000:05:00.0"):
        device_selection.queried([name])


def test_a_socket_may_be_served_out_of_our_sight_but_must_be_there(tmp_path: Path) -> None:
    path = tmp_path / "elsewhere.sock"
    address = f"vfio-user:{path}"
    frame = Frame("list", as_json=True, timeout=None)
    assert addresses(device_selection.queried([address, "NPU-0001"], frame)) == ["pci:0000:03:00.0"]
    path.touch()
    assert device_selection.queried([address], frame) == []
    absent, wrong = frame.errors
    assert "No such file" in absent["message"] and "no socket" in wrong["message"]
    assert (absent["device"], absent["remedy"]) == (address, f"serve it: npuctl emulate --socket {path}")
    assert frame.exit_code() == 3
    path.unlink()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        assert addresses(device_selection.queried([address], frame)) == [address]


def test_a_wrong_entry_of_the_variable_hides_nothing_else(machine: pytest.MonkeyPatch) -> None:
    machine.setattr(info, "served_devices", lambda: [SERVED])
    machine.setenv("NPU_VISIBLE_DEVICES", "garbage")
    frame = Frame("list", as_json=True, timeout=None)
    assert addresses(device_selection.queried([], frame)) == [SERVED.address]
    assert [error["device"] for error in frame.errors] == ["garbage"]
    assert frame.exit_code() == 3
    machine.setenv("NPU_VISIBLE_DEVICES", "1,garbage")
    assert addresses(device_selection.queried(["all"], frame)) == ["pci:0000:05:00.0", SERVED.address]
    frame.add({"address": SERVED.address})
    assert frame.exit_code() == 7
    with pytest.raises(DeviceNotFound, match="garbage"):
        device_selection.changed(["all"])


# --- text and documents ---------------------------------------------------------------------------------------------


def test_a_pid_of_another_namespace_is_not_shown_as_one_of_ours(
    machine: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.setattr(info, "holder_of", lambda address: Holder(41, "train", 0.0, elsewhere=True))
    for command in (list_devices.command, info_verb.command):
        body = getattr(command.callback, "__wrapped__", None)
        assert body is not None
        body(Frame(str(command.name), as_json=False, timeout=None), ("NPU-0001",), *([True] * (command.name == "info")))
        assert "PID 41 in another PID namespace" in " ".join(capsys.readouterr().out.split())


def test_cards_fit_80_columns_one_line_each() -> None:
    assert lines(list_devices._card_table(info.list_devices())) == [
        "address          name serial   driver   iommu numa link",
        "pci:0000:03:00.0 NPU  NPU-0001 vfio-pci    17    0 2.5 GT/s x1 of 5 GT/s x16",
        "pci:0000:05:00.0 NPU  -        -            -    - 5 GT/s x16",
    ]


def test_a_long_serial_wraps_the_link_and_nothing_else(machine: pytest.MonkeyPatch) -> None:
    machine.setattr(info, "find_cards", lambda: [CARDS[0]._replace(serial="00-11-22-33-44-55-66-77")])
    _, *rows = lines(list_devices._card_table(info.list_devices()))
    assert rows[0].startswith("pci:0000:03:00.0 NPU  00-11-22-33-44-55-66-77 vfio-pci    17    0 2.5 GT/s")
    assert " ".join(row.strip() for row in rows).endswith("2.5 GT/s x1 of 5 GT/s x16")


def test_columns_of_which_nothing_is_known_are_left_out(machine: pytest.MonkeyPatch) -> None:
    machine.setattr(info, "find_cards", lambda: [PciCard("0000:05:00.0", None)])
    assert lines(list_devices._card_table(info.list_devices())) == [
        "address          name driver",
        "pci:0000:05:00.0 NPU  -",
    ]
    assert lines(list_devices._emulator_table([SERVED])) == [
        "address                   name                    serial",
        "vfio-user:/run/npu0.sock  NPU generic (emulator)  E3",
    ]


@pytest.mark.parametrize(("serial", "opened"), [("NPU-0001", False), ("E3", True)])
def test_info_shows_what_applies_and_is_known_in_words(
    machine: pytest.MonkeyPatch, serial: str, opened: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.setattr(info, "served_devices", lambda: [SERVED])
    (device,) = device_selection.queried([serial])
    found = {"time": "2026-01-02T03:04:05.678Z", "reset_causes": [], "fault_count": 0, "black_box": None}
    entry = {**device_facts.facts(device), "sensors": {"age_seconds": None}, "opened": opened, "pre_open": found}
    info_verb._show(Frame("info", as_json=False, timeout=None), entry)
    text = capsys.readouterr().out
    words = text.split()
    assert {"-", "None", "True", "False"}.isdisjoint(words)
    assert words[words.index("opened") + 1] == ("yes" if opened else "no")
    assert ("link_speed_gt_per_s" in words, "pid" in words) == (not opened, opened)
    assert {"firmware", "holder", "sensors"}.isdisjoint(words)
    assert ("fault count: 0" in text, "reset causes: none" in text, "black box" in text) == (True, True, False)


def test_info_never_cuts_an_address_short(capsys: pytest.CaptureFixture[str]) -> None:
    address = "vfio-user:/run/" + "long/" * 18 + "npu.sock"
    info_verb._show(Frame("info", as_json=False, timeout=None), {"name": "NPU", "address": address})
    first, *rest = capsys.readouterr().out.splitlines()
    assert first.split() == ["name", "NPU"]
    assert "".join(line.strip() for line in rest).removeprefix("address").strip() == address
    assert max(map(len, rest)) <= 80


def test_emulators_fit_80_columns() -> None:
    served = DeviceInfo(
        "NPU hanguang800 (emulator)", "vfio-user:/tmp/npu0.sock", serial="EMU0123456789", driver="vfio-user"
    )
    table = lines(list_devices._emulator_table([served]))
    assert max(map(len, table)) <= 80
    assert table[1].startswith("vfio-user:/tmp/npu0.sock ")


@pytest.mark.parametrize(
    ("link", "text"),
    [
        ((5.0, 16, 5.0, 16), "5 GT/s x16"),
        ((5.0, 8, 5.0, 16), "5 GT/s x8 of 5 GT/s x16"),
        ((2.5, 16, None, None), "2.5 GT/s x16"),
        ((None, None, 5.0, 16), "? of 5 GT/s x16"),
        ((None, 16, None, None), None),
    ],
)
def test_links_in_words(link: tuple[Any, Any, Any, Any], text: str | None) -> None:
    keys = ("link_speed_gt_per_s", "link_width_lanes", "link_max_speed_gt_per_s", "link_max_width_lanes")
    assert device_facts.link_text(DeviceInfo("NPU", "pci:0000:03:00.0", **dict(zip(keys, link, strict=True)))) == text


def test_the_documents_carry_the_facts_and_null_for_what_is_unknown() -> None:
    first, second = map(device_facts.facts, info.list_devices())
    assert {name: first[name] for name in ("iommu_group", "numa_node", "link_speed_gt_per_s", "power_state")} == {
        "iommu_group": "17",
        "numa_node": 0,
        "link_speed_gt_per_s": 2.5,
        "power_state": "D0",
    }
    assert second["iommu_group"] is None
    for verb, more in (("list", {}), ("info", {"opened": False, "opened_with_reset": False, "errors_logged": None})):
        validator(verb).validate(
            {
                "schema": f"npuctl.{verb}",
                "schema_version": 1,
                "tool_version": "0",
                "time": "2026-01-01T00:00:00.000Z",
                "devices": [{**first, **more}, {**second, **more}],
                "errors": [],
            }
        )
