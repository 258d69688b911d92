"""One guest for all of the suite: booted once, its first card bound to vfio-pci. Faults plug in cards of their own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.vm.guest import Card, Guest
from tests.vm.recipe import parts

PATIENCE_S = 60.0
"""A command in the guest, on a loaded host of two cores."""
FIRST, SPARE_PORTS = 0, (1, 2, 3)


@pytest.fixture(scope="session")
def guest() -> Iterator[Guest]:
    """A booted guest with one card, which no driver has yet."""
    with Guest(parts()) as booted:
        yield booted


@pytest.fixture(scope="session")
def address(guest: Guest) -> str:
    """Bus address of the first card, bound to vfio-pci."""
    return bind(guest, guest.cards[FIRST])


@pytest.fixture
def fault_card(guest: Guest) -> Iterator[tuple[Card, str]]:
    """A card plugged in for this test alone, bound to vfio-pci, and its bus address."""
    port = next(port for port in SPARE_PORTS if port not in guest.cards)
    card = guest.plug(port)
    try:
        guest.check(f"until {guest.card_folder(card)}; do sleep 0.1; done", PATIENCE_S)
        yield card, bind(guest, card)
    finally:
        guest.pull(card, PATIENCE_S)


def bind(guest: Guest, card: Card) -> str:
    """Bind a card to vfio-pci by the tool; its bus address."""
    where = guest.bus_address(card)
    npuctl(guest, "bind", "--yes", "-d", f"pci:{where}")
    return where


def npuctl(guest: Guest, *arguments: str, code: int = 0, timeout: float = PATIENCE_S) -> dict[str, Any]:
    """Run npuctl with --json in the guest; the document, whose exit code must be this."""
    ran = guest.run(f"python3 -m sdk.cli {' '.join(arguments)} --json", timeout)
    assert ran.status == code, ran.output
    lines = [line for line in ran.output.splitlines() if line.startswith("{")]
    found: dict[str, Any] = json.loads(lines[0])
    return found


def program(name: str, arguments: str = "", device: str | None = None) -> str:
    """The command that runs one of the guest's programs on a card."""
    chosen = f"NPU_DEVICE=pci:{device} " if device else ""
    return f"{chosen}python3 -m tests.vm.programs.{name} {arguments}"


def last_line(output: str) -> Any:
    """The JSON document that a program printed last."""
    return json.loads(output.strip().splitlines()[-1])
