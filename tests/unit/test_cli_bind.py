"""`npuctl bind` and `unbind`: which cards, when they ask, what they report."""

from __future__ import annotations

from pathlib import Path

import click
import pytest

from driver_shim.binding import Binder
from driver_shim.errors import DeviceNotFound
from sdk.cli.bind import bind_cards
from sdk.cli.card_selection import cards_to_change, named_cards
from sdk.cli.frame import Frame
from sdk.cli.unbind import unbind_cards
from sdk.info import DeviceInfo
from tests.support.fake_host import CARD, SECOND, FakeHost
from tests.support.npuctl import validator

FIRST = DeviceInfo(name="NPU", address=f"pci:{CARD}", serial="A1")
OTHER = DeviceInfo(name="NPU", address=f"pci:{SECOND}", serial="B2")
SERVED = DeviceInfo(name="NPU generic (emulator)", address="vfio-user:/run/npu0.sock")


@pytest.fixture
def host(tmp_path: Path) -> FakeHost:
    return FakeHost(tmp_path)


@pytest.fixture
def binder(host: FakeHost) -> Binder:
    return Binder(host.roots, host.write)


@pytest.fixture(autouse=True)
def nobody_at_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NPU_DEVICE", raising=False)
    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)


def frame(verb: str = "bind") -> Frame:
    return Frame(verb, as_json=True, timeout=None)


# --- which cards -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [f"pci:{SECOND}", SECOND, f"sysfs:{SECOND}", "B2"])
def test_a_card_is_named_by_address_bus_address_or_serial(name: str) -> None:
    assert cards_to_change([name], [FIRST, OTHER, SERVED]) == [OTHER]


def test_one_card_needs_no_name_whatever_is_served() -> None:
    assert cards_to_change([], [FIRST, SERVED]) == [FIRST]


def test_one_of_several_must_be_named() -> None:
    with pytest.raises(click.UsageError, match=f"pci:{CARD}, pci:{SECOND}"):
        cards_to_change([], [FIRST, OTHER])
    assert cards_to_change(["all"], [FIRST, OTHER]) == [FIRST, OTHER]
    assert cards_to_change([CARD, f"pci:{CARD}"], [FIRST, OTHER]) == [FIRST]


def test_the_environment_names_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NPU_DEVICE", f"pci:{SECOND}")
    assert cards_to_change([], [FIRST, OTHER]) == [OTHER]
    monkeypatch.setenv("NPU_DEVICE", "emulator")
    assert cards_to_change([], [FIRST, SERVED]) == [FIRST]


def test_a_function_of_another_maker_is_refused_by_its_ids(host: FakeHost) -> None:
    host.add("0000:00:02.0", ids=(0x8086, 0x1234))
    with pytest.raises(DeviceNotFound, match="has the IDs 8086:1234; ours are b7c4:4e50"):
        named_cards(["pci:0000:00:02.0"], [FIRST], host.roots)


def test_an_emulator_is_no_card() -> None:
    with pytest.raises(click.UsageError, match="no card on the PCI bus"):
        named_cards([SERVED.address], [FIRST, SERVED])


def test_an_unknown_name_is_answered_with_what_there_is(host: FakeHost) -> None:
    with pytest.raises(DeviceNotFound, match=f"'C3'; there are: pci:{CARD}"):
        named_cards(["C3"], [FIRST], host.roots)


def test_no_card_at_all() -> None:
    with pytest.raises(DeviceNotFound, match="no card on the bus"):
        cards_to_change([], [SERVED])


# --- asking and reporting ----------------------------------------------------------------------------------------


def test_a_free_card_is_bound_without_a_question(host: FakeHost, binder: Binder) -> None:
    host.add()
    report = frame()
    bind_cards(report, [FIRST], binder, yes=False)
    assert report.devices == [{"address": f"pci:{CARD}", "driver_before": None, "driver": "vfio-pci", "changed": True}]
    assert report.exit_code() == 0
    validator("bind").validate(report.document())


def test_to_take_a_card_from_another_driver_is_asked(host: FakeHost, binder: Binder) -> None:
    host.add(driver="xdma")
    with pytest.raises(click.UsageError, match=f"Take {CARD} from its driver xdma"):
        bind_cards(frame(), [FIRST], binder, yes=False)
    assert host.writes == []
    bind_cards(frame(), [FIRST], binder, yes=True)
    assert host.driver() == "vfio-pci"


def test_to_unbind_is_asked_unless_there_is_nothing_to_do(host: FakeHost, binder: Binder) -> None:
    host.add(driver="vfio-pci")
    with pytest.raises(click.UsageError, match=f"Take {CARD} from vfio-pci"):
        unbind_cards(frame("unbind"), [FIRST], binder, yes=False)
    unbind_cards(frame("unbind"), [FIRST], binder, yes=True)
    report = frame("unbind")
    unbind_cards(report, [FIRST], binder, yes=False)
    assert report.devices == [{"address": f"pci:{CARD}", "driver_before": None, "driver": None, "changed": False}]
    assert report.exit_code() == 0
    validator("unbind").validate(report.document())


def test_a_second_bind_says_that_there_is_nothing_to_do(
    host: FakeHost, binder: Binder, capsys: pytest.CaptureFixture[str]
) -> None:
    host.add(driver="vfio-pci")
    bind_cards(Frame("bind", as_json=False, timeout=None), [FIRST], binder, yes=False)
    assert capsys.readouterr().out == f"pci:{CARD}: nothing to do, it has vfio-pci\n"


def test_one_card_that_fails_leaves_the_others_bound(host: FakeHost, binder: Binder) -> None:
    host.add(group=12)
    host.add(SECOND, group=None)
    report = frame()
    bind_cards(report, [FIRST, OTHER], binder, yes=False)
    assert [device["address"] for device in report.devices] == [f"pci:{CARD}"]
    assert [error["code"] for error in report.errors] == ["iommu-off"]
    assert report.exit_code() == 7
