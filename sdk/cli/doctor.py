"""`npuctl doctor`: what keeps programs from their devices, and the command that mends it."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from typing import TYPE_CHECKING

from driver_shim.cards.discovery import find_cards
from driver_shim.cards.doctor.checks import Finding, HostMachine, Status
from driver_shim.cards.doctor.examination import CARD_CHECKS, MACHINE_CHECKS, examine
from driver_shim.cards.pci_sysfs import Roots
from sdk.cli.card_selection import bus_address_of, named_cards
from sdk.cli.device_selection import ALL, device_option
from sdk.cli.exit_codes import ExitCode, Failure
from sdk.cli.frame import Frame
from sdk.cli.verb import verb

if TYPE_CHECKING:
    from rich.text import Text

WIDTH = 80
_STYLES = {Status.OK: "green", Status.WARN: "yellow", Status.FAIL: "bold red", Status.INFO: "dim"}
_MARKS = {Status.FAIL: "FAIL"}
_MARK_COLUMNS = 6
_NAME_COLUMNS = 2 + max(map(len, [*MACHINE_CHECKS, *CARD_CHECKS]))
_REMEDY_INDENT = " " * 6


@verb("doctor")
@device_option
def command(frame: Frame, wanted: tuple[str, ...]) -> None:
    """Check what programs need to use a card or an emulator, and say what mends it.

    Needs neither a card nor root; opens and resets nothing. Exits 5 if a check failed, 0 on warnings.
    """
    frame.sections["checks"] = []
    roots = Roots()
    machine = HostMachine(roots, tuple(card.bus_address for card in find_cards(roots.functions)))
    named = [name for name in wanted if name != ALL]
    cards = [bus_address_of(card) for card in named_cards(named, roots)] if named else []
    report(frame, examine(machine, machine.cards if len(named) < len(wanted) or not wanted else cards))


def report(frame: Frame, findings: Iterable[Finding]) -> None:
    """Show findings as they come, and fail if one of them did."""
    found: list[Finding] = []
    device: str | None = None
    for finding in findings:
        if finding.device != device:
            device = finding.device
            frame.say(f"\n{device}")
        for line in lines(finding):
            frame.console.print(line, soft_wrap=True)
        found.append(finding)
    frame.sections["checks"] = [{**finding._asdict(), "status": finding.status.value} for finding in found]
    failed = [finding for finding in found if finding.status is Status.FAIL]
    for address in dict.fromkeys(finding.device for finding in found if finding.device):
        healthy = all(finding.device != address for finding in failed)
        frame.add({"address": address, "healthy": healthy})
    if failed:
        names = ", ".join(dict.fromkeys(finding.name for finding in failed))
        count = f"{len(failed)} of {len(found)} checks failed"
        raise Failure(f"{count}: {names}", ExitCode.UNHEALTHY, slug="unhealthy")


def lines(finding: Finding) -> list[Text]:
    """A finding within 80 columns; what is to be typed is never broken."""
    from rich.text import Text

    start = " " * (2 + _MARK_COLUMNS + _NAME_COLUMNS)
    mark = _MARKS.get(finding.status, finding.status.value)
    first, *more = textwrap.wrap(finding.found, WIDTH - len(start), break_on_hyphens=False) or [""]
    head = Text.assemble(
        "  ", (mark.ljust(_MARK_COLUMNS), _STYLES[finding.status]), finding.name.ljust(_NAME_COLUMNS), first
    )
    steps = [Text(f"{_REMEDY_INDENT}→ {step}") for step in (finding.remedy or "").splitlines()]
    return [head, *(Text(start + line) for line in more), *steps]
