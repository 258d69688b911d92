"""Opening a VFIO device and mapping host memory for it: by its group and a type1 container, or by iommufd.

Both are the kernel's; iommufd is the newer one, and the only one that some systems offer. A device is opened the moment
it is joined to its IOMMU domain, which resets it.
"""

from __future__ import annotations

import abc
import ctypes
import errno
import fcntl
import os
import resource
import struct
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path

from driver_shim import timeouts
from driver_shim.cards.pci_sysfs import group_of, held_neighbours
from driver_shim.errors import DeviceBusy, DeviceNotFound, HostMemoryLimit, NpuError, PermissionDenied
from driver_shim.protocol import vfio_ioctls as vfio
from driver_shim.protocol.vfio_user import DmaFlag

IovaRanges = tuple[tuple[int, int], ...]
_WHOLE_BUS: IovaRanges = ((0, (1 << 64) - 1),)
_FD = struct.Struct("<i")
_OUT_OF_MEMORY = (errno.ENOMEM, errno.ENOSPC)
_BUSY = (errno.EBUSY, errno.EINVAL)
"""What binding a device that somebody has open fails with: the kernel gives one or the other."""


class Iommu(abc.ABC):
    """The way to one device. `device` is its descriptor, owned by this object like all others."""

    kind: str
    """As users know it: "type1" or "iommufd"."""
    device: int

    def __init__(self, address: str) -> None:
        self._address = address
        self._fds: list[int] = []
        # An object that nobody got to see, because of Ctrl-C, must not hold the device for the life of the process.
        weakref.finalize(self, _close_all, self._fds, os.getpid()).atexit = False

    @abc.abstractmethod
    def ranges(self) -> IovaRanges:
        """(first, last) bus addresses that may be mapped."""

    @abc.abstractmethod
    def _map(self, address: int, iova: int, size: int) -> None: ...

    @abc.abstractmethod
    def _unmap(self, iova: int, size: int) -> None: ...

    def map(self, address: int, iova: int, size: int, mapped_bytes: int) -> None:
        """Pin `size` bytes of this process at `address` and let the device reach them at `iova`.

        `mapped_bytes` are mapped already. Raises HostMemoryLimit, ValueError.
        """
        try:
            self._map(address, iova, size)
        except OSError as error:
            if error.errno in _OUT_OF_MEMORY:
                raise self._out_of_memory(error, size, mapped_bytes) from error
            raise ValueError(
                f"{self._address}: {size:#x} bytes at bus address {iova:#x} cannot be mapped: {error.strerror}"
            ) from error

    def unmap(self, iova: int, size: int) -> None:
        """Take a mapping back. Raises OSError."""
        self._unmap(iova, size)

    def close(self) -> None:
        """Let device and mappings go; idempotent."""
        while self._fds:
            os.close(self._fds.pop())

    def _refused(self, error: OSError, what: str) -> NpuError:
        """Why the kernel does not hand out a device whose nodes could be opened."""
        if error.errno == errno.EBUSY:
            return self._busy()
        text = f"{self._address}: the kernel does not {what}: {error.strerror}"
        if error.errno == errno.EPERM:
            return PermissionDenied(
                text,
                device=self._address,
                subsystem="vfio",
                cause="interrupts of this IOMMU are not remapped, so a device could forge them",
                remedy="switch interrupt remapping on in the firmware; npuctl doctor says more",
            )
        return DeviceNotFound(
            text, device=self._address, subsystem="vfio", cause=error.strerror, remedy="npuctl doctor says more"
        )

    def _open(self, node: Path) -> int:
        """Open a node; its descriptor is closed by `close`. Raises PermissionDenied, DeviceBusy, DeviceNotFound."""
        try:
            fd = os.open(node, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise self._open_error(error, node) from error
        self._fds.append(fd)
        return fd

    def _open_error(self, error: OSError, node: Path) -> NpuError:
        what = f"{self._address}: cannot open {node}: {error.strerror}"
        if error.errno in (errno.EACCES, errno.EPERM):
            return PermissionDenied(
                what, device=self._address, remedy="install the udev rules and join the group npu, or run as root"
            )
        if error.errno == errno.EBUSY:
            return DeviceBusy(what, device=self._address, remedy="end the process that uses the device")
        return DeviceNotFound(what, device=self._address, remedy="modprobe vfio-pci; npuctl doctor says more")

    def _busy(self) -> DeviceBusy:
        return DeviceBusy(
            f"{self._address} is held by another process",
            device=self._address,
            subsystem="vfio",
            remedy="end the process that uses it",
        )

    def _out_of_memory(self, error: OSError, size: int, mapped_bytes: int) -> HostMemoryLimit:
        limit, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
        room = "unlimited" if limit == resource.RLIM_INFINITY else f"{limit} bytes"
        return HostMemoryLimit(
            f"{self._address}: the kernel refuses to pin {size} bytes for DMA ({error.strerror}): "
            f"{mapped_bytes} are pinned, the limit of locked memory is {room}",
            device=self._address,
            subsystem="vfio",
            cause=error.strerror,
            remedy=f"free host buffers, or raise the limit: ulimit -l {(mapped_bytes + size) // 1024 + 1} (KiB)",
        )


class Type1(Iommu):
    """A group in a container of its own: every kernel with VFIO has had it, but not all have it still."""

    kind = "type1"

    def __init__(self, address: str, folder: Path, dev: Path, group: str) -> None:
        """Open the device of this `folder` in sysfs through `dev`/`group`.

        Raises DeviceNotFound, PermissionDenied, DeviceBusy.
        """
        super().__init__(address)
        try:
            self._container = self._open(dev / "vfio")
            group_fd = self._open(dev / group)
            status = bytearray(vfio.GROUP_STATUS.pack(vfio.GROUP_STATUS.size, 0))
            fcntl.ioctl(group_fd, vfio.GROUP_GET_STATUS, status)
            _, flags = vfio.GROUP_STATUS.unpack_from(status)
            if not flags & vfio.GroupFlag.VIABLE:
                raise _held_group(address, folder) or self._busy()
            fcntl.ioctl(group_fd, vfio.GROUP_SET_CONTAINER, bytearray(_FD.pack(self._container)))
            fcntl.ioctl(self._container, vfio.SET_IOMMU, vfio.TYPE1V2_IOMMU)
            # The name is a NUL-terminated string; the answer is the device's descriptor.
            name = bytearray(folder.name.encode() + b"\0")
            self.device = fcntl.ioctl(group_fd, vfio.GROUP_GET_DEVICE_FD, name)
            self._fds.append(self.device)
            os.set_inheritable(self.device, False)
        except OSError as error:
            self.close()
            if isinstance(error, NpuError):
                raise
            raise self._refused(error, f"open IOMMU group {group}") from error
        except BaseException:
            self.close()
            raise

    def ranges(self) -> IovaRanges:
        """What the kernel states, else the whole bus."""
        size = vfio.IOMMU_INFO.size
        for _ in range(2):  # once more when the first answer says that it takes more room
            answer = bytearray(vfio.IOMMU_INFO.pack(size, 0, 0, 0)) + bytearray(size - vfio.IOMMU_INFO.size)
            fcntl.ioctl(self._container, vfio.IOMMU_GET_INFO, answer)
            size = vfio.IOMMU_INFO.unpack_from(answer)[0]
        return vfio.decode_iova_ranges(bytes(answer)) or _WHOLE_BUS

    def _map(self, address: int, iova: int, size: int) -> None:
        flags = DmaFlag.READ | DmaFlag.WRITE
        request = vfio.DMA_MAP.pack(vfio.DMA_MAP.size, flags, address, iova, size)
        fcntl.ioctl(self._container, vfio.IOMMU_MAP_DMA, bytearray(request))

    def _unmap(self, iova: int, size: int) -> None:
        request = vfio.DMA_UNMAP.pack(vfio.DMA_UNMAP.size, 0, iova, size)
        fcntl.ioctl(self._container, vfio.IOMMU_UNMAP_DMA, bytearray(request))


class Iommufd(Iommu):
    """The device's own node and an I/O address space of /dev/iommu."""

    kind = "iommufd"

    def __init__(self, address: str, folder: Path, node: Path, iommu_node: Path) -> None:
        """Open the device's `node` (/dev/vfio/devices/vfioN); `folder` is the device's in sysfs. Raises likewise."""
        super().__init__(address)
        try:
            self._iommu = self._open(iommu_node)
            self.device = self._open(node)
            bind = vfio.BIND_IOMMUFD.pack(vfio.BIND_IOMMUFD.size, 0, self._iommu, 0)
            try:
                fcntl.ioctl(self.device, vfio.DEVICE_BIND_IOMMUFD, bytearray(bind))
            except OSError as error:
                if error.errno in _BUSY:
                    raise (_held_group(address, folder) or self._busy()) from error
                raise self._refused(error, "bind it to iommufd") from error
            allocated = bytearray(vfio.IOAS_ALLOCATED.pack(vfio.IOAS_ALLOCATED.size, 0, 0))
            fcntl.ioctl(self._iommu, vfio.IOAS_ALLOC, allocated)
            *_, self._space = vfio.IOAS_ALLOCATED.unpack_from(allocated)
            attach = vfio.ATTACH_IOMMUFD.pack(vfio.ATTACH_IOMMUFD.size, 0, self._space)
            fcntl.ioctl(self.device, vfio.DEVICE_ATTACH_IOMMUFD_PT, bytearray(attach))
        except OSError as error:
            self.close()
            if isinstance(error, NpuError):
                raise
            raise self._refused(error, "make an I/O address space") from error
        except BaseException:
            self.close()
            raise

    def ranges(self) -> IovaRanges:
        """What the I/O address space allows."""
        room = 1
        while True:
            ranges = ctypes.create_string_buffer(room * vfio.IOVA_RANGE.size)
            where = ctypes.addressof(ranges)
            answer = bytearray(vfio.IOAS_RANGES.pack(vfio.IOAS_RANGES.size, self._space, room, where, 0))
            try:
                fcntl.ioctl(self._iommu, vfio.IOAS_IOVA_RANGES, answer)
            except OSError as error:
                if error.errno != errno.EMSGSIZE:
                    raise
            _, _, count, _, _ = vfio.IOAS_RANGES.unpack_from(answer)
            if count <= room:
                raw = ranges.raw
                return tuple(vfio.IOVA_RANGE.unpack_from(raw, n * vfio.IOVA_RANGE.size) for n in range(count))
            room = count

    def _map(self, address: int, iova: int, size: int) -> None:
        flags = vfio.IoasMapFlag.FIXED_IOVA | vfio.IoasMapFlag.READABLE | vfio.IoasMapFlag.WRITEABLE
        request = vfio.IOAS_MAPPED.pack(vfio.IOAS_MAPPED.size, flags, self._space, address, size, iova)
        fcntl.ioctl(self._iommu, vfio.IOAS_MAP, bytearray(request))

    def _unmap(self, iova: int, size: int) -> None:
        request = vfio.IOAS_UNMAPPED.pack(vfio.IOAS_UNMAPPED.size, self._space, iova, size)
        fcntl.ioctl(self._iommu, vfio.IOAS_UNMAP, bytearray(request))


def open_device(address: str, folder: Path, dev: Path) -> Iommu:
    """Open the function of this `folder` in sysfs, by iommufd where the system offers it to us, else by its group.

    `dev` is /dev. Raises DeviceNotFound, DeviceBusy, PermissionDenied.
    """
    vfio_nodes = dev / "vfio"
    own = next(iter(sorted((folder / "vfio-dev").glob("vfio*"))), None)
    if own is not None and os.access(dev / "iommu", os.R_OK | os.W_OK):
        node = vfio_nodes / "devices" / own.name
        if os.access(node, os.R_OK | os.W_OK):
            return Iommufd(address, folder, node, dev / "iommu")
    group = group_of(folder)
    if group is None:
        raise DeviceNotFound(
            f"{address} is in no IOMMU group",
            device=address,
            remedy="enable the IOMMU in the firmware and on the kernel's command line; npuctl doctor says how",
        )
    if own is not None and not (vfio_nodes / "vfio").exists():  # this system has iommufd only: say what is wrong there
        return Iommufd(address, folder, vfio_nodes / "devices" / own.name, dev / "iommu")
    return Type1(address, folder, vfio_nodes, group)


def undisturbed(opening: Callable[[], Iommu]) -> Iommu:
    """Open a device where Ctrl-C cannot come in between the kernel's answer and our noting of it.

    KeyboardInterrupt is the main thread's, and opening takes as long as a reset does.
    """
    opened: list[Iommu] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            opened.append(opening())
        except BaseException as error:  # noqa: BLE001 - raised again below, in the caller's thread
            failed.append(error)
        finally:
            ended.set()

    ended = threading.Event()  # Thread.join would not do: interrupted, it takes the thread for ended (Python 3.11)
    worker = threading.Thread(target=run, name="npu-open", daemon=True)
    try:
        worker.start()
        ended.wait()
    except BaseException:
        deadline = time.monotonic() + timeouts.OPEN_S
        while worker in threading.enumerate() and not ended.wait(timeouts.OPEN_POLL_S):
            if time.monotonic() > deadline:
                break
        while opened:
            opened.pop().close()
        raise
    if failed:
        raise failed[0]
    return opened[0]


def _held_group(address: str, folder: Path) -> DeviceBusy | None:
    """Which kernel drivers keep the group from VFIO, if any do."""
    held = held_neighbours(folder)
    if not held:
        return None
    names = ", ".join(f"{other.bus_address} ({other.driver})" for other in held)
    return DeviceBusy(
        f"{address}: kernel drivers hold other functions of its IOMMU group: {names}",
        device=address,
        subsystem="vfio",
        remedy="bind all functions of the group to vfio-pci, or put the card elsewhere",
    )


def _close_all(fds: list[int], owner: int) -> None:
    while fds and os.getpid() == owner:
        os.close(fds.pop())
