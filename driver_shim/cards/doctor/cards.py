"""Checks of one card each, from what the kernel tells of it. None opens the card, which would reset it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from driver_shim.cards.doctor.checks import HostMachine, Observation, Status
from driver_shim.cards.doctor.machine import JOIN_GROUP, iommu
from driver_shim.cards.pci_sysfs import (
    PCI_SCHEME,
    VFIO_DRIVER,
    driver_of,
    group_of,
    held_neighbours,
    link_of,
    names_in,
    text_of,
)
from driver_shim.cards.pci_sysfs import vfio_nodes as nodes_of
from driver_shim.cards.vfio_users import find_users
from driver_shim.protocol.registers import BAR0, BAR0_BYTES, BAR2, BAR4, DOORBELL_PAGE_BYTES

_IOMMU_LOG = "see why: sudo dmesg | grep -i -e dmar -e iommu"
_READ_WRITE = os.R_OK | os.W_OK
_LEAST_BAR_BYTES = {BAR0: BAR0_BYTES, BAR2: 2 * DOORBELL_PAGE_BYTES}
"""What the driver needs: the registers, and the doorbells of the admin queue and one more. BAR4 may be missing."""
_BARS = (BAR0, BAR2, BAR4)


def driver(machine: HostMachine, card: str) -> Observation:
    """Whether vfio-pci has the card."""
    bound = driver_of(_folder(machine, card))
    if bound == VFIO_DRIVER:
        return Observation(Status.OK, VFIO_DRIVER)
    found = f"bound to {bound}, not to {VFIO_DRIVER}" if bound else "bound to no driver"
    return Observation(Status.FAIL, found, f"sudo npuctl bind -d {PCI_SCHEME}{card}")


def iommu_group(machine: HostMachine, card: str) -> Observation:
    """Whether the card's IOMMU group can be given to VFIO as a whole."""
    folder = _folder(machine, card)
    group = group_of(folder)
    if group is None:
        return Observation(Status.FAIL, "in no IOMMU group", iommu(machine).remedy or _IOMMU_LOG)
    held = held_neighbours(folder)
    if not held:
        members = len(names_in(folder / "iommu_group/devices"))
        alone = "alone in it" if members == 1 else f"{members} functions in it, none held by a kernel driver"
        return Observation(Status.OK, f"{group}, {alone}")
    named = ", ".join(f"{one.bus_address} ({one.driver})" for one in held)
    steps = [f"echo {one.bus_address} | sudo tee /sys/bus/pci/drivers/{one.driver}/unbind" for one in held]
    return Observation(Status.FAIL, f"kernel drivers hold other functions of group {group}: {named}", "\n".join(steps))


def access(machine: HostMachine, card: str) -> Observation:
    """Whether this user may open the card, through its group or by itself."""
    folder, dev = _folder(machine, card), machine.roots.dev
    if driver_of(folder) != VFIO_DRIVER:
        return Observation(Status.INFO, f"there is nothing to open before {VFIO_DRIVER} has it")
    own = nodes_of(folder, dev)
    ways = [(dev / "iommu" if node.parent.name == "devices" else dev / "vfio/vfio", node) for node in own]
    troubles = {}
    for way in ways:
        bad = [_trouble(machine, node) for node in way if _trouble(machine, node)]
        if not bad:
            return Observation(Status.OK, " and ".join(map(str, way)))
        troubles.update(dict.fromkeys(bad))
    if not troubles:
        return Observation(Status.FAIL, "the kernel made no node for it", "see why: sudo dmesg | grep -i vfio")
    return Observation(Status.FAIL, "; ".join(map(str, troubles)), JOIN_GROUP)


def bars(machine: HostMachine, card: str) -> Observation:
    """Whether the machine's firmware or the kernel gave the card the address ranges that the driver needs."""
    ranges = _ranges(_folder(machine, card) / "resource")
    if not ranges:
        return Observation(Status.INFO, "the kernel does not tell")
    shown, wrong, unassigned = [], [], False
    for bar in _BARS:
        least = _LEAST_BAR_BYTES.get(bar, 0)
        size, placed = ranges.get(bar, _Range(0, False))
        if size:
            shown.append(f"BAR{bar} {_binary(size)}")
        if size and not placed:
            unassigned = True
            wrong.append(f"BAR{bar} ({_binary(size)}) has no address")
        elif size < least:
            wrong.append(f"BAR{bar} has {_binary(size)} of {_binary(least)}")
    if not wrong:
        return Observation(Status.OK, ", ".join(shown))
    remedy = f"docs/your-board.md says what the driver expects; see yours: sudo lspci -vv -s {card}"
    if unassigned:
        remedy = (
            "switch on “Above 4G decoding”: sudo systemctl reboot --firmware-setup\n"
            "else add pci=realloc to GRUB_CMDLINE_LINUX: sudoedit /etc/default/grub\n"
            "then: sudo update-grub && sudo reboot"
        )
    return Observation(Status.FAIL, "; ".join(wrong), remedy)


def link(machine: HostMachine, card: str) -> Observation:
    """Whether the link runs as wide and as fast as both its ends can."""
    folder = _folder(machine, card)
    now, own = _link(folder, "current"), _link(folder, "max")
    if now is None or own is None:
        return Observation(Status.INFO, "the kernel does not tell")
    port = _link(folder.resolve().parent, "max") or own
    possible = _Link(min(own.width, port.width), min(own.speed, port.speed))
    if now.width < possible.width or now.speed < possible.speed:
        return Observation(
            Status.WARN,
            f"{now}, though {possible} is possible (a sleeping link may be slower)",
            f"reseat the card, check its connector; then: npuctl doctor -d {PCI_SCHEME}{card}",
        )
    if possible != own:
        return Observation(Status.INFO, f"{now}, all that its connector can; the card can {own}")
    return Observation(Status.OK, str(now))


def power(machine: HostMachine, card: str) -> Observation:
    """The power state. An idle card may sleep; to open it wakes it."""
    folder = _folder(machine, card)
    state = text_of(folder / "power_state")
    runtime = text_of(folder / "power/runtime_status")
    return Observation(Status.INFO, ", ".join(part for part in (state, runtime) if part) or "the kernel does not tell")


def user(machine: HostMachine, card: str) -> Observation:
    """Which process uses the card."""
    nodes = nodes_of(_folder(machine, card), machine.roots.dev)
    users = find_users(card, nodes, machine.roots.proc)
    if users.found:
        return Observation(Status.INFO, "used by " + ", ".join(map(str, users.found)))
    if users.hidden:
        return Observation(
            Status.INFO,
            f"nobody that you can see; {users.hidden} processes are not yours to look into",
            f"sudo npuctl doctor -d {PCI_SCHEME}{card}",
        )
    return Observation(Status.INFO, "nobody")


class _Range(NamedTuple):
    size: int
    placed: bool


class _Link(NamedTuple):
    width: int
    speed: float

    def __str__(self) -> str:
        return f"x{self.width} at {self.speed:g} GT/s"


def _folder(machine: HostMachine, card: str) -> Path:
    return machine.roots.functions / card


def _trouble(machine: HostMachine, node: Path) -> str | None:
    if not node.exists():
        return f"{node} is not there"
    return None if machine.access(node, _READ_WRITE) else f"no permission for {node}"


def _ranges(resource: Path) -> dict[int, _Range]:
    """BARs by number, from sysfs' lines "first last flags"; a range that was not placed starts at 0."""
    found = {}
    for bar, line in enumerate((text_of(resource) or "").splitlines()[:6]):
        try:
            first, last, flags = (int(word, 16) for word in line.split())
        except ValueError:
            continue
        if flags:
            found[bar] = _Range(last - first + 1, first != 0)
    return found


def _link(folder: Path, which: str) -> _Link | None:
    speed, width = link_of(folder, which)
    return None if speed is None or width is None else _Link(width, speed)


def _binary(size: int) -> str:
    for unit, shift in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if size >= 1 << shift:
            return f"{size / (1 << shift):g} {unit}"
    return f"{size} bytes"
