"""The report of one card that was bound or unbound."""

from __future__ import annotations

from typing import Any

from driver_shim.cards.binding import Binding
from driver_shim.cards.pci_sysfs import PCI_SCHEME
from sdk.cli.frame import Frame


def report(frame: Frame, binding: Binding) -> None:
    """One card's entry and line."""
    entry: dict[str, Any] = {
        "address": PCI_SCHEME + binding.bus_address,
        "driver_before": binding.driver_before,
        "driver": binding.driver,
        "changed": binding.changed,
    }
    frame.add(entry)
    before, now = (driver or "no driver" for driver in (binding.driver_before, binding.driver))
    change = f"{before} → {now}" if binding.changed else f"nothing to do, it has {now}"
    frame.say(f"{entry['address']}: {change}")
