"""Search for what keeps programs from their devices: a table of checks, none of which opens or resets a card."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from driver_shim.cards.doctor import cards as doctor_cards
from driver_shim.cards.doctor import machine as doctor_machine
from driver_shim.cards.doctor.checks import Finding, HostMachine, Observation
from driver_shim.cards.pci_sysfs import PCI_SCHEME

MACHINE_CHECKS: dict[str, Callable[[HostMachine], Observation]] = {
    "versions": doctor_machine.versions,
    "emulator": doctor_machine.emulator,
    "runtime-folder": doctor_machine.runtime_folder,
    "card": doctor_machine.card,
    "visible-devices": doctor_machine.visible_devices,
    "iommu": doctor_machine.iommu,
    "interrupts": doctor_machine.interrupts,
    "vfio-modules": doctor_machine.vfio_modules,
    "vfio-nodes": doctor_machine.vfio_nodes,
    "locked-memory": doctor_machine.locked_memory,
    "huge-pages": doctor_machine.huge_pages,
    "lockdown": doctor_machine.lockdown,
}
"""Checks of the machine, in the order in which what they find is mended."""

CARD_CHECKS: dict[str, Callable[[HostMachine, str], Observation]] = {
    "iommu-group": doctor_cards.iommu_group,
    "driver": doctor_cards.driver,
    "access": doctor_cards.access,
    "bars": doctor_cards.bars,
    "link": doctor_cards.link,
    "power": doctor_cards.power,
    "user": doctor_cards.user,
}
"""Checks of each card."""


def examine(machine: HostMachine, cards: Sequence[str] | None = None) -> Iterator[Finding]:
    """All checks of the machine, then those of each of `cards` (bus addresses; None: of all there are)."""
    for name, check in MACHINE_CHECKS.items():
        yield Finding(name, *check(machine), device=None)
    for card in machine.cards if cards is None else cards:
        for name, check_card in CARD_CHECKS.items():
            yield Finding(name, *check_card(machine, card), device=PCI_SCHEME + card)
