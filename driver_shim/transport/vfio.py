"""A function bound to vfio-pci, through a VFIO group and a type1 container."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import select
import struct
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from driver_shim.errors import (
    Closed,
    DeviceBusy,
    DeviceLost,
    DeviceNotFound,
    HostMemoryLimit,
    NpuError,
    PermissionDenied,
)
from driver_shim.mapping import map_memory_file
from driver_shim.protocol import vfio_ioctls as vfio
from driver_shim.protocol.vfio_user import (
    DEVICE_INFO,
    IRQ_INFO,
    IRQ_SET,
    NUM_REGIONS,
    REGION_INFO,
    DmaFlag,
    IrqIndex,
    IrqSet,
    RegionFlag,
    RegionIndex,
    decode_region_info,
)
from driver_shim.transport.base import RegionInfo, Transport

PREFIX = "pci:"
SYSFS_PCI = Path("/sys/bus/pci/devices")
DEV_VFIO = Path("/dev/vfio")
DRIVER = "vfio-pci"
LAST_IOVA = (1 << 64) - 1
_CONFIG = int(RegionIndex.CONFIG)
_WIDTHS = (1, 2, 4, 8)
_FD = struct.Struct("<i")


class _Region(NamedTuple):
    info: RegionInfo
    file_offset: int
    """Where the region starts in the device's file."""


class VfioTransport(Transport):
    """A function in the hands of the kernel's VFIO. Registers trap (pread, pwrite)."""

    name = DRIVER

    def __init__(self, bus_address: str, sysfs: Path = SYSFS_PCI, dev: Path = DEV_VFIO) -> None:
        """Open the function at `bus_address` ("0000:03:00.0"); the kernel resets it.

        Raises DeviceNotFound (absent, or not bound to vfio-pci), DeviceBusy, PermissionDenied.
        """
        self.address = PREFIX + bus_address
        self._lock = threading.RLock()
        self._fds: list[int] = []
        self._regions: dict[int, _Region] = {}
        self._mapped: dict[int, tuple[int, memoryview]] = {}
        """Host memory the device can reach: bus address → size and the pages, which must live as long."""
        self._closed = False
        self._unplug = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._fds.append(self._unplug)
        self.hang_up_fd = None
        try:
            self._group_number = self._find_group(sysfs / bus_address)
            self._open(dev, bus_address)
            for index in range(NUM_REGIONS):
                self._discover_region(index)
            self._vectors = self._vector_count(IrqIndex.MSIX)
            if self._vector_count(IrqIndex.REQ):
                self._set_irqs(IrqIndex.REQ, 0, [self._unplug])
            self._ranges = self._read_iova_ranges()
        except BaseException:
            self.close()
            raise
        self._sizes = {index: region.info.size_bytes for index, region in self._regions.items()}

    # --- opening -----------------------------------------------------------------------------------------------

    def _find_group(self, folder: Path) -> str:
        if not folder.is_dir():
            raise DeviceNotFound(
                f"{self.address}: no such function on the PCI bus", device=self.address, remedy="see npuctl list"
            )
        driver = folder / "driver"
        bound = driver.resolve().name if driver.exists() else "no driver"
        if bound != DRIVER:
            raise DeviceNotFound(
                f"{self.address} is bound to {bound}, not to {DRIVER}",
                device=self.address,
                remedy=f"echo {DRIVER} > {folder}/driver_override; echo {folder.name} > /sys/bus/pci/drivers_probe",
            )
        group = folder / "iommu_group"
        if not group.exists():
            raise DeviceNotFound(
                f"{self.address} is in no IOMMU group",
                device=self.address,
                remedy="enable the IOMMU in the firmware, and on the kernel's command line (intel_iommu=on)",
            )
        return group.resolve().name

    def _open(self, dev: Path, bus_address: str) -> None:
        self._container = self._open_node(dev / "vfio")
        self._group = self._open_node(dev / self._group_number)
        status = bytearray(vfio.GROUP_STATUS.pack(vfio.GROUP_STATUS.size, 0))
        self._ioctl(self._group, vfio.GROUP_GET_STATUS, status)
        _, flags = vfio.GROUP_STATUS.unpack_from(status)
        if not flags & vfio.GroupFlag.VIABLE:
            raise DeviceBusy(
                f"{self.address}: a kernel driver holds another function of IOMMU group {self._group_number}",
                device=self.address,
                remedy=f"bind all functions of the group to {DRIVER}",
            )
        self._ioctl(self._group, vfio.GROUP_SET_CONTAINER, bytearray(_FD.pack(self._container)))
        self._ioctl(self._container, vfio.SET_IOMMU, vfio.TYPE1V2_IOMMU)
        # The name is a NUL-terminated string; the answer is the device's descriptor.
        self._device = self._ioctl(self._group, vfio.GROUP_GET_DEVICE_FD, bytearray(bus_address.encode() + b"\0"))
        self._fds.append(self._device)
        os.set_inheritable(self._device, False)

    def _open_node(self, node: Path) -> int:
        try:
            fd = os.open(node, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise self._open_error(error, node) from error
        self._fds.append(fd)
        return fd

    def _open_error(self, error: OSError, node: Path) -> NpuError:
        what = f"{self.address}: cannot open {node}: {error.strerror}"
        if error.errno in (errno.EACCES, errno.EPERM):
            return PermissionDenied(what, device=self.address, remedy=f"give yourself access to {node}")
        if error.errno == errno.EBUSY:
            return DeviceBusy(what, device=self.address, remedy="close the program that uses the device")
        return DeviceNotFound(what, device=self.address, remedy=f"modprobe {DRIVER}")

    def _discover_region(self, index: int) -> None:
        answer = bytearray(REGION_INFO.pack(REGION_INFO.size, 0, index, 0, 0, 0))
        try:
            fcntl.ioctl(self._device, vfio.DEVICE_GET_REGION_INFO, answer)
        except OSError as error:
            if error.errno == errno.EINVAL:  # a region this function does not have
                return
            raise self._lost(error) from error
        _, needed = decode_region_info(bytes(answer[: REGION_INFO.size]))
        if needed > len(answer):
            answer = bytearray(REGION_INFO.pack(needed, 0, index, 0, 0, 0)) + bytearray(needed - REGION_INFO.size)
            self._ioctl(self._device, vfio.DEVICE_GET_REGION_INFO, answer)
        described, _ = decode_region_info(bytes(answer))
        if described.size:
            whole = ((0, described.size),) if described.flags & RegionFlag.MMAP else ()
            readable, writable = bool(described.flags & RegionFlag.READ), bool(described.flags & RegionFlag.WRITE)
            info = RegionInfo(index, described.size, readable, writable, described.areas or whole)
            self._regions[index] = _Region(info, described.offset)

    def _vector_count(self, kind: IrqIndex) -> int:
        answer = bytearray(DEVICE_INFO.pack(DEVICE_INFO.size, 0, 0, 0))
        self._ioctl(self._device, vfio.DEVICE_GET_INFO, answer)
        *_, kinds = DEVICE_INFO.unpack_from(answer)
        if kind >= kinds:
            return 0
        answer = bytearray(IRQ_INFO.pack(IRQ_INFO.size, 0, kind, 0))
        self._ioctl(self._device, vfio.DEVICE_GET_IRQ_INFO, answer)
        *_, count = IRQ_INFO.unpack_from(answer)
        return int(count)

    def _read_iova_ranges(self) -> tuple[tuple[int, int], ...]:
        size = vfio.IOMMU_INFO.size
        for _ in range(2):  # once more when the first answer says that it takes more room
            answer = bytearray(vfio.IOMMU_INFO.pack(size, 0, 0, 0)) + bytearray(size - vfio.IOMMU_INFO.size)
            self._ioctl(self._container, vfio.IOMMU_GET_INFO, answer)
            size = vfio.IOMMU_INFO.unpack_from(answer)[0]
        return vfio.decode_iova_ranges(bytes(answer)) or ((0, LAST_IOVA),)

    # --- the interface -----------------------------------------------------------------------------------------

    def regions(self) -> dict[int, RegionInfo]:
        """The regions of non-zero size, by number."""
        return {index: region.info for index, region in self._regions.items()}

    def config_read(self, offset: int, size: int) -> bytes:
        """Read configuration space."""
        return self._pread(_CONFIG, offset, size)

    def config_write(self, offset: int, data: bytes) -> None:
        """Write configuration space."""
        self._pwrite(_CONFIG, offset, data)

    def read(self, region: int, offset: int, width: int) -> int:
        """One register read."""
        if width not in _WIDTHS:
            raise self._outside(region, offset, width)
        return int.from_bytes(self._pread(region, offset, width), "little")

    def write(self, region: int, offset: int, value: int, width: int) -> None:
        """One register write."""
        if width not in _WIDTHS:
            raise self._outside(region, offset, width)
        self._pwrite(region, offset, value.to_bytes(width, "little"))

    def map_region(self, region: int, offset: int, size: int) -> memoryview:
        """Map part of a region. A reset makes touching the view fatal (SIGBUS): let it go before."""
        known = self._regions.get(region)
        if known is None or not any(
            at <= offset and size > 0 and offset + size <= at + length for at, length in known.info.mappable
        ):
            raise ValueError(f"{self.address}: {size} bytes at {offset:#x} of region {region} cannot be mapped")
        with self._lock:
            self._check_open()
            protection = mmap.PROT_READ * known.info.readable | mmap.PROT_WRITE * known.info.writable
            lead = offset % mmap.ALLOCATIONGRANULARITY
            mapping = mmap.mmap(
                self._device, lead + size, mmap.MAP_SHARED, protection, offset=known.file_offset + offset - lead
            )
            return memoryview(mapping)[lead : lead + size]

    def dma_map(self, fd: int, offset: int, iova: int, size: int) -> None:
        """Pin part of a memory file and let the device reach it. Raises HostMemoryLimit, ValueError."""
        pages = map_memory_file(fd, offset + size)[offset:]
        address = np.frombuffer(pages, np.uint8).ctypes.data
        flags = DmaFlag.READ | DmaFlag.WRITE
        request = bytearray(vfio.DMA_MAP.pack(vfio.DMA_MAP.size, flags, address, iova, size))
        with self._lock:
            self._check_open()
            try:
                fcntl.ioctl(self._container, vfio.IOMMU_MAP_DMA, request)
            except OSError as error:
                raise self._map_error(error, iova, size) from error
            self._mapped[iova] = (size, pages)

    def _map_error(self, error: OSError, iova: int, size: int) -> Exception:
        what = f"{self.address}: the kernel refuses {size} bytes at bus address {iova:#x}: {error.strerror}"
        if error.errno == errno.ENOMEM:
            import resource

            pinned = sum(length for length, _ in self._mapped.values())
            limit, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
            shown = "unlimited" if limit == resource.RLIM_INFINITY else f"{limit} bytes"
            return HostMemoryLimit(
                f"{what} (locked memory is limited to {shown}; {pinned} bytes are pinned, {size} more are needed)",
                device=self.address,
                remedy=f"raise the limit of locked memory to {pinned + size} bytes at least (ulimit -l, in KiB)",
            )
        return ValueError(what)

    def dma_unmap(self, iova: int, size: int) -> None:
        """Take a mapping back. Raises ValueError when there is none like it."""
        with self._lock:
            self._check_open()
            if self._mapped.get(iova, (None,))[0] != size:
                raise ValueError(f"{self.address}: {size:#x} bytes at bus address {iova:#x} are not mapped")
            request = bytearray(vfio.DMA_UNMAP.pack(vfio.DMA_UNMAP.size, 0, iova, size))
            self._ioctl(self._container, vfio.IOMMU_UNMAP_DMA, request)
            del self._mapped[iova]

    def iova_ranges(self) -> tuple[tuple[int, int], ...]:
        """What the IOMMU can translate."""
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
            self._ioctl(self._device, vfio.DEVICE_SET_IRQS, bytearray(request))

    def reset(self) -> None:
        """Reset the function."""
        with self._lock:
            self._check_open()
            self._ioctl(self._device, vfio.DEVICE_RESET, 0)

    def alive(self) -> bool:
        """Whether the kernel has not asked for the device back, and its vendor ID still reads."""
        if self._closed or self._unplug_requested():
            return False
        try:
            return self._pread(_CONFIG, 0, 2) != b"\xff\xff"
        except (NpuError, OSError):
            return False

    def progress(self) -> None:
        """Yield the CPU."""
        os.sched_yield()

    def close(self) -> None:
        """Let the function go; idempotent."""
        with self._lock:
            self._closed = True
            self._mapped.clear()
            while self._fds:
                with contextlib.suppress(OSError):
                    os.close(self._fds.pop())

    # --- helpers -----------------------------------------------------------------------------------------------

    def _pread(self, region: int, offset: int, size: int) -> bytes:
        at = self._place(region, offset, size)
        try:
            data = os.pread(self._device, size, at)
        except OSError as error:
            raise self._lost(error) from error
        if len(data) != size:
            raise self._lost(OSError(errno.EIO, f"a read of {size} bytes returned {len(data)}"))
        return data

    def _pwrite(self, region: int, offset: int, data: bytes) -> None:
        at = self._place(region, offset, len(data))
        try:
            os.pwrite(self._device, data, at)
        except OSError as error:
            raise self._lost(error) from error

    def _place(self, region: int, offset: int, size: int) -> int:
        self._check_open()
        known = self._regions.get(region)
        if known is None or offset < 0 or size < 0 or offset + size > known.info.size_bytes:
            raise self._outside(region, offset, size)
        return known.file_offset + offset

    def _outside(self, region: int, offset: int, size: int) -> ValueError:
        known = self._regions.get(region)
        return ValueError(
            f"{self.address}: an access of {size} bytes at {offset:#x} of region {region}, which has "
            f"{known.info.size_bytes if known else 0:#x} bytes; registers are 1, 2, 4 or 8 bytes wide"
        )

    def _ioctl(self, fd: int, request: int, argument: bytearray | int) -> int:
        try:
            return fcntl.ioctl(fd, request, argument)
        except OSError as error:
            if error.errno == errno.EBUSY:
                raise DeviceBusy(
                    f"{self.address} is held by another program",
                    device=self.address,
                    remedy="close the program that uses it",
                ) from error
            raise self._lost(error) from error

    def _lost(self, error: OSError) -> DeviceLost:
        return DeviceLost(
            f"{self.address} is lost: {error.strerror}",
            device=self.address,
            subsystem="vfio",
            cause=error.strerror,
            remedy="see the kernel's log (dmesg), then open it again",
        )

    def _unplug_requested(self) -> bool:
        poller = select.poll()
        poller.register(self._unplug, select.POLLIN)
        return bool(poller.poll(0))

    def _check_open(self) -> None:
        if self._closed:
            raise Closed(f"{self.address} is closed", device=self.address)
