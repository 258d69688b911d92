"""How a VFIO device is opened and host memory reaches it: by its group and a type1 container, or by iommufd.

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
from pathlib import Path

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
            return DeviceBusy(what, device=self._address, remedy="close the program that uses the device")
        return DeviceNotFound(what, device=self._address, remedy="modprobe vfio-pci; npuctl doctor says more")

    def _busy(self) -> DeviceBusy:
        return DeviceBusy(
            f"{self._address} is held by another program",
            device=self._address,
            subsystem="vfio",
            remedy="close the program that uses it",
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

    def __init__(self, address: str, bus_address: str, dev: Path, group: str) -> None:
        """Open the device `bus_address` through /dev/vfio/`group`. Raises as `Iommu._open`, DeviceBusy."""
        super().__init__(address)
        try:
            self._container = self._open(dev / "vfio")
            group_fd = self._open(dev / group)
            status = bytearray(vfio.GROUP_STATUS.pack(vfio.GROUP_STATUS.size, 0))
            fcntl.ioctl(group_fd, vfio.GROUP_GET_STATUS, status)
            _, flags = vfio.GROUP_STATUS.unpack_from(status)
            if not flags & vfio.GroupFlag.VIABLE:
                raise DeviceBusy(
                    f"{address}: a kernel driver holds another function of IOMMU group {group}",
                    device=address,
                    remedy="bind all functions of the group to vfio-pci; npuctl doctor names them",
                )
            fcntl.ioctl(group_fd, vfio.GROUP_SET_CONTAINER, bytearray(_FD.pack(self._container)))
            fcntl.ioctl(self._container, vfio.SET_IOMMU, vfio.TYPE1V2_IOMMU)
            # The name is a NUL-terminated string; the answer is the device's descriptor.
            name = bytearray(bus_address.encode() + b"\0")
            self.device = fcntl.ioctl(group_fd, vfio.GROUP_GET_DEVICE_FD, name)
            self._fds.append(self.device)
            os.set_inheritable(self.device, False)
        except OSError as error:
            self.close()
            if isinstance(error, NpuError):
                raise
            if error.errno == errno.EBUSY:
                raise self._busy() from error
            raise self._open_error(error, dev / group) from error
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

    def __init__(self, address: str, node: Path, iommu_node: Path) -> None:
        """Open the device's `node` (/dev/vfio/devices/vfioN). Raises as `Iommu._open`, DeviceBusy."""
        super().__init__(address)
        try:
            self._iommu = self._open(iommu_node)
            self.device = self._open(node)
            bind = vfio.BIND_IOMMUFD.pack(vfio.BIND_IOMMUFD.size, 0, self._iommu, 0)
            try:
                fcntl.ioctl(self.device, vfio.DEVICE_BIND_IOMMUFD, bytearray(bind))
            except OSError as error:
                if error.errno in _BUSY:
                    raise self._busy() from error
                raise self._open_error(error, node) from error
            allocated = bytearray(vfio.IOAS_ALLOCATED.pack(vfio.IOAS_ALLOCATED.size, 0, 0))
            fcntl.ioctl(self._iommu, vfio.IOAS_ALLOC, allocated)
            *_, self._space = vfio.IOAS_ALLOCATED.unpack_from(allocated)
            attach = vfio.ATTACH_IOMMUFD.pack(vfio.ATTACH_IOMMUFD.size, 0, self._space)
            fcntl.ioctl(self.device, vfio.DEVICE_ATTACH_IOMMUFD_PT, bytearray(attach))
        except OSError as error:
            self.close()
            if isinstance(error, NpuError):
                raise
            raise self._open_error(error, iommu_node) from error
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


def open_device(address: str, bus_address: str, sysfs: Path, dev: Path) -> Iommu:
    """Open the function `bus_address`, by iommufd where the system offers it to us, else by its group.

    `sysfs` is its folder there, `dev` is /dev. Raises DeviceNotFound, DeviceBusy, PermissionDenied.
    """
    vfio_nodes = dev / "vfio"
    own = next(iter(sorted((sysfs / "vfio-dev").glob("vfio*"))), None)
    if own is not None and os.access(dev / "iommu", os.R_OK | os.W_OK):
        node = vfio_nodes / "devices" / own.name
        if os.access(node, os.R_OK | os.W_OK):
            return Iommufd(address, node, dev / "iommu")
    group = sysfs / "iommu_group"
    if not group.exists():
        raise DeviceNotFound(
            f"{address} is in no IOMMU group",
            device=address,
            remedy="enable the IOMMU in the firmware and on the kernel's command line; npuctl doctor says how",
        )
    number = group.resolve().name
    if own is not None and not (vfio_nodes / "vfio").exists():  # this system has iommufd only: say what is wrong there
        return Iommufd(address, vfio_nodes / "devices" / own.name, dev / "iommu")
    return Type1(address, bus_address, vfio_nodes, number)
