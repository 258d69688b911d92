"""PCI functions, their IOMMU groups and VFIO nodes in the kernel's files. Opens no device, changes nothing."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

PCI_SCHEME = "pci:"
"""How the address of a card begins that is reached through VFIO; its bus address follows."""
VFIO_DRIVER = "vfio-pci"
"""The kernel driver that hands a function to user space."""
NOIOMMU_NAME = "vfio-noiommu"
"""What `name` of an IOMMU group says that VFIO made up for want of an IOMMU."""
HARMLESS_DRIVERS = frozenset({VFIO_DRIVER, "pcieport", "pci-stub"})
"""Kernel drivers that do no DMA of their own and so leave a group to VFIO."""
_BRIDGE_CLASS = 0x06
_MAX_LANES = 32


class Roots(NamedTuple):
    """Where the kernel's files are; tests put trees of their own here."""

    sys: Path = Path("/sys")
    proc: Path = Path("/proc")
    dev: Path = Path("/dev")

    @property
    def functions(self) -> Path:
        """The folder that has one entry a PCI function."""
        return self.sys / "bus/pci/devices"

    @property
    def drivers(self) -> Path:
        """The folder that has one entry a PCI driver."""
        return self.sys / "bus/pci/drivers"


class Neighbour(NamedTuple):
    """A function of an IOMMU group that a kernel driver holds."""

    bus_address: str
    driver: str


class Link(NamedTuple):
    """A PCI Express link; what the kernel does not tell is None."""

    speed_gt_per_s: float | None
    width_lanes: int | None


def text_of(path: Path) -> str | None:
    """What a file says, without surrounding blanks; None where it cannot be read."""
    try:
        return path.read_text("utf-8", "replace").strip()
    except OSError:
        return None


def number_of(path: Path, base: int = 16) -> int | None:
    """The number in a file; None where there is none."""
    try:
        return int(text_of(path) or "", base)
    except ValueError:
        return None


def names_in(folder: Path) -> list[str]:
    """Names in a folder, sorted; none where there is no folder."""
    try:
        return sorted(entry.name for entry in folder.iterdir())
    except OSError:
        return []


def driver_of(function: Path) -> str | None:
    """The kernel driver that a function is bound to."""
    return _link_name(function / "driver")


def ids_of(function: Path) -> str:
    """Vendor and device ID as lspci -n writes them, "b7c4:4e50"."""
    parts = (number_of(function / name) for name in ("vendor", "device"))
    return ":".join("????" if part is None else f"{part:04x}" for part in parts)


def group_of(function: Path) -> str | None:
    """Number of a function's IOMMU group; None without an IOMMU (VFIO's own no-IOMMU groups do not count)."""
    group = function / "iommu_group"
    return None if text_of(group / "name") == NOIOMMU_NAME else _link_name(group)


def held_neighbours(function: Path) -> list[Neighbour]:
    """Other functions of the group whose kernel drivers keep VFIO from using it."""
    members = function / "iommu_group" / "devices"
    found = []
    for name in names_in(members):
        driver = driver_of(members / name)
        if name == function.name or driver is None or driver in HARMLESS_DRIVERS or _is_bridge(members / name):
            continue
        found.append(Neighbour(name, driver))
    return found


def link_of(function: Path, which: str) -> Link:
    """The link as it is ("current") or as the function could do ("max")."""
    speed = re.match(r"(\d+(?:\.\d+)?) GT/s", text_of(function / f"{which}_link_speed") or "")  # or "Unknown": down
    lanes = number_of(function / f"{which}_link_width", 10)  # 0: the link is down; 255: it could not be read
    return Link(float(speed[1]) if speed else None, lanes if lanes is not None and 0 < lanes <= _MAX_LANES else None)


def vfio_nodes(function: Path, dev: Path) -> list[Path]:
    """Nodes that a process opens to use the function, whether or not they exist: of its group, and of itself."""
    nodes = []
    if (group := _link_name(function / "iommu_group")) is not None:
        prefix = "" if group_of(function) else "noiommu-"
        nodes.append(dev / "vfio" / f"{prefix}{group}")
    return nodes + [dev / "vfio/devices" / name for name in names_in(function / "vfio-dev")]


def _is_bridge(function: Path) -> bool:
    return (number_of(function / "class") or 0) >> 16 == _BRIDGE_CLASS


def _link_name(link: Path) -> str | None:
    return link.resolve().name if link.exists() else None
