"""`npuctl doctor`: its lines, its document and its exit code."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from driver_shim.cards.discovery import PciCard
from driver_shim.cards.doctor.checks import Finding, HostMachine, Status
from driver_shim.errors import DeviceNotFound
from sdk.cli import doctor
from sdk.cli.doctor import WIDTH, lines, report
from sdk.cli.exit_codes import ExitCode, Failure
from sdk.cli.frame import Frame
from sdk.opening import listing as info
from tests.support.npuctl import validator

CARD = "pci:0000:03:00.0"
GOOD = Finding("iommu", Status.OK, "on, 12 groups", None, None)
BAD = Finding("driver", Status.FAIL, "bound to no driver", f"sudo npuctl bind -d {CARD}", CARD)
WEAK = Finding("link", Status.WARN, "x4, " * 40, "reseat it\nthen: npuctl doctor", CARD)


def test_a_failed_line_ends_with_its_command() -> None:
    first, last = (line.plain for line in lines(BAD))
    assert first == "  FAIL  driver           bound to no driver"
    assert last == f"      → sudo npuctl bind -d {CARD}"


def test_what_is_found_is_wrapped_and_steps_are_not() -> None:
    shown = [line.plain for line in lines(WEAK)]
    assert max(map(len, shown)) <= WIDTH
    assert shown[-2:] == ["      → reseat it", "      → then: npuctl doctor"]


def test_a_failed_check_exits_5_and_is_in_the_document() -> None:
    frame = Frame("doctor", as_json=True, timeout=None)
    with pytest.raises(Failure, match="1 of 3 checks failed: driver") as caught:
        report(frame, [GOOD, BAD, WEAK])
    frame.fail(caught.value)
    assert frame.exit_code() is ExitCode.UNHEALTHY
    document = frame.document()
    validator("doctor").validate(document)
    assert document["devices"] == [{"address": CARD, "healthy": False}]
    assert document["checks"][1] == {
        "name": "driver",
        "status": "fail",
        "found": "bound to no driver",
        "remedy": f"sudo npuctl bind -d {CARD}",
        "device": CARD,
    }


def test_warnings_exit_0() -> None:
    frame = Frame("doctor", as_json=True, timeout=None)
    report(frame, [GOOD, WEAK])
    assert frame.exit_code() is ExitCode.OK
    assert frame.devices == [{"address": CARD, "healthy": True}]


def test_each_card_has_a_heading(capsys: pytest.CaptureFixture[str]) -> None:
    report(Frame("doctor", as_json=False, timeout=None), [GOOD, WEAK])
    assert f"\n\n{CARD}\n  warn  link " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("wanted", "cards"),
    [
        ((), ["0000:03:00.0", "0000:04:00.0"]),
        (("all",), ["0000:03:00.0", "0000:04:00.0"]),
        (("04:00.0", "all"), ["0000:03:00.0", "0000:04:00.0"]),
        (("pci:04:00.0",), ["0000:04:00.0"]),
    ],
)
@pytest.mark.parametrize("visible", ["0", "garbage"])
def test_hidden_cards_are_examined_too(
    monkeypatch: pytest.MonkeyPatch, wanted: tuple[str, ...], cards: list[str], visible: str
) -> None:
    examined: list[str] = []

    def examine(machine: HostMachine, named: Sequence[str]) -> list[Finding]:
        examined.extend(named)
        return []

    there = [PciCard("0000:03:00.0", None), PciCard("0000:04:00.0", None)]
    monkeypatch.setenv("NPU_VISIBLE_DEVICES", visible)
    for module in (info, doctor):
        monkeypatch.setattr(module, "find_cards", lambda root=None: there)
    monkeypatch.setattr(doctor, "examine", examine)
    body = getattr(doctor.command.callback, "__wrapped__", None)
    assert body is not None
    body(Frame("doctor", as_json=True, timeout=None), wanted)
    assert examined == cards
    with pytest.raises(DeviceNotFound, match="'bogus'"):
        body(Frame("doctor", as_json=True, timeout=None), ("all", "bogus"))
