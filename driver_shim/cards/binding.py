"""Binding of functions of ours to vfio-pci and back, through sysfs. A step that fails undoes those before it.

The kernel's files are described in its Documentation/ABI/testing/sysfs-bus-pci (driver_override, drivers_probe, bind,
unbind). An `unbind` write blocks for as long as a process holds the function, so holders are looked for first.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import NamedTuple, NoReturn

from driver_shim.cards.pci_sysfs import (
    PCI_SCHEME,
    VFIO_DRIVER,
    Roots,
    driver_of,
    group_of,
    held_neighbours,
    text_of,
    vfio_nodes,
)
from driver_shim.cards.vfio_users import find_users, group_is_taken
from driver_shim.errors import DeviceBusy, DeviceNotFound, NpuError, PermissionDenied

_NO_OVERRIDE = "(null)"
"""What driver_override reads as when it names no driver."""
_CLEAR = "\n"
"""What is written to it then."""

Write = Callable[[Path, str], None]


class Binding(NamedTuple):
    """What became of one function."""

    bus_address: str
    driver_before: str | None
    driver: str | None
    changed: bool


def write_attribute(path: Path, text: str) -> None:
    """Write a sysfs attribute by one system call. Raises OSError."""
    with open(path, "wb", buffering=0) as file:
        file.write(text.encode())


class Binder:
    """Moves functions between drivers. `write` writes a sysfs attribute; tests give one that acts the kernel."""

    def __init__(self, roots: Roots | None = None, write: Write = write_attribute) -> None:
        self.roots = roots or Roots()
        self._write = write

    def driver(self, bus_address: str) -> str | None:
        """The driver that a function is bound to now."""
        return driver_of(self._folder(bus_address))

    def bind(self, bus_address: str, together_with: Collection[str] = ()) -> Binding:
        """Bind a function to vfio-pci, taking it from the driver that has it. Nothing happens if it is bound already.

        `together_with` names functions that are about to be bound too, and so do not stand in their group's way.
        Raises DeviceNotFound, DeviceBusy, PermissionDenied, NpuError; whatever was done until then is undone.
        """
        before = self._present_driver(bus_address)
        if before == VFIO_DRIVER:
            return Binding(bus_address, before, before, False)
        self._require_vfio(bus_address)
        self._require_viable_group(bus_address, together_with)
        with self._undoing(bus_address, "bind"):
            self._override(bus_address, VFIO_DRIVER)
            self._let_go(bus_address)
            self._probe(bus_address)
            after = self.driver(bus_address)
            if after != VFIO_DRIVER:
                raise OSError(errno.EIO, f"{VFIO_DRIVER} did not take it (dmesg says why)")
        return Binding(bus_address, before, after, True)

    def unbind(self, bus_address: str) -> Binding:
        """Take a function from vfio-pci and offer it to the driver it would have by itself; normally there is none.

        Nothing happens if another driver has it. Raises DeviceNotFound, DeviceBusy while a process uses it,
        PermissionDenied, NpuError; whatever was done until then is undone.
        """
        before = self._present_driver(bus_address)
        overridden = self._read_override(bus_address) == VFIO_DRIVER
        if before != VFIO_DRIVER and not (before is None and overridden):
            return Binding(bus_address, before, before, False)
        self._require_unused(bus_address)
        with self._undoing(bus_address, "unbind"):
            self._override(bus_address, _CLEAR)
            self._let_go(bus_address)
            self._probe(bus_address)
        return Binding(bus_address, before, self.driver(bus_address), True)

    # --- what must hold before anything is written ---------------------------------------------------------------

    def _present_driver(self, bus_address: str) -> str | None:
        if not self._folder(bus_address).is_dir():
            address = PCI_SCHEME + bus_address
            raise DeviceNotFound(
                f"{address}: no such function on the PCI bus", device=address, remedy="npuctl list shows what there is"
            )
        return self.driver(bus_address)

    def _require_vfio(self, bus_address: str) -> None:
        address = PCI_SCHEME + bus_address
        if not (self.roots.drivers / VFIO_DRIVER).is_dir():
            raise NpuError(
                f"{address} cannot be bound: the kernel module {VFIO_DRIVER} is not loaded",
                device=address,
                subsystem="binding",
                code="driver-missing",
                remedy=f"sudo modprobe {VFIO_DRIVER}",
            )
        if group_of(self._folder(bus_address)) is None:
            raise NpuError(
                f"{address} cannot be bound: it is in no IOMMU group, the IOMMU is off",
                device=address,
                subsystem="binding",
                code="iommu-off",
                remedy="npuctl doctor says how to switch it on",
            )

    def _require_viable_group(self, bus_address: str, together_with: Collection[str]) -> None:
        held = [one for one in held_neighbours(self._folder(bus_address)) if one.bus_address not in together_with]
        if not held:
            return
        address = PCI_SCHEME + bus_address
        named = ", ".join(f"{one.bus_address} ({one.driver})" for one in held)
        free = "; ".join(f"echo {one.bus_address} | sudo tee /sys/bus/pci/drivers/{one.driver}/unbind" for one in held)
        raise DeviceBusy(
            f"{address} shares IOMMU group {group_of(self._folder(bus_address))} with functions that kernel drivers"
            f" hold: {named}; VFIO gives out a group only as a whole",
            device=address,
            subsystem="binding",
            code="group-not-viable",
            remedy=f"take them from their drivers ({free}), or move the card to another PCIe connector",
        )

    def _require_unused(self, bus_address: str) -> None:
        nodes = vfio_nodes(self._folder(bus_address), self.roots.dev)
        users = find_users(bus_address, nodes, self.roots.proc)
        address = PCI_SCHEME + bus_address
        if users.found:
            who, remedy = ", ".join(map(str, users.found)), "end that process first"
        elif group_is_taken(nodes):
            who, remedy = "a process that is not visible to you", "look for it as root and outside containers"
        else:
            return
        raise DeviceBusy(f"{address} is used by {who}", device=address, subsystem="binding", remedy=remedy)

    # --- the steps -------------------------------------------------------------------------------------------------

    def _override(self, bus_address: str, driver: str) -> None:
        self._write(self._folder(bus_address) / "driver_override", driver)

    def _read_override(self, bus_address: str) -> str | None:
        text = text_of(self._folder(bus_address) / "driver_override")
        return None if text in (None, "", _NO_OVERRIDE) else text

    def _let_go(self, bus_address: str) -> None:
        driver = self.driver(bus_address)
        if driver is not None:
            self._write(self.roots.drivers / driver / "unbind", bus_address)

    def _probe(self, bus_address: str) -> None:
        self._write(self.roots.sys / "bus/pci/drivers_probe", bus_address)

    @contextlib.contextmanager
    def _undoing(self, bus_address: str, verb: str) -> Iterator[None]:
        """Put driver and driver_override back when the steps inside fail, and say both in the error."""
        driver, override = self.driver(bus_address), self._read_override(bus_address)
        try:
            yield
        except OSError as error:
            self._report(error, bus_address, verb, self._undo(bus_address, driver, override))
        except BaseException:
            self._undo(bus_address, driver, override)
            raise

    def _undo(self, bus_address: str, driver: str | None, override: str | None) -> str | None:
        """Returns what could not be undone."""
        try:
            if self._read_override(bus_address) != override:
                self._override(bus_address, override or _CLEAR)
            if self.driver(bus_address) != driver:
                self._let_go(bus_address)
                if driver is not None:
                    self._write(self.roots.drivers / driver / "bind", bus_address)
        except OSError as error:
            return f"{error.strerror} ({error.filename})" if error.filename else str(error.strerror)
        return None

    def _report(self, error: OSError, bus_address: str, verb: str, not_undone: str | None) -> NoReturn:
        address = PCI_SCHEME + bus_address
        where = f" ({error.filename})" if error.filename else ""
        driver = self.driver(bus_address) or "none"
        what = f"{address}: {verb} failed: {error.strerror}{where}; "
        if not_undone is None:
            what += f"undone, its driver is {driver} as before"
        else:
            what += f"it could not be undone ({not_undone}), its driver is now {driver}"
        if error.errno in (errno.EACCES, errno.EPERM):
            remedy = f"run as root: sudo npuctl {verb} -d {address}"
            raise PermissionDenied(what, device=address, subsystem="binding", remedy=remedy) from error
        if error.errno == errno.EROFS:
            remedy = "sysfs is read-only here, as in containers: run it on the host, as root"
            raise PermissionDenied(what, device=address, subsystem="binding", remedy=remedy) from error
        raise NpuError(
            what,
            device=address,
            subsystem="binding",
            cause=error.strerror,
            code="binding-failed",
            remedy="the kernel's log (sudo dmesg) says why",
        ) from error

    def _folder(self, bus_address: str) -> Path:
        return self.roots.functions / bus_address
