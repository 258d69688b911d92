"""`npuctl bind` and `unbind`: which cards, when they ask, what they report."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click
import pytest

from driver_shim.cards.binding import Binder
from driver_shim.cards.discovery import PciCard
from driver_shim.errors import DeviceNotFound
from sdk.cli.bind import bind_cards
from sdk.cli.card_selection import cards_to_change, named_cards
from sdk.cli.frame import Frame
from sdk.cli.unbind import unbind_cards
from sdk.opening import listing as info
from sdk.opening.listing import DeviceInfo
from tests.support.fake_host import CARD, SECOND, FakeHost
from tests.support.npuctl import validator

CARDS = [PciCard(CARD, None, serial="A1"), PciCard(SECOND, None, serial="B2")]
FIRST = DeviceInfo(name="NPU", address=f"pci:{CARD}", serial="A1")
OTHER = DeviceInfo(name="NPU", address=f"pci:{SECOND}", serial="B2")
SERVED = DeviceInfo(name="NPU generic (emulator)", address="vfio-user:/run/npu0.sock", serial="E3")


@pytest.fixture
def host(tmp_path: Path) -> FakeHost:
    return FakeHost(tmp_path)


@pytest.fixture
def binder(host: FakeHost) -> Binder:
    return Binder(host.roots, host.write)


@pytest.fixture(autouse=True)
def nobody_at_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NPU_DEVICE", "NPU_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)


def frame(verb: str = "bind") -> Frame:
    return Frame(verb, as_json=True, timeout=None)


# --- which cards -------------------------------------------------------------------------------------------------


@pytest.fixture
def there(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Puts cards on the bus; an emulator is served whatever there is."""
    monkeypatch.setattr(info, "served_devices", lambda: [SERVED])
    return lambda *cards: monkeypatch.setattr(info, "find_cards", lambda: list(cards))


@pytest.fixture
def two(there: Callable[..., None]) -> None:
    there(*CARDS)


@pytest.fixture
def one(there: Callable[..., None]) -> None:
    there(CARDS[0])


def addresses(cards: list[DeviceInfo]) -> list[str]:
    return [card.address for card in cards]


@pytest.mark.usefixtures("two")
@pytest.mark.parametrize(
    "name", [f"pci:{SECOND}", SECOND, f"sysfs:{SECOND}", "B2", "pci:04:00.0", "04:00.0", "sysfs:04:00.0"]
)
def test_a_card_is_named_by_address_bus_address_or_serial(name: str) -> None:
    assert addresses(cards_to_change([name])) == [OTHER.address]


@pytest.mark.usefixtures("two")
@pytest.mark.parametrize("visible", ["", "0", "garbage"])
def test_a_hidden_card_can_be_named(monkeypatch: pytest.MonkeyPatch, visible: str) -> None:
    monkeypatch.setenv("NPU_VISIBLE_DEVICES", visible)
    assert addresses(cards_to_change([f"pci:{SECOND}"])) == [OTHER.address]


@pytest.mark.usefixtures("one")
def test_one_card_needs_no_name_whatever_is_served() -> None:
    assert addresses(cards_to_change([])) == [FIRST.address]


@pytest.mark.usefixtures("two")
def test_one_of_several_must_be_named() -> None:
    with pytest.raises(click.UsageError, match=f"pci:{CARD}, pci:{SECOND}"):
        cards_to_change([])
    assert (
        addresses(cards_to_change(["all"]))
        == addresses(cards_to_change([CARD, "all"]))
        == [
            FIRST.address,
            OTHER.address,
        ]
    )
    assert addresses(cards_to_change([CARD, f"pci:{CARD}"])) == [FIRST.address]


@pytest.mark.usefixtures("two")
def test_a_name_beside_all_must_be_right_too() -> None:
    with pytest.raises(DeviceNotFound, match="'bogus'"):
        cards_to_change(["all", "bogus"])


@pytest.mark.usefixtures("two")
def test_the_environment_names_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NPU_DEVICE", f"pci:{SECOND}")
    assert addresses(cards_to_change([])) == [OTHER.address]
    monkeypatch.setenv("NPU_DEVICE", "emulator")
    with pytest.raises(click.UsageError, match="2 cards"):
        cards_to_change([])


@pytest.mark.usefixtures("one")
def test_a_function_of_another_maker_is_refused_by_its_ids(host: FakeHost) -> None:
    host.add("0000:00:02.0", ids=(0x8086, 0x1234))
    for name in ("pci:0000:00:02.0", "00:02.0"):
        with pytest.raises(DeviceNotFound, match="has the IDs 8086:1234; ours are b7c4:4e50"):
            named_cards([name], host.roots)


@pytest.mark.usefixtures("one")
@pytest.mark.parametrize("name", [SERVED.address, "emulator", "E3"])
def test_an_emulator_is_no_card(name: str) -> None:
    with pytest.raises(click.UsageError, match="no card on the PCI bus"):
        named_cards([name])


@pytest.mark.usefixtures("one")
@pytest.mark.parametrize("name", ["C3", "pci:", "pci:../..", "0000:09:00.0"])
def test_an_unknown_name_is_answered_with_what_there_is(host: FakeHost, name: str) -> None:
    with pytest.raises(DeviceNotFound, match=f"'{name}'; there are: pci:{CARD}$"):
        named_cards([name], host.roots)


def test_no_card_at_all(there: Callable[..., None]) -> None:
    there()
    with pytest.raises(DeviceNotFound, match="no visible card on the bus"):
        cards_to_change([])


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
