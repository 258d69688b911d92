"""A function behind a vfio-user socket: the emulator's, or any other server's. The server is not trusted."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import select
import socket
from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

from driver_shim import timeouts
from driver_shim.errors import (
    ContractMismatch,
    DeviceBusy,
    DeviceLost,
    DeviceNotFound,
    HostMemoryLimit,
    PermissionDenied,
    Timeout,
)
from driver_shim.protocol.vfio_user import (
    DEVICE_INFO,
    DMA_MAP,
    DMA_UNMAP,
    IRQ_INFO,
    IRQ_SET,
    MAJOR,
    MAX_FDS,
    MAX_REGION_AREAS,
    MINOR,
    NUM_REGIONS,
    OURS,
    REGION_ACCESS,
    REGION_INFO,
    SPARSE_AREA,
    SPARSE_MMAP,
    Capabilities,
    Command,
    DeviceFlag,
    DmaFlag,
    IrqIndex,
    IrqSet,
    ProtocolError,
    RegionDescription,
    RegionFlag,
    RegionIndex,
    decode_region_info,
    decode_version,
    encode_version,
)
from driver_shim.transport.base import RegionInfo, Transport
from driver_shim.transport.vfio_user_channel import MAX_CHUNK_BYTES, Channel, Refused, limit_sends

PREFIX = "vfio-user:"
LAST_IOVA = (1 << 64) - 1
_MAX_REGION_BYTES = 1 << 62
_MAX_MSIX_VECTORS = 2048
"""PCI allows no more."""
_LARGEST_REGION_INFO = REGION_INFO.size + SPARSE_MMAP.size + MAX_REGION_AREAS * SPARSE_AREA.size
_WIDTHS = (1, 2, 4, 8)
_CONFIG = int(RegionIndex.CONFIG)
_GONE = select.POLLHUP | select.POLLERR | select.POLLNVAL | select.POLLRDHUP
_OUT_OF_MEMORY = (errno.ENOMEM, errno.ENOSPC, errno.EMFILE, errno.ENFILE)


class _Region(NamedTuple):
    info: RegionInfo
    file_offset: int
    fd: int | None
    """The server's file behind the mappable areas; ours to close."""


class VfioUserTransport(Transport):
    """A vfio-user client. Make one with `connect` or `from_socket`."""

    name = "vfio-user"

    def __init__(self, channel: Channel, start_limit_s: float) -> None:
        """Negotiate over a fresh channel, which is taken over: it is closed if that fails."""
        self.address = channel.address
        self._channel = channel
        self._regions: dict[int, _Region] = {}
        try:
            channel.limit(start_limit_s)
            self._capabilities = self._negotiate()
            channel.limit(timeouts.MESSAGE_S)
            self._check_device()
            for index in range(NUM_REGIONS):
                self._discover_region(index)
            if _CONFIG not in self._regions:
                raise self._mismatch("it has no configuration space")
            self._vectors = self._count_vectors()
        except BaseException:
            self.close()
            raise
        self._sizes = {index: region.info.size_bytes for index, region in self._regions.items()}
        self.hang_up_fd = channel.fileno()

    @classmethod
    def connect(cls, path: str | os.PathLike[str], timeout: float = timeouts.MESSAGE_S) -> VfioUserTransport:
        """Connect to the socket at `path`; `timeout` seconds bound the connection and, again, its first reply.

        Raises DeviceNotFound, PermissionDenied, DeviceBusy (another client is being served), Timeout, DeviceLost,
        ContractMismatch.
        """
        address = PREFIX + os.fspath(path)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            # A full backlog makes connect() wait as long as a send would.
            limit_sends(sock, timeout)
            sock.connect(os.fspath(path))
        except OSError as error:
            sock.close()
            raise _connect_error(error, address) from error
        except BaseException:
            sock.close()
            raise
        return cls(Channel(sock, address), timeout)

    @classmethod
    def from_socket(
        cls,
        sock: socket.socket,
        address: str = "emulator",
        timeout: float = timeouts.EMULATOR_START_S,
        peer_pid: int | None = None,
    ) -> VfioUserTransport:
        """Talk over a connected socket, which is taken over; its server may take `timeout` seconds to start.

        `peer_pid` is the server's process, where that is the caller's own.

        Raises DeviceBusy, Timeout (it does not answer), DeviceLost, ContractMismatch.
        """
        transport = cls(Channel(sock, address), timeout)
        transport.peer_pid = peer_pid
        return transport

    # --- opening -----------------------------------------------------------------------------------------------

    def _negotiate(self) -> Capabilities:
        try:
            payload, _ = self._channel.request(Command.VERSION, encode_version(MAJOR, MINOR, OURS))
        except DeviceLost as lost:
            if not self._channel.silent:
                raise
            raise Timeout(
                f"{self.address}: {lost.cause}",
                device=self.address,
                subsystem="vfio-user",
                cause=lost.cause,
                remedy="what serves it is stopped or overloaded: look at that process, or restart it",
            ) from lost
        except Refused as refused:
            if refused.errno == errno.EBUSY:
                raise DeviceBusy(
                    f"{self.address} serves another client",
                    device=self.address,
                    remedy="close the other client, or start a device of your own",
                ) from refused
            raise self._mismatch(f"it refused vfio-user {MAJOR}.{MINOR}: {refused.strerror}") from refused
        try:
            version = decode_version(payload)
        except ProtocolError as error:
            raise self._mismatch(str(error)) from error
        if version.major != MAJOR or version.minor > MINOR:
            raise self._mismatch(f"it answered vfio-user {MAJOR}.{MINOR} with {version.major}.{version.minor}")
        return version.capabilities

    def _check_device(self) -> None:
        request = DEVICE_INFO.pack(DEVICE_INFO.size, 0, 0, 0)
        payload = self._ask(Command.DEVICE_GET_INFO, request, DEVICE_INFO.size)
        _, flags, regions, interrupts = DEVICE_INFO.unpack_from(payload)
        if not flags & DeviceFlag.PCI or regions < NUM_REGIONS - 1 or interrupts <= IrqIndex.MSIX:
            raise self._mismatch(f"it is no PCI device: flags {flags:#x}, {regions} regions, {interrupts} IRQ types")

    def _discover_region(self, index: int) -> None:
        argsz = REGION_INFO.size
        for _ in range(2):  # once more when the first answer says that it takes more room
            request = REGION_INFO.pack(argsz, 0, index, 0, 0, 0)
            try:
                payload, fds = self._channel.request(Command.DEVICE_GET_REGION_INFO, request, max_fds=1)
            except Refused as refused:
                raise self._mismatch(f"it refused to describe region {index}: {refused.strerror}") from refused
            fd = fds[0] if fds else None
            try:
                described, needed = self._described(payload, index)
            except BaseException:
                _close(fd)
                raise
            if needed <= argsz or needed > _LARGEST_REGION_INFO:
                break
            _close(fd)
            argsz = needed
        if described.size == 0:
            _close(fd)
            return
        mappable = described.areas or ((0, described.size),) if described.flags & RegionFlag.MMAP else ()
        if fd is None:
            mappable = ()
        info = RegionInfo(
            index,
            described.size,
            bool(described.flags & RegionFlag.READ),
            bool(described.flags & RegionFlag.WRITE),
            mappable,
        )
        self._regions[index] = _Region(info, described.offset, fd)

    def _described(self, payload: bytes, index: int) -> tuple[RegionDescription, int]:
        try:
            described, needed = decode_region_info(payload)
        except ProtocolError as error:
            raise self._mismatch(str(error)) from error
        if described.number != index or max(described.size, described.offset) > _MAX_REGION_BYTES:
            raise self._mismatch(f"it described region {index} as {described}")
        return described, needed

    def _count_vectors(self) -> int:
        request = IRQ_INFO.pack(IRQ_INFO.size, 0, IrqIndex.MSIX, 0)
        payload = self._ask(Command.DEVICE_GET_IRQ_INFO, request, IRQ_INFO.size)
        *_, index, count = IRQ_INFO.unpack_from(payload)
        if index != IrqIndex.MSIX or count > _MAX_MSIX_VECTORS:
            raise self._mismatch(f"it has {count} MSI-X vectors (of interrupt type {index})")
        return int(count)

    # --- the interface -----------------------------------------------------------------------------------------

    def regions(self) -> dict[int, RegionInfo]:
        """The regions of non-zero size, by number."""
        return {index: region.info for index, region in self._regions.items()}

    def config_read(self, offset: int, size: int) -> bytes:
        """Read configuration space."""
        self._inside(_CONFIG, offset, size)
        parts = []
        for at in range(offset, offset + size, MAX_CHUNK_BYTES):
            count = min(MAX_CHUNK_BYTES, offset + size - at)
            asked = REGION_ACCESS.pack(at, _CONFIG, count)
            payload = self._ask(Command.REGION_READ, asked, REGION_ACCESS.size + count)
            if payload[: REGION_ACCESS.size] != asked:
                raise self._mismatch(f"its reply to a read of configuration space at {at:#x} does not fit")
            parts.append(payload[REGION_ACCESS.size :])
        return b"".join(parts)

    def config_write(self, offset: int, data: bytes) -> None:
        """Write configuration space; returns when the device has taken it."""
        self._inside(_CONFIG, offset, len(data))
        for start in range(0, len(data), MAX_CHUNK_BYTES):
            part = data[start : start + MAX_CHUNK_BYTES]
            request = REGION_ACCESS.pack(offset + start, _CONFIG, len(part)) + part
            self._ask(Command.REGION_WRITE, request, REGION_ACCESS.size)

    def read(self, region: int, offset: int, width: int) -> int:
        """One register read."""
        if region not in self._sizes or offset + width > self._sizes[region] or offset < 0 or width not in _WIDTHS:
            raise self._outside(region, offset, width)
        try:
            return self._channel.read_register(region, offset, width)
        except Refused as refused:
            raise self._mismatch(
                f"it refused a read of {width} bytes at {offset:#x} of region {region}: {refused.strerror}"
            ) from refused

    def write(self, region: int, offset: int, value: int, width: int) -> None:
        """One register write, posted."""
        if region not in self._sizes or offset + width > self._sizes[region] or offset < 0 or width not in _WIDTHS:
            raise self._outside(region, offset, width)
        self._channel.post_register(region, offset, value, width)

    def map_region(self, region: int, offset: int, size: int) -> memoryview:
        """Map part of a region; the mapping lives as long as the view.

        Raises ValueError where it is not mappable, ContractMismatch when touching the server's file could kill us.
        """
        known = self._regions.get(region)
        inside = known is not None and any(
            start <= offset and size > 0 and offset + size <= start + length for start, length in known.info.mappable
        )
        if known is None or known.fd is None or not inside:
            raise ValueError(f"{self.address}: {size} bytes at {offset:#x} of region {region} cannot be mapped")
        first = known.file_offset + offset
        self._check_file(known.fd, region, first + size)
        protection = mmap.PROT_READ * known.info.readable | mmap.PROT_WRITE * known.info.writable
        lead = first % mmap.ALLOCATIONGRANULARITY
        try:
            mapping = mmap.mmap(known.fd, lead + size, mmap.MAP_SHARED, protection, offset=first - lead)
        except OSError as error:
            raise self._mismatch(f"its file behind region {region} cannot be mapped: {error.strerror}") from error
        return memoryview(mapping)[lead : lead + size]

    def dma_map(self, fd: int, offset: int, iova: int, size: int) -> None:
        """Let the device reach part of a file. Raises ValueError for a range that is wrong or taken."""
        access = DmaFlag.READ | DmaFlag.WRITE
        request = DMA_MAP.pack(DMA_MAP.size, access, offset, iova, size)
        try:
            self._channel.request(Command.DMA_MAP, request, (fd,))
        except Refused as refused:
            what = f"{self.address} refused {size:#x} bytes at bus address {iova:#x}: {refused.strerror}"
            if refused.errno in _OUT_OF_MEMORY:
                raise HostMemoryLimit(what, device=self.address, remedy="free host buffers") from refused
            raise ValueError(what) from refused

    def dma_unmap(self, iova: int, size: int) -> None:
        """Take a mapping back. Raises ValueError when there is none like it."""
        request = DMA_UNMAP.pack(DMA_UNMAP.size, 0, iova, size)
        try:
            self._channel.request(Command.DMA_UNMAP, request)
        except Refused as refused:
            raise ValueError(
                f"{self.address}: {size:#x} bytes at bus address {iova:#x} are not mapped ({refused.strerror})"
            ) from refused

    def iova_ranges(self) -> tuple[tuple[int, int], ...]:
        """The whole bus: the protocol knows no limits."""
        return ((0, LAST_IOVA),)

    def interrupt_count(self) -> int:
        """Number of MSI-X vectors."""
        return self._vectors

    def set_interrupts(self, eventfds: Sequence[int | None]) -> None:
        """Signal eventfd i on vector i from now on. Raises ValueError for more eventfds than vectors."""
        if len(eventfds) > self._vectors:
            raise ValueError(f"{self.address} has {self._vectors} vectors, not {len(eventfds)}")
        wanted = list(enumerate([*eventfds, *[None] * (self._vectors - len(eventfds))]))
        room = max(1, min(MAX_FDS, self._capabilities.max_msg_fds))
        for connected, run in groupby(wanted, lambda entry: entry[1] is not None):
            entries = list(run)
            step = room if connected else len(entries)
            for at in range(0, len(entries), step):
                part = entries[at : at + step]
                fds = [fd for _, fd in part if fd is not None]
                flags = IrqSet.DATA_EVENTFD | IrqSet.ACTION_TRIGGER
                request = IRQ_SET.pack(IRQ_SET.size, flags, IrqIndex.MSIX, part[0][0], len(part))
                try:
                    self._channel.request(Command.DEVICE_SET_IRQS, request, fds)
                except Refused as refused:
                    raise ValueError(f"{self.address} refused eventfds {fds}: {refused.strerror}") from refused

    def reset(self) -> None:
        """Reset the function."""
        self._ask(Command.DEVICE_RESET, b"", 0)

    def alive(self) -> bool:
        """Whether the server has not hung up."""
        if self._channel.lost:
            return False
        poller = select.poll()
        try:
            poller.register(self._channel.fileno(), select.POLLRDHUP)
        except (ValueError, OSError):
            return False
        return not any(event & _GONE for _, event in poller.poll(0))

    def progress(self) -> None:
        """Yield the CPU."""
        os.sched_yield()

    def close(self) -> None:
        """Hang up; idempotent. Mappings live on until their last view goes."""
        regions, self._regions = self._regions, {}
        for region in regions.values():
            _close(region.fd)
        self._channel.close()

    def abandon_in_child(self) -> None:
        """Close this process's copies: else the server would not learn of the parent's end."""
        self.close()

    # --- helpers -----------------------------------------------------------------------------------------------

    def _ask(self, command: Command, request: bytes, reply_bytes: int) -> bytes:
        """A request that the server may not refuse, and whose reply has at least this size."""
        try:
            payload, _ = self._channel.request(command, request)
        except Refused as refused:
            raise self._mismatch(f"it refused {command.name}: {refused.strerror}") from refused
        if len(payload) < reply_bytes:
            raise self._mismatch(f"its reply to {command.name} has {len(payload)} bytes instead of {reply_bytes}")
        return payload

    def _inside(self, region: int, offset: int, size: int) -> None:
        if offset < 0 or size < 0 or offset + size > self._sizes[region]:
            raise self._outside(region, offset, size)

    def _outside(self, region: int, offset: int, size: int) -> ValueError:
        return ValueError(
            f"{self.address}: an access of {size} bytes at {offset:#x} of region {region}, which has "
            f"{self._sizes.get(region, 0):#x} bytes; registers are 1, 2, 4 or 8 bytes wide"
        )

    def _mismatch(self, what: str) -> ContractMismatch:
        return ContractMismatch(f"{self.address}: {what}", device=self.address, subsystem="vfio-user", cause=what)

    def _check_file(self, fd: int, region: int, end: int) -> None:
        """A file that is too short, or may become so, would kill whoever touches its mapping."""
        seals = 0
        with contextlib.suppress(OSError):
            seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
        if not seals & fcntl.F_SEAL_SHRINK:
            raise self._mismatch(f"its file behind region {region} is not sealed against shrinking")
        size = os.fstat(fd).st_size
        if size < end:
            raise self._mismatch(f"its file behind region {region} has {size:#x} bytes, the mapping ends at {end:#x}")


def _close(fd: int | None) -> None:
    if fd is not None:
        os.close(fd)


def _connect_error(error: OSError, address: str) -> Exception:
    """The error to raise when connect() failed."""
    if error.errno in (errno.EACCES, errno.EPERM):
        return PermissionDenied(
            f"{address}: no permission to connect", device=address, remedy="run as the user who serves it"
        )
    if error.errno == errno.EAGAIN:
        return DeviceBusy(f"{address}: nobody takes the connection", device=address, remedy="try again later")
    return DeviceNotFound(
        f"{address}: {error.strerror or error}", device=address, remedy="check the path, or start what serves it"
    )
