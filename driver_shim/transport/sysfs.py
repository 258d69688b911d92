"""A function's files in sysfs: registers, configuration space and BARs for bring-up, without DMA, interrupts or reset.

Needs root and no IOMMU. Looking this way resets nothing, so it also shows a card that somebody else uses. A card that
is unplugged while its BARs are mapped ends the process (SIGBUS).
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import threading
import time
from pathlib import Path

from driver_shim import timeouts
from driver_shim.cards.discovery import SYSFS_PCI
from driver_shim.cards.pci_sysfs import driver_of
from driver_shim.errors import (
    Closed,
    ContractMismatch,
    DeviceBusy,
    DeviceLost,
    DeviceNotFound,
    NpuError,
    PermissionDenied,
    UnsupportedPlatform,
)
from driver_shim.protocol import config_space as facts
from driver_shim.protocol.registers import ALL_ONES_32, BAR0, BAR0_BYTES, REGISTERS
from driver_shim.shared.mmio import MappedRegisters
from driver_shim.transport.base import RegionInfo
from driver_shim.transport.mapping import map_memory_file
from driver_shim.transport.register_only import RegisterOnlyTransport

PREFIX = "sysfs:"
LOCKDOWN = Path("/sys/kernel/security/lockdown")
_BARS = 6
_RESOURCE_MEMORY = 0x200
"""The flag of a memory resource, among others (IORESOURCE_MEM)."""
_RESOURCE_LINE = re.compile(r"0x([0-9a-f]+) 0x([0-9a-f]+) 0x([0-9a-f]+)", re.IGNORECASE)
_READ = {1: MappedRegisters.read8, 2: MappedRegisters.read16, 4: MappedRegisters.read32, 8: MappedRegisters.read64}
_WRITE = {1: MappedRegisters.write8, 2: MappedRegisters.write16, 4: MappedRegisters.write32, 8: MappedRegisters.write64}
_GONE_ID = b"\xff\xff"


class SysfsTransport(RegisterOnlyTransport):
    """A function through its files in sysfs. BARs are mapped: a register access is one load or store."""

    name = "sysfs"

    def __init__(self, bus_address: str, sysfs: Path = SYSFS_PCI, lockdown: Path = LOCKDOWN) -> None:
        """Open the function at `bus_address` ("0000:03:00.0"): map its registers, wake it, let it decode memory.

        Raises DeviceNotFound (absent, or not one of ours), PermissionDenied (also by kernel lockdown), DeviceBusy (its
        kernel driver keeps the BARs to itself), DeviceLost, ContractMismatch.
        """
        self.address = PREFIX + bus_address
        self._folder = sysfs / bus_address
        self._lockdown = lockdown
        self._lock = threading.RLock()
        self._views: dict[int, memoryview] = {}
        self._registers: dict[int, MappedRegisters] = {}
        self._found_command: bytes | None = None
        self._left_command: bytes | None = None
        """COMMAND as it was found, and as it was last written here."""
        self._closed = False
        if not self._folder.is_dir():
            raise DeviceNotFound(
                f"{self.address}: no such function on the PCI bus", device=self.address, remedy="see npuctl list"
            )
        self._config = self._open_file("config")
        self._config_bytes = os.fstat(self._config).st_size  # 0x100 where not the whole way to it is PCI Express
        try:
            self._check_id()
            self._regions = self._read_regions()
            self._map(BAR0)  # before anything changes: a kernel that refuses it leaves the card as it was
            self._wake()
            self._decode_memory()
            self._check_identity()
        except BaseException:
            self.close()
            raise

    # --- opening -----------------------------------------------------------------------------------------------

    def _check_id(self) -> None:
        seen = self.config_read(0, 4)
        vendor, device = int.from_bytes(seen[:2], "little"), int.from_bytes(seen[2:], "little")
        if seen[:2] == _GONE_ID:
            raise self._lost("its configuration space reads all ones")
        if (vendor, device) != (facts.VENDOR_ID, facts.DEVICE_ID):
            raise DeviceNotFound(
                f"{self.address} is {vendor:04x}:{device:04x}, not one of ours"
                f" ({facts.VENDOR_ID:04x}:{facts.DEVICE_ID:04x})",
                device=self.address,
                remedy="see npuctl list",
            )

    def _read_regions(self) -> dict[int, RegionInfo]:
        """The memory BARs in the file `resource`: a line for each BAR with start, end and flags."""
        try:
            lines = (self._folder / "resource").read_text("ascii").splitlines()
        except OSError as error:
            raise self._refused(error, "read", "resource") from error
        matches = [_RESOURCE_LINE.fullmatch(line.strip()) for line in lines[:_BARS]]
        if len(matches) < _BARS or None in matches:
            raise self._broken(f"{self._folder}/resource does not describe {_BARS} BARs")
        regions = {}
        for index, match in enumerate(matches):
            start, end, flags = (int(part, 16) for part in match.groups()) if match else (0, 0, 0)
            if flags & _RESOURCE_MEMORY and end > start:
                size = end - start + 1
                regions[index] = RegionInfo(index, size, True, True, ((0, size),))
        size = regions[BAR0].size_bytes if BAR0 in regions else 0
        if size < BAR0_BYTES:
            raise self._broken(f"BAR0 has {size:#x} bytes, not {BAR0_BYTES:#x}")
        return regions

    def _map(self, bar: int) -> memoryview:
        """The whole of a BAR; called with the lock held, or before anybody else knows of this object."""
        if bar not in self._regions:
            raise ValueError(f"{self.address} has no region {bar}; it has {', '.join(map(str, self._regions))}")
        if bar not in self._views:
            size, name = self._regions[bar].size_bytes, f"resource{bar}"
            fd = self._open_file(name)
            try:
                status = os.fstat(fd)
                if stat.S_ISREG(status.st_mode) and status.st_size < size:  # touching the rest would be SIGBUS
                    raise self._broken(f"{self._folder}/{name} has {status.st_size:#x} of BAR{bar}'s {size:#x} bytes")
                self._views[bar] = map_memory_file(fd, size)
            except OSError as error:
                raise self._refused(error, "map", name) from error
            finally:
                os.close(fd)
        return self._views[bar]

    def _wake(self) -> None:
        """Out of D3hot, where vfio-pci leaves an idle card: BARs do not answer there. State is kept (No_Soft_Reset)."""
        at = facts.find_capability(self._read_config_start(), facts.PM_CAPABILITY)
        if at is None:
            return
        # One byte: in the word's other one, writing back what was read would clear a bit.
        offset = at + facts.PM_CONTROL_OFFSET
        (control,) = self.config_read(offset, 1)
        if control & facts.PM_POWER_STATE != facts.D0:
            self.config_write(offset, bytes([control & ~facts.PM_POWER_STATE]))
            time.sleep(timeouts.WAKE_S)

    def _decode_memory(self) -> None:
        self._found_command = self.config_read(facts.COMMAND_OFFSET, 2)
        command = int.from_bytes(self._found_command, "little")
        if not command & facts.COMMAND_MEMORY:
            self.config_write(facts.COMMAND_OFFSET, (command | facts.COMMAND_MEMORY).to_bytes(2, "little"))

    def _check_identity(self) -> None:
        if self.read(BAR0, REGISTERS["identity"].offset, REGISTERS["identity"].size) == ALL_ONES_32:
            raise self._lost("its identity register reads all ones")

    # --- the interface -----------------------------------------------------------------------------------------

    def regions(self) -> dict[int, RegionInfo]:
        """The BARs, by number; each can be mapped whole."""
        return dict(self._regions)

    def config_read(self, offset: int, size: int) -> bytes:
        """Read configuration space."""
        with self._lock:  # else the descriptor might be another file's by then
            self._check_config_range(offset, size)
            try:
                data = os.pread(self._config, size, offset)
            except OSError as error:
                raise self._refused(error, "read", "config") from error
        if len(data) != size:
            raise PermissionDenied(
                f"{self.address}: {len(data)} of {size} bytes at {offset:#x} of configuration space can be read",
                device=self.address,
                remedy="run as root",
            )
        return data

    def config_write(self, offset: int, data: bytes) -> None:
        """Write configuration space."""
        with self._lock:
            self._check_config_range(offset, len(data))
            try:
                os.pwrite(self._config, data, offset)
            except OSError as error:
                raise self._refused(error, "write", "config") from error
            if offset < facts.COMMAND_OFFSET + 2 and offset + len(data) > facts.COMMAND_OFFSET:
                self._left_command = self.config_read(facts.COMMAND_OFFSET, 2)

    def read(self, region: int, offset: int, width: int) -> int:
        """One register read: one load."""
        load = _READ.get(width)
        if load is None:
            raise self._bad_width(width)
        registers = self._mapped_registers(region)
        try:
            return load(registers, offset)
        except ValueError:
            self._check_open()  # closed meanwhile?
            raise

    def write(self, region: int, offset: int, value: int, width: int) -> None:
        """One register write: one store."""
        store = _WRITE.get(width)
        if store is None:
            raise self._bad_width(width)
        registers = self._mapped_registers(region)
        try:
            store(registers, offset, value)
        except ValueError:
            self._check_open()
            raise

    def map_region(self, region: int, offset: int, size: int) -> memoryview:
        """Map part of a BAR. It stays mapped until the last view of it dies; after `close` it may read all ones."""
        with self._lock:
            self._check_open()
            view = self._map(region)
        if offset < 0 or size <= 0 or offset + size > view.nbytes:
            raise ValueError(f"{self.address}: {size} bytes at {offset:#x} of region {region} cannot be mapped")
        return view[offset : offset + size]

    def alive(self) -> bool:
        """Whether the vendor ID still reads."""
        try:
            return self.config_read(0, 2) != _GONE_ID
        except (NpuError, ValueError):
            return False

    def close(self) -> None:
        """Put COMMAND back as it was found and let the function go; idempotent. A card that was woken stays awake."""
        with self._lock:
            if self._closed:
                return
            try:
                self._restore_command()
            finally:
                self._closed = True
                for registers in self._registers.values():
                    registers.release()
                self._registers.clear()
                self._views.clear()
                os.close(self._config)

    # --- helpers -----------------------------------------------------------------------------------------------

    def _restore_command(self) -> None:
        """If it is still as it was left here: otherwise whoever opened the card meanwhile needs it as it is."""
        if self._found_command is None or self._left_command is None:
            return
        with contextlib.suppress(NpuError):  # the card is gone
            if self.config_read(facts.COMMAND_OFFSET, 2) == self._left_command:
                self.config_write(facts.COMMAND_OFFSET, self._found_command)

    def _mapped_registers(self, bar: int) -> MappedRegisters:
        registers = self._registers.get(bar)
        if registers is None:
            with self._lock:
                self._check_open()
                registers = self._registers.setdefault(bar, MappedRegisters(self._map(bar)))
        return registers

    def _read_config_start(self) -> bytes:
        try:
            return os.pread(self._config, facts.EXTENDED_OFFSET, 0)
        except OSError as error:
            raise self._refused(error, "read", "config") from error

    def _check_config_range(self, offset: int, size: int) -> None:
        self._check_open()
        if offset < 0 or size <= 0 or offset + size > self._config_bytes:
            raise ValueError(
                f"{self.address}: {size} bytes at {offset:#x} of configuration space, which has {self._config_bytes:#x}"
            )

    def _check_open(self) -> None:
        if self._closed:
            raise Closed(f"{self.address} is closed", device=self.address)

    def _open_file(self, name: str) -> int:
        try:
            return os.open(self._folder / name, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise self._refused(error, "open", name) from error

    def _refused(self, error: OSError, verb: str, name: str) -> NpuError:
        """Why the kernel did not open, map, read or write one of the function's files."""
        reason = os.strerror(error.errno or 0)
        what = f"{self.address}: cannot {verb} {self._folder / name}: {reason}"
        bind = f"npuctl bind -d pci:{self._folder.name}"
        if error.errno == errno.EACCES:
            return PermissionDenied(
                what, device=self.address, remedy=f"run as root, or use vfio-pci, which does not need that: {bind}"
            )
        if error.errno == errno.EPERM:
            mode = self._lockdown_mode()
            return PermissionDenied(
                what + (f"; the kernel is locked down ({mode})" if mode else ""),
                device=self.address,
                cause=f"kernel lockdown ({mode})" if mode else reason,
                remedy=f"use vfio-pci, which lockdown allows: {bind}; or switch secure boot off"
                if mode
                else "run as root",
            )
        if verb == "map" and error.errno in (errno.EINVAL, errno.EBUSY):
            driver = driver_of(self._folder)
            holder = f"the kernel driver {driver}" if driver else "a kernel driver"
            return DeviceBusy(
                f"{what}; {holder} keeps the BARs to itself",
                device=self.address,
                cause="exclusive memory resource (CONFIG_IO_STRICT_DEVMEM)",
                remedy="unbind the driver, or end the process that uses the card: npuctl list shows the driver",
            )
        if error.errno == errno.ENOENT:
            return DeviceNotFound(
                what,
                device=self.address,
                remedy="the card is gone, or the kernel gave the BAR no address: see its log (dmesg)",
            )
        if error.errno in (errno.ENODEV, errno.ENOSYS):
            return UnsupportedPlatform(f"{what}; this kernel does not map BARs", device=self.address, remedy=bind)
        return self._lost(f"cannot {verb} {name}: {reason}")

    def _lockdown_mode(self) -> str | None:
        """The mode in force, in brackets in "none [integrity] confidentiality"; None without lockdown."""
        try:
            match = re.search(r"\[(\w+)\]", self._lockdown.read_text("ascii"))
        except OSError:
            return None
        return match[1] if match and match[1] != "none" else None

    def _lost(self, why: str) -> DeviceLost:
        return DeviceLost(
            f"{self.address} does not answer: {why}",
            device=self.address,
            subsystem="sysfs",
            cause=why,
            remedy=f"check power and link; `echo on > {self._folder}/power/control` keeps the bridge above it awake",
        )

    def _broken(self, why: str) -> ContractMismatch:
        return ContractMismatch(
            f"{self.address}: {why}",
            device=self.address,
            subsystem="sysfs",
            remedy="this is no card that this driver knows, or its BARs were not set up: see the kernel's log (dmesg)",
        )

    def _bad_width(self, width: int) -> ValueError:
        return ValueError(f"{self.address}: registers are {', '.join(map(str, _READ))} bytes wide, not {width}")
