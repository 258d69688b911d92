"""A function bound to vfio-pci. Registers are reached through mappings of its BARs, one access of the right width each.

A mapping that is touched while the function is reset, powered down or taken away kills the process (SIGBUS). So all
mappings, ours and those handed out by `map_region`, are revoked, with the lock held, before anything that may stop the
function from decoding its BARs; see `DeviceMapping.revoke`. Registers are then read and written through the kernel,
which answers for a function that does not decode, until the next access finds it decoding and maps them anew.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import select
import struct
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from driver_shim import timeouts
from driver_shim.cards.discovery import SYSFS_PCI
from driver_shim.cards.pci_sysfs import PCI_SCHEME, VFIO_DRIVER, driver_of, ids_of
from driver_shim.errors import Closed, DeviceLost, DeviceNotFound, NpuError, UnsupportedPlatform
from driver_shim.protocol import vfio_ioctls as vfio
from driver_shim.protocol.config_space import (
    COMMAND_MEMORY,
    COMMAND_OFFSET,
    D0,
    DEVICE_ID,
    HEADER,
    PM_CAPABILITY,
    PM_CONTROL_OFFSET,
    PM_POWER_STATE,
    VENDOR_ID,
    find_capability,
)
from driver_shim.protocol.vfio_user import (
    DEVICE_INFO,
    IRQ_INFO,
    IRQ_SET,
    NUM_REGIONS,
    REGION_INFO,
    DeviceFlag,
    IrqIndex,
    IrqSet,
    RegionFlag,
    RegionIndex,
    decode_region_info,
)
from driver_shim.shared.mmio import MappedRegisters
from driver_shim.shared.weak_callback import weak_callback
from driver_shim.transport.base import RegionInfo, Transport
from driver_shim.transport.mapping import PAGE_BYTES, DeviceMapping, map_memory_file
from driver_shim.transport.vfio_iommu import open_device, undisturbed

DEV = Path("/dev")
_CONFIG = int(RegionIndex.CONFIG)
_WIDTHS = (1, 2, 4, 8)
OUR_IDS = f"{VENDOR_ID:04x}:{DEVICE_ID:04x}"
_GONE = (errno.ENODEV, errno.ENXIO, errno.EIO)
_CAPABILITIES = range(HEADER.layout.size, 256)
"""Power states and function level resets are asked for somewhere here."""


class _Region(NamedTuple):
    info: RegionInfo
    file_offset: int
    """Where the region starts in the device's file."""


class _Window:
    """A mapped area of a region, for register accesses."""

    def __init__(self, first: int, view: memoryview) -> None:
        registers = MappedRegisters(view)
        self.first = first
        self.end = first + len(view)
        self.load = {1: registers.read8, 2: registers.read16, 4: registers.read32, 8: registers.read64}
        self.store = {1: registers.write8, 2: registers.write16, 4: registers.write32, 8: registers.write64}
        self.valid = True
        """False before the mapping is revoked: a value that was loaded while this still held is the device's."""


class VfioTransport(Transport):
    """A function in the hands of the kernel's VFIO."""

    name = VFIO_DRIVER

    def __init__(self, bus_address: str, sysfs: Path = SYSFS_PCI, dev: Path = DEV) -> None:
        """Open the function at `bus_address` ("0000:03:00.0"); the kernel resets it.

        Raises DeviceNotFound (absent, or not bound to vfio-pci), DeviceBusy, PermissionDenied, DeviceLost.
        """
        self.address = PCI_SCHEME + bus_address
        self._lock = threading.RLock()
        """Guards descriptors and mappings: whoever uses or revokes them holds it."""
        self._regions: dict[int, _Region] = {}
        self._windows: dict[int, tuple[_Window, ...]] = {}
        self._mappings: list[DeviceMapping] = []
        self._mapped: dict[int, tuple[int, memoryview]] = {}
        """Host memory the device can reach: bus address → size and the pages, which must live as long."""
        self._ended: NpuError | None = None
        self._check_bound(sysfs / bus_address)
        self._iommu = undisturbed(lambda: open_device(self.address, sysfs / bus_address, dev))
        self.iommu_kind = self._iommu.kind
        try:
            flags, kinds = self._device_info()
            self._can_reset = bool(flags & DeviceFlag.RESET)
            for index in range(NUM_REGIONS):
                self._discover_region(index)
            self._vectors = self._vector_count(IrqIndex.MSIX, kinds)
            self._ranges = self._iommu.ranges()
            self._power_at = find_capability(self._pread(_CONFIG, 0, _CAPABILITIES.stop), PM_CAPABILITY)
            self._unplug = _UnplugWatch(weak_callback(self._let_go))  # it must not keep one that nobody closed
        except OSError as error:
            self._iommu.close()
            if isinstance(error, NpuError):
                raise
            raise self._lost(error) from error
        except BaseException:
            self._iommu.close()
            raise
        self.hang_up_fd = self._unplug.hang_up_fd
        weakref.finalize(self, self._unplug.close).atexit = False
        _open_transports.add(self)
        try:
            if self._vector_count(IrqIndex.REQ, kinds):
                self._set_irqs(IrqIndex.REQ, 0, [self._unplug.request_fd])
        except BaseException:
            self.close()
            raise

    # --- opening -----------------------------------------------------------------------------------------------

    def _check_bound(self, folder: Path) -> None:
        if not folder.is_dir():
            raise DeviceNotFound(
                f"{self.address}: no such function on the PCI bus", device=self.address, remedy="see npuctl list"
            )
        if ids_of(folder) != OUR_IDS:  # opening it would reset somebody else's hardware
            raise DeviceNotFound(
                f"{self.address} is {ids_of(folder)}, not one of ours ({OUR_IDS})",
                device=self.address,
                remedy="see npuctl list",
            )
        driver = driver_of(folder)
        if driver != VFIO_DRIVER:
            raise wrong_driver(self.address, driver)

    def _device_info(self) -> tuple[int, int]:
        """(flags, number of interrupt types)."""
        answer = bytearray(DEVICE_INFO.pack(DEVICE_INFO.size, 0, 0, 0))
        fcntl.ioctl(self._iommu.device, vfio.DEVICE_GET_INFO, answer)
        _, flags, _, kinds = DEVICE_INFO.unpack_from(answer)
        return flags, kinds

    def _discover_region(self, index: int) -> None:
        answer = bytearray(REGION_INFO.pack(REGION_INFO.size, 0, index, 0, 0, 0))
        try:
            fcntl.ioctl(self._iommu.device, vfio.DEVICE_GET_REGION_INFO, answer)
        except OSError as error:
            if error.errno == errno.EINVAL:  # a region this function does not have
                return
            raise
        _, needed = decode_region_info(bytes(answer[: REGION_INFO.size]))
        if needed > len(answer):
            answer = bytearray(REGION_INFO.pack(needed, 0, index, 0, 0, 0)) + bytearray(needed - REGION_INFO.size)
            fcntl.ioctl(self._iommu.device, vfio.DEVICE_GET_REGION_INFO, answer)
        described, _ = decode_region_info(bytes(answer))
        if described.size:
            whole = ((0, described.size),) if described.flags & RegionFlag.MMAP else ()
            readable, writable = bool(described.flags & RegionFlag.READ), bool(described.flags & RegionFlag.WRITE)
            info = RegionInfo(index, described.size, readable, writable, described.areas or whole)
            self._regions[index] = _Region(info, described.offset)

    def _vector_count(self, kind: IrqIndex, kinds: int) -> int:
        if kind >= kinds:
            return 0
        answer = bytearray(IRQ_INFO.pack(IRQ_INFO.size, 0, kind, 0))
        fcntl.ioctl(self._iommu.device, vfio.DEVICE_GET_IRQ_INFO, answer)
        *_, count = IRQ_INFO.unpack_from(answer)
        return int(count)

    # --- the interface -----------------------------------------------------------------------------------------

    def regions(self) -> dict[int, RegionInfo]:
        """The regions of non-zero size, by number."""
        return {index: region.info for index, region in self._regions.items()}

    def config_read(self, offset: int, size: int) -> bytes:
        """Read configuration space."""
        return self._pread(_CONFIG, offset, size)

    def config_write(self, offset: int, data: bytes) -> None:
        """Write configuration space. Mappings are revoked if that may stop the function from decoding its BARs."""
        with self._lock:
            self._place(_CONFIG, offset, len(data))
            if _may_stop_decoding(offset, data):
                self._revoke()
            self._pwrite(_CONFIG, offset, data)

    def read(self, region: int, offset: int, width: int) -> int:
        """One register read; all ones while the function does not decode."""
        window = self._window(region, offset, width)
        if window is not None:
            value = window.load[width](offset - window.first)
            if window.valid:
                return value
        if width not in _WIDTHS:
            raise self._outside(region, offset, width)
        return int.from_bytes(self._pread(region, offset, width), "little")

    def write(self, region: int, offset: int, value: int, width: int) -> None:
        """One register write; dropped while the function does not decode."""
        window = self._window(region, offset, width)
        if window is not None:
            window.store[width](offset - window.first, value)
            return
        if width not in _WIDTHS:
            raise self._outside(region, offset, width)
        self._pwrite(region, offset, value.to_bytes(width, "little"))

    def map_region(self, region: int, offset: int, size: int) -> memoryview:
        """Map part of a region. The view is revoked by resets, and by whatever else stops the function's decoding."""
        known = self._regions.get(region)
        if known is None or not any(
            at <= offset and size > 0 and offset + size <= at + length for at, length in known.info.mappable
        ):
            raise ValueError(f"{self.address}: {size} bytes at {offset:#x} of region {region} cannot be mapped")
        with self._lock:
            self._check_open()
            if not self._decodes():
                raise ValueError(f"{self.address}: region {region} cannot be mapped while memory decoding is off")
            return self._map(known, offset, size)

    def dma_map(self, fd: int, offset: int, iova: int, size: int) -> None:
        """Pin part of a memory file and let the device reach it. Raises HostMemoryLimit, ValueError."""
        if size <= 0 or os.fstat(fd).st_size < offset + size:
            raise ValueError(f"{self.address}: {size} bytes at {offset:#x} of a file of {os.fstat(fd).st_size} bytes")
        try:
            pages = map_memory_file(fd, offset + size)[offset:]
        except OSError as error:  # part of a huge page, say
            raise ValueError(f"{self.address}: {size} bytes at {offset:#x} of a file: {error.strerror}") from error
        address = np.frombuffer(pages, np.uint8).ctypes.data
        with self._lock:
            self._check_open()
            if not any(first <= iova and iova + size - 1 <= last for first, last in self._ranges):
                raise ValueError(f"{self.address}: {size:#x} bytes at {iova:#x} are outside the bus address ranges")
            if iova in self._mapped:
                raise ValueError(f"{self.address}: bus address {iova:#x} is mapped")
            mapped_bytes = sum(mapped for mapped, _ in self._mapped.values())
            self._mapped[iova] = (size, pages)  # first, so that Ctrl-C in the kernel leaves it to be taken back
            try:
                self._iommu.map(address, iova, size, mapped_bytes)
            except (NpuError, ValueError):
                del self._mapped[iova]
                raise

    def dma_unmap(self, iova: int, size: int) -> None:
        """Take a mapping back. Raises ValueError when there is none like it."""
        with self._lock:
            self._check_open()
            if iova not in self._mapped or self._mapped[iova][0] != size:
                raise ValueError(f"{self.address}: {size:#x} bytes at bus address {iova:#x} are not mapped")
            try:
                self._iommu.unmap(iova, size)
            except OSError as error:
                if error.errno != errno.ENOENT:  # else a map that was cut short
                    raise self._lost(error) from error
            del self._mapped[iova]

    def iova_ranges(self) -> tuple[tuple[int, int], ...]:
        """What the IOMMU leaves free."""
        return self._ranges

    def interrupt_count(self) -> int:
        """Number of MSI-X vectors."""
        return self._vectors

    def set_interrupts(self, eventfds: Sequence[int | None]) -> None:
        """Signal eventfd i on vector i from now on. Raises ValueError for more eventfds than vectors."""
        if len(eventfds) > self._vectors:
            raise ValueError(f"{self.address} has {self._vectors} vectors, not {len(eventfds)}")
        wanted = [vfio.EVENTFD_NONE if fd is None else fd for fd in eventfds]
        self._set_irqs(IrqIndex.MSIX, 0, wanted + [vfio.EVENTFD_NONE] * (self._vectors - len(wanted)))

    def _set_irqs(self, kind: IrqIndex, start: int, eventfds: Sequence[int]) -> None:
        flags = IrqSet.DATA_EVENTFD | IrqSet.ACTION_TRIGGER
        data = struct.pack(f"<{len(eventfds)}i", *eventfds)
        request = IRQ_SET.pack(IRQ_SET.size + len(data), flags, kind, start, len(eventfds)) + data
        with self._lock:
            self._check_open()
            try:
                fcntl.ioctl(self._iommu.device, vfio.DEVICE_SET_IRQS, bytearray(request))
            except OSError as error:
                raise self._failed(error, f"connect {len(eventfds)} interrupts") from error

    def reset(self) -> None:
        """Reset the function; the kernel restores its configuration space. Mapped views are revoked."""
        with self._lock:
            self._check_open()
            if not self._can_reset:
                raise UnsupportedPlatform(
                    f"{self.address}: the kernel knows no way to reset this function",
                    device=self.address,
                    subsystem="vfio",
                    code="no-reset",
                    remedy="it has no function level reset capability; power-cycle the machine",
                )
            self._revoke()
            self._reset_soon()

    def _reset_soon(self) -> None:
        """The kernel says EAGAIN while somebody else has the function's lock, as when it is being unbound."""
        deadline = time.monotonic() + timeouts.RESET_RETRY_S
        while True:
            try:
                fcntl.ioctl(self._iommu.device, vfio.DEVICE_RESET, 0)
                return
            except OSError as error:
                if error.errno != errno.EAGAIN or time.monotonic() > deadline:
                    raise self._failed(error, "reset the function") from error
            time.sleep(timeouts.RESET_RETRY_POLL_S)

    def alive(self) -> bool:
        """Whether it is open, and the kernel has not asked for it back."""
        return self._ended is None

    def progress(self) -> None:
        """Yield the CPU."""
        os.sched_yield()

    def close(self) -> None:
        """Let the function go; idempotent. Views that are left read nothing of the device any more."""
        self._end(Closed(f"{self.address} is closed", device=self.address))
        self._unplug.close()

    def abandon_in_child(self) -> None:
        """Close this process's copies of the descriptors, which would keep the function from everybody else."""
        _open_transports.discard(self)
        self._ended = Closed(f"{self.address} belongs to the parent process", device=self.address)
        self._lock = threading.RLock()
        self._windows = {}
        self._iommu.close()
        self._unplug.abandon_in_child()

    # --- the end -----------------------------------------------------------------------------------------------

    def _let_go(self) -> None:
        """The kernel asks for the function back, and waits until nothing of ours holds it."""
        lost = DeviceLost(
            f"{self.address} is being unplugged or unbound",
            device=self.address,
            subsystem="vfio",
            remedy="open another device, or this one when it is back",
        )
        self._end(lost)
        tell = self.on_unplug
        if tell is not None:
            tell(lost)

    def _end(self, reason: NpuError) -> None:
        """Refuse new work for this reason, and let everything go; what Ctrl-C cut short, another call completes."""
        with self._lock:
            if self._ended is None:
                self._ended = reason
            try:
                self._revoke()
            finally:
                self._mapped.clear()
                self._iommu.close()

    # --- mappings ----------------------------------------------------------------------------------------------

    def _window(self, region: int, offset: int, width: int) -> _Window | None:
        """The mapping to make an access through; None where it goes through the kernel."""
        windows = self._windows.get(region)
        if windows is None:
            windows = self._map_windows(region)
        for window in windows:
            if window.first <= offset and offset + width <= window.end and width in _WIDTHS and not offset % width:
                return window
        return None

    def _map_windows(self, region: int) -> tuple[_Window, ...]:
        with self._lock:
            known = self._regions.get(region)
            if known is None or self._ended is not None or not known.info.mappable or not self._decodes():
                return ()
            if region not in self._windows:
                areas = ((at, size) for at, size in known.info.mappable if not (known.file_offset + at) % PAGE_BYTES)
                self._windows[region] = tuple(_Window(at, self._map(known, at, size)) for at, size in areas)
            return self._windows[region]

    def _map(self, region: _Region, offset: int, size: int) -> memoryview:
        """With the lock, while the function decodes."""
        lead = offset % mmap.ALLOCATIONGRANULARITY
        try:
            mapping = DeviceMapping(
                self._iommu.device,
                region.file_offset + offset - lead,
                lead + size,
                readable=region.info.readable,
                writable=region.info.writable,
            )
        except OSError as error:
            raise self._lost(error) from error
        self._mappings = [*(known for known in self._mappings if known.mapped), mapping]
        return mapping.take_view()[lead:]

    def _revoke(self) -> None:
        """With the lock: from here on no mapping of ours can be hurt by what happens to the function."""
        for group in self._windows.values():
            for window in group:
                window.valid = False
        self._windows = {}
        while self._mappings:
            self._mappings[-1].revoke()
            self._mappings.pop()  # last: cut short by Ctrl-C, this can be repeated

    def _decodes(self) -> bool:
        """Whether the function answers at its BARs: COMMAND lets it, and power is on."""
        if not self._pread(_CONFIG, COMMAND_OFFSET, 1)[0] & COMMAND_MEMORY:
            return False
        if self._power_at is None:
            return True
        return self._pread(_CONFIG, self._power_at + PM_CONTROL_OFFSET, 1)[0] & PM_POWER_STATE == D0

    # --- helpers -----------------------------------------------------------------------------------------------

    def _pread(self, region: int, offset: int, size: int) -> bytes:
        with self._lock:
            at = self._place(region, offset, size)
            try:
                data = os.pread(self._iommu.device, size, at)
            except OSError as error:
                if error.errno == errno.EIO and region != _CONFIG:  # it does not decode
                    return b"\xff" * size
                raise self._lost(error) from error
        if len(data) != size:
            raise self._lost(OSError(errno.EIO, f"a read of {size} bytes returned {len(data)}"))
        return data

    def _pwrite(self, region: int, offset: int, data: bytes) -> None:
        with self._lock:
            at = self._place(region, offset, len(data))
            try:
                os.pwrite(self._iommu.device, data, at)
            except OSError as error:
                if error.errno == errno.EIO and region != _CONFIG:
                    return
                raise self._lost(error) from error

    def _place(self, region: int, offset: int, size: int) -> int:
        self._check_open()
        known = self._regions.get(region)
        if known is None or offset < 0 or size <= 0 or offset + size > known.info.size_bytes:
            raise self._outside(region, offset, size)
        return known.file_offset + offset

    def _outside(self, region: int, offset: int, size: int) -> ValueError:
        known = self._regions.get(region)
        return ValueError(
            f"{self.address}: an access of {size} bytes at {offset:#x} of region {region}, which has "
            f"{known.info.size_bytes if known else 0:#x} bytes; registers are 1, 2, 4 or 8 bytes wide"
        )

    def _failed(self, error: OSError, what: str) -> NpuError:
        """What the kernel would not do; DeviceLost only where that means that the function is gone."""
        if error.errno in _GONE:
            return self._lost(error)
        return NpuError(
            f"{self.address}: the kernel did not {what}: {error.strerror}",
            device=self.address,
            subsystem="vfio",
            cause=error.strerror,
            code="kernel-refused",
            remedy="see the kernel's log (dmesg); try again",
        )

    def _lost(self, error: OSError) -> DeviceLost:
        return DeviceLost(
            f"{self.address} is lost: {error.strerror}",
            device=self.address,
            subsystem="vfio",
            cause=error.strerror,
            remedy="see the kernel's log (dmesg), then open it again",
        )

    def _check_open(self) -> None:
        if self._ended is not None:
            raise self._ended.again()


def wrong_driver(address: str, driver: str | None) -> DeviceNotFound:
    """A card that VFIO has not got."""
    return DeviceNotFound(
        f"{address} is bound to {driver or 'no driver'}, not to {VFIO_DRIVER}",
        device=address,
        remedy=f"npuctl bind -d {address}",
    )


_open_transports: weakref.WeakSet[VfioTransport] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for transport in list(_open_transports):
        transport.abandon_in_child()


os.register_at_fork(after_in_child=_after_fork_in_child)


class _UnplugWatch:
    """A thread that waits for the kernel's request to give the function back, whatever the program is doing."""

    def __init__(self, on_request: Callable[[], None]) -> None:
        self._on_request = on_request
        self.request_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._stop_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.hang_up_fd, self._hold = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        """Whoever waits on the first end learns that the second was closed: the function is gone."""
        self._fds = [self.request_fd, self._stop_fd, self.hang_up_fd]
        self._lock = threading.Lock()
        self._hold_lock = threading.Lock()
        self._answering = False
        self._thread = threading.Thread(target=self._watch, name="npu-unplug-watch", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread, unless it is the caller; idempotent."""
        with self._lock:
            if not self._fds:
                return
            os.eventfd_write(self._stop_fd, 1)
            if not self._answering:  # else it may well wait for our caller, and needs its descriptors no more
                self._thread.join(timeouts.UNPLUG_WATCH_S)
            self._hang_up()
            while self._fds:
                os.close(self._fds.pop())

    def abandon_in_child(self) -> None:
        """The thread is not here; the descriptors are."""
        self._lock, self._hold_lock = threading.Lock(), threading.Lock()
        self._hang_up()
        while self._fds:
            os.close(self._fds.pop())

    def _watch(self) -> None:
        poller = select.poll()
        poller.register(self.request_fd, select.POLLIN)
        poller.register(self._stop_fd, select.POLLIN)
        ready = {fd for fd, _ in poller.poll()}
        if self._stop_fd in ready:
            return
        self._answering = True
        try:
            self._on_request()
        finally:
            self._hang_up()

    def _hang_up(self) -> None:
        with self._hold_lock:
            hold, self._hold = self._hold, -1
        if hold >= 0:
            with contextlib.suppress(OSError):
                os.close(hold)


def _may_stop_decoding(offset: int, data: bytes) -> bool:
    """Whether a write to configuration space may turn memory decoding off, power the function down or reset it."""
    end = offset + len(data)
    if offset <= COMMAND_OFFSET < end and not data[COMMAND_OFFSET - offset] & COMMAND_MEMORY:
        return True
    return offset < _CAPABILITIES.stop and end > _CAPABILITIES.start
