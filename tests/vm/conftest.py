"""One guest for all of the suite: booted once. What may end QEMU has a guest of its own.

`NPU_VM_KERNEL=iommufd` boots the kernel that has iommufd in place of Debian's. The run ends with a table.
"""

from __future__ import annotations

import json
import os
import shlex
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.vm.guest import Card, Guest
from tests.vm.recipe import parts

PATIENCE_S = 60.0
"""A command in the guest, on a loaded host of two cores."""
LONGEST_S = 3600.0
"""The suite takes ten minutes on an idle machine of two cores; whatever hangs ends with the guest."""
IOMMUFD = os.environ.get("NPU_VM_KERNEL") == "iommufd"
_NOTE = "note"
FIRST, SECOND, REMOVED = range(3)
"""Cards of the guest, by port: two to work with, one that is taken away for a while."""


@pytest.fixture(scope="session")
def guest() -> Iterator[Guest]:
    """A booted guest with three cards, which no driver has yet."""
    with Guest(parts(iommufd=IOMMUFD), cards=3) as booted:
        too_late = threading.Timer(LONGEST_S, booted.kill)
        too_late.daemon = True
        too_late.start()
        prepare(booted)
        yield booted
        too_late.cancel()


def prepare(guest: Guest) -> None:
    """Have the guest load vfio-pci, where its kernel has not got it built in."""
    guest.check("modprobe vfio-pci || [ -d /sys/bus/pci/drivers/vfio-pci ]", PATIENCE_S)


@pytest.fixture(scope="session")
def address(guest: Guest) -> str:
    """Bus address of the first card, bound to vfio-pci."""
    return bind(guest, guest.cards[FIRST])


@pytest.fixture
def second(guest: Guest) -> str:
    """Bus address of another card, bound to vfio-pci whatever a test before did to it."""
    return bind(guest, guest.cards[SECOND])


@pytest.fixture
def note(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Puts a figure or a finding into the table at the end."""
    return lambda text: request.node.user_properties.append((_NOTE, text))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """The table: what was tried, how it ended, how long it took, what was found."""
    reports = [
        report
        for outcome in ("passed", "failed", "error", "skipped")
        for report in terminalreporter.getreports(outcome)
        if "tests/vm/" in report.nodeid and (report.when == "call" or report.outcome != "passed")
    ]
    if not reports:
        return
    terminalreporter.section(f"guest ({'iommufd' if IOMMUFD else 'type1'})")
    for report in reports:
        name = report.nodeid.rpartition("::")[2].removeprefix("test_").replace("_", " ")
        terminalreporter.write_line(f"{report.outcome:7} {report.duration:6.1f} s  {name}")
        for key, text in report.user_properties:
            if key == _NOTE:
                terminalreporter.write_line(f"{'':18}{text}")


def bind(guest: Guest, card: Card) -> str:
    """Bind a card to vfio-pci by hand, unless it is; its bus address. (The tool that does it has a test of its own.)"""
    where = guest.bus_address(card)
    folder = f"/sys/bus/pci/devices/{where}"
    probe = f"echo vfio-pci >{folder}/driver_override; echo {where} >/sys/bus/pci/drivers_probe"
    guest.check(
        f"[ -e /sys/bus/pci/drivers/vfio-pci/{where} ] || {{ {probe}; }}; ls {folder}/driver/unbind", PATIENCE_S
    )
    return where


def npuctl(guest: Guest, *runs: str) -> list[tuple[int, dict[str, Any]]]:
    """Run npuctl with --json for each of these command lines; exit codes and documents."""
    arguments = json.dumps([[*line.split(), "--json"] for line in runs])
    printed = guest.check(program("tools", shlex.quote(arguments)), PATIENCE_S * (1 + len(runs)))
    results = [json.loads(line) for line in printed.splitlines() if line.startswith("{")]
    return [(result["code"], json.loads(result["stdout"])) for result in results]


def program(name: str, arguments: str = "", device: str | None = None) -> str:
    """The command that runs one of the guest's programs on a card."""
    chosen = f"NPU_DEVICE=pci:{device} " if device else ""
    return f"{chosen}python3 -m tests.vm.programs.{name} {arguments}"


def killing(name: str) -> str:
    """The command that ends every process with this in its command line, without a chance to tidy up."""
    return f"for p in /proc/[0-9]*; do ! grep -qsa {name} $p/cmdline || kill -9 ${{p#/proc/}}; done"


def last_line(output: str) -> Any:
    """The JSON document that a program printed last."""
    return json.loads(output.strip().splitlines()[-1])
