"""`Device()` without an address: the first free visible card, and an emulator only where there is no card."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

import sdk
from driver_shim.cards.discovery import find_cards
from sdk.opening import addresses as opening
from tests.support import sysfs

FIRST, SECOND, THIRD = "0000:03:00.0", "0000:05:00.0", "0001:03:00.0"


class Machine:
    """Cards in a made-up sysfs, and what opening each of them does."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.opened: list[str] = []
        self.errors: dict[str, type[sdk.NpuError]] = {}

    def add(self, bus_address: str, driver: str | None = "vfio-pci", error: type[sdk.NpuError] | None = None) -> None:
        folder = sysfs.add_function(self.root, bus_address)
        if driver:
            sysfs.link(folder, "driver", driver)
        if error:
            self.errors[bus_address] = error

    def open(self, bus_address: str) -> str:
        self.opened.append(bus_address)
        if bus_address in self.errors:
            raise self.errors[bus_address](f"no {bus_address}", device=f"pci:{bus_address}")
        return bus_address


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    for name in ("NPU_DEVICE", "NPU_VISIBLE_DEVICES", "NPU_STRICT"):
        monkeypatch.delenv(name, raising=False)
    made = Machine(tmp_path / "devices")
    monkeypatch.setattr(opening, "find_cards", lambda: find_cards(made.root))
    monkeypatch.setattr(opening, "VfioTransport", made.open)
    monkeypatch.setenv("NPU_RUNTIME_DIR", str(tmp_path / "runtime"))
    monkeypatch.setattr(opening, "_open_private", lambda address, timeout_s: opening.Opened("emulator", None))  # type: ignore[arg-type]
    monkeypatch.setattr(opening, "_warned", False)
    return made


@pytest.fixture
def choose(machine: Machine) -> Callable[[], str]:
    """What `Device()` would use."""

    def choose() -> str:
        return str(opening.open_address(None, None, 1.0).transport)

    return choose


def test_the_first_card_by_bus_address_is_taken(machine: Machine, choose: Callable[[], str]) -> None:
    machine.add(SECOND)
    machine.add(FIRST)
    assert choose() == FIRST
    assert machine.opened == [FIRST]


def test_the_order_of_the_variable_is_the_order_used(
    machine: Machine, choose: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for address in (FIRST, SECOND, THIRD):
        machine.add(address, error=sdk.DeviceBusy if address == THIRD else None)
    monkeypatch.setenv("NPU_VISIBLE_DEVICES", "2,1")
    assert choose() == SECOND
    assert machine.opened == [THIRD, SECOND]


@pytest.mark.parametrize("error", [sdk.DeviceBusy, sdk.PermissionDenied])
def test_a_card_that_cannot_be_had_is_passed_over(
    machine: Machine, choose: Callable[[], str], error: type[sdk.NpuError]
) -> None:
    machine.add(FIRST, error=error)
    machine.add(SECOND)
    assert choose() == SECOND


def test_a_card_of_another_driver_is_not_touched(machine: Machine, choose: Callable[[], str]) -> None:
    machine.add(FIRST, driver="other")
    machine.add(SECOND)
    assert choose() == SECOND
    assert machine.opened == [SECOND]


def test_a_card_that_fails_otherwise_is_not_hidden_by_the_next(machine: Machine, choose: Callable[[], str]) -> None:
    machine.add(FIRST, error=sdk.DeviceLost)
    machine.add(SECOND)
    with pytest.raises(sdk.DeviceLost, match=FIRST):
        choose()


def test_cards_that_are_all_in_use_are_named(machine: Machine, choose: Callable[[], str]) -> None:
    machine.add(FIRST, error=sdk.DeviceBusy)
    machine.add(SECOND, error=sdk.DeviceBusy)
    machine.add(THIRD, driver=None)
    with pytest.raises(sdk.DeviceBusy, match=f"pci:{FIRST}, pci:{SECOND} are all in use"):
        choose()


def test_the_only_card_in_use_tells_itself(machine: Machine, choose: Callable[[], str]) -> None:
    machine.add(FIRST, error=sdk.DeviceBusy)
    with pytest.raises(sdk.DeviceBusy, match=f"^no {FIRST}; its holder is not visible to you"):
        choose()


@pytest.mark.parametrize(("driver", "shown"), [("other", "other"), (None, "no driver")])
def test_the_wrong_driver_is_named_with_the_remedy(
    machine: Machine, choose: Callable[[], str], driver: str | None, shown: str
) -> None:
    machine.add(FIRST, driver=driver)
    with pytest.raises(sdk.DeviceNotFound, match=f"bound to {shown}, not to vfio-pci") as caught:
        choose()
    assert (caught.value.device, caught.value.remedy) == (f"pci:{FIRST}", f"npuctl bind -d pci:{FIRST}")


def test_a_missing_permission_says_more_than_a_wrong_driver(machine: Machine, choose: Callable[[], str]) -> None:
    machine.add(FIRST, driver="other")
    machine.add(SECOND, error=sdk.PermissionDenied)
    with pytest.raises(sdk.PermissionDenied, match=SECOND):
        choose()


@pytest.mark.parametrize("strict", ["0", "1"])
def test_hidden_cards_are_not_replaced_by_an_emulator(
    machine: Machine, choose: Callable[[], str], monkeypatch: pytest.MonkeyPatch, strict: str
) -> None:
    machine.add(FIRST)
    monkeypatch.setenv("NPU_VISIBLE_DEVICES", "")
    monkeypatch.setenv("NPU_STRICT", strict)
    with pytest.raises(sdk.DeviceNotFound, match=f"NPU_VISIBLE_DEVICES hides every card .*{FIRST}"):
        choose()


def test_an_entry_that_names_no_card_is_an_error_without_cards_too(
    machine: Machine, choose: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NPU_VISIBLE_DEVICES", "0")
    with pytest.raises(sdk.DeviceNotFound, match="'0'"):
        choose()


@pytest.mark.parametrize("variable", [None, ""])
def test_without_a_card_an_emulator_is_used_with_a_warning(
    machine: Machine, choose: Callable[[], str], monkeypatch: pytest.MonkeyPatch, variable: str | None
) -> None:
    if variable is not None:
        monkeypatch.setenv("NPU_VISIBLE_DEVICES", variable)
    gc.collect()  # what earlier tests left unclosed warns now, not while this one listens
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert choose() == "emulator"
    assert [warning.category for warning in caught] == [sdk.EmulatorFallbackWarning]


@pytest.mark.parametrize("named", ["argument", "variable"])
def test_a_named_card_is_opened_hidden_or_not(
    machine: Machine, choose: Callable[[], str], monkeypatch: pytest.MonkeyPatch, named: str
) -> None:
    machine.add(FIRST)
    machine.add(SECOND)
    monkeypatch.setenv("NPU_VISIBLE_DEVICES", "0")
    if named == "variable":
        monkeypatch.setenv("NPU_DEVICE", "pci:05:00.0")
        assert choose() == SECOND
    else:
        assert str(opening.open_address(f"pci:{SECOND}", None, 1.0).transport) == SECOND
