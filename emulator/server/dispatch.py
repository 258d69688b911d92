"""The handlers of a negotiated client's messages: each does to the function as its message asks.

A handler returns the reply's payload and descriptors, or raises OSError, whose errno becomes an error reply. A message
that cannot be carried out whole changes nothing.
"""

from __future__ import annotations

import errno
import logging
import os
import select
from collections.abc import Callable, Sequence

from driver_shim.protocol.commands import ResetCause
from driver_shim.protocol.vfio_user import (
    DEVICE_INFO,
    DMA_MAP,
    DMA_UNMAP,
    IRQ_ACTION,
    IRQ_DATA,
    IRQ_INFO,
    IRQ_SET,
    MAX_TRANSFER_BYTES,
    NUM_IRQS,
    NUM_REGIONS,
    REGION_ACCESS,
    REGION_INFO,
    REGION_IO_FDS,
    WRITE_MULTI,
    Command,
    DeviceFlag,
    DmaFlag,
    IrqFlag,
    IrqIndex,
    IrqSet,
    ProtocolError,
    RegionDescription,
    RegionFlag,
    UnmapFlag,
    decode_writes,
    encode_region_info,
)
from driver_shim.protocol.vfio_user_framing import Message, encode_error, encode_reply
from emulator.server.connection import close_all
from emulator.server.function_port import FunctionPort

_logger = logging.getLogger("npu.emulator.server")

Reply = tuple[bytes, Sequence[int]]
"""Payload, and descriptors to send with it."""
_NO_FDS: tuple[int, ...] = ()
_DONE: Reply = (b"", _NO_FDS)
_EVENTFD_LINK = "anon_inode:[eventfd]"


class Dispatcher:
    """Carries out commands on one function."""

    def __init__(self, function: FunctionPort) -> None:
        self._function = function
        self._regions = function.regions
        self._error_and_request: dict[int, int] = {}
        """The client's eventfds for the ERR and REQ interrupts, by index."""
        self._handlers: dict[int, Callable[[Message], Reply]] = {
            Command.DMA_MAP: self._dma_map,
            Command.DMA_UNMAP: self._dma_unmap,
            Command.DEVICE_GET_INFO: self._device_info,
            Command.DEVICE_GET_REGION_INFO: self._region_info,
            Command.DEVICE_GET_REGION_IO_FDS: self._region_io_fds,
            Command.DEVICE_GET_IRQ_INFO: self._irq_info,
            Command.DEVICE_SET_IRQS: self._set_irqs,
            Command.REGION_READ: self._region_read,
            Command.REGION_WRITE: self._region_write,
            Command.DEVICE_RESET: self._reset,
            Command.REGION_WRITE_MULTI: self._write_multi,
        }
        self._fds_taken = {Command.DMA_MAP, Command.DEVICE_SET_IRQS}

    def answer(self, message: Message) -> Reply | None:
        """Carry out a command; the whole reply message, or None where none may be sent.

        Closes the message's descriptors.
        """
        number = 0
        payload, fds = _DONE
        try:
            handler = self._handlers.get(message.command)
            if not message.is_command:
                _logger.debug("ignored: a reply that nobody waits for, command %d", message.command)
            elif handler is None:
                number = errno.ENOTSUP
            elif message.fds and message.command not in self._fds_taken:
                number = errno.EINVAL
            else:
                payload, fds = handler(message)
        except ProtocolError as error:
            number = errno.EINVAL
            _logger.debug("refused: %s", error)
        except OSError as error:
            number = error.errno or errno.EIO
            _logger.debug("command %d refused: %s", message.command, error)
        finally:
            if message.fds:
                close_all(message.fds)
        if not message.wants_reply:
            return None
        if number:
            return encode_error(message.id, message.command, number), _NO_FDS
        return encode_reply(message.id, message.command, payload), fds

    def disconnect(self) -> None:
        """The client is gone: close what it left here."""
        close_all(list(self._error_and_request.values()))
        self._error_and_request.clear()

    # --- DMA ---------------------------------------------------------------------------------------------------

    def _dma_map(self, message: Message) -> Reply:
        argsz, flags, offset, address, size = DMA_MAP.unpack_from(_at_least(message, DMA_MAP.size))
        access = DmaFlag(flags & (DmaFlag.READ | DmaFlag.WRITE))
        if argsz < DMA_MAP.size or flags != access or not access or len(message.fds) > 1:
            raise _invalid(f"DMA_MAP with argsz {argsz}, flags {flags:#x}, {len(message.fds)} files")
        self._function.address_space.map(
            address,
            size,
            fd=message.fds[0] if message.fds else None,
            offset=offset,
            readable=bool(access & DmaFlag.READ),
            writable=bool(access & DmaFlag.WRITE),
        )
        return _DONE

    def _dma_unmap(self, message: Message) -> Reply:
        argsz, flags, address, size = DMA_UNMAP.unpack_from(_at_least(message, DMA_UNMAP.size))
        everything = flags == UnmapFlag.ALL and not address and not size
        if argsz < DMA_UNMAP.size or (flags and not everything):
            raise _invalid(f"DMA_UNMAP with argsz {argsz}, flags {flags:#x}")
        if everything:
            self._function.address_space.unmap_all()
        else:
            self._function.address_space.unmap(address, size)
        return message.payload[: DMA_UNMAP.size], _NO_FDS

    # --- information -------------------------------------------------------------------------------------------

    def _device_info(self, message: Message) -> Reply:
        argsz, *_ = DEVICE_INFO.unpack_from(_at_least(message, DEVICE_INFO.size))
        if argsz < DEVICE_INFO.size:
            raise _invalid(f"DEVICE_GET_INFO with argsz {argsz}")
        flags = DeviceFlag.RESET | DeviceFlag.PCI
        return DEVICE_INFO.pack(DEVICE_INFO.size, flags, NUM_REGIONS, NUM_IRQS), _NO_FDS

    def _region_info(self, message: Message) -> Reply:
        argsz, _, index, *_ = REGION_INFO.unpack_from(_at_least(message, REGION_INFO.size))
        if argsz < REGION_INFO.size or index >= NUM_REGIONS:
            raise _invalid(f"DEVICE_GET_REGION_INFO of region {index} with argsz {argsz}")
        region = self._regions.get(index)
        if region is None:
            return encode_region_info(RegionDescription(index, 0, 0), argsz)[0], _NO_FDS
        flags = RegionFlag.READ * region.readable | RegionFlag.WRITE * region.writable
        areas: tuple[tuple[int, int], ...] = ()
        if region.fd is not None and region.mappable:
            flags |= RegionFlag.MMAP
            areas = () if region.mappable == ((0, region.size_bytes),) else region.mappable
        described = RegionDescription(index, region.size_bytes, flags, 0, areas)
        payload, complete = encode_region_info(described, argsz)
        # A client with too little room asks again; it gets the file with the complete answer only.
        return payload, (region.fd,) if region.fd is not None and flags & RegionFlag.MMAP and complete else _NO_FDS

    def _region_io_fds(self, message: Message) -> Reply:
        argsz, flags, index, count = REGION_IO_FDS.unpack_from(_at_least(message, REGION_IO_FDS.size))
        if argsz < REGION_IO_FDS.size or flags or count or index >= NUM_REGIONS:
            raise _invalid(f"DEVICE_GET_REGION_IO_FDS of region {index}, argsz {argsz}, flags {flags:#x}")
        return REGION_IO_FDS.pack(REGION_IO_FDS.size, 0, index, 0), _NO_FDS

    def _irq_count(self, index: int) -> int:
        """Interrupts of a type: MSI-X has the vectors, ERR and REQ one each, INTx and MSI none."""
        if index == IrqIndex.MSIX:
            return self._function.interrupts.count
        return 1 if index in (IrqIndex.ERR, IrqIndex.REQ) else 0

    def _irq_info(self, message: Message) -> Reply:
        argsz, _, index, _ = IRQ_INFO.unpack_from(_at_least(message, IRQ_INFO.size))
        if argsz < IRQ_INFO.size or index >= NUM_IRQS:
            raise _invalid(f"DEVICE_GET_IRQ_INFO of type {index} with argsz {argsz}")
        flags = IrqFlag.EVENTFD | (IrqFlag.MASKABLE if index == IrqIndex.MSIX else IrqFlag.NORESIZE)
        return IRQ_INFO.pack(IRQ_INFO.size, flags, index, self._irq_count(index)), _NO_FDS

    # --- interrupts --------------------------------------------------------------------------------------------

    def _set_irqs(self, message: Message) -> Reply:
        argsz, flags, index, start, count = IRQ_SET.unpack_from(_at_least(message, IRQ_SET.size))
        chosen, action = flags & IRQ_DATA, flags & IRQ_ACTION
        data = message.payload[IRQ_SET.size :]
        if (
            argsz < IRQ_SET.size
            or index >= NUM_IRQS
            or flags != chosen | action
            or chosen.bit_count() != 1
            or action.bit_count() != 1
            or start + count > self._irq_count(index)
            or (message.fds and (chosen != IrqSet.DATA_EVENTFD or len(message.fds) != count))
            or (chosen == IrqSet.DATA_BOOL and len(data) != count)
        ):
            raise _invalid(f"DEVICE_SET_IRQS: type {index}, flags {flags:#x}, {count} from {start}, argsz {argsz}")
        if count == 0:
            if start or flags != IrqSet.DATA_NONE | IrqSet.ACTION_TRIGGER:
                raise _invalid(f"DEVICE_SET_IRQS of no interrupt with flags {flags:#x}, start {start}")
            self._connect(index, range(self._irq_count(index)), ())
        elif chosen == IrqSet.DATA_EVENTFD:
            if action != IrqSet.ACTION_TRIGGER:
                raise OSError(errno.ENOTSUP, "no eventfd is signalled when an interrupt is masked")
            self._connect(index, range(start, start + count), message.fds)
        else:
            picked = range(start, start + count)
            self._act(index, action, [i for i in picked if chosen == IrqSet.DATA_NONE or data[i - start]])
        return _DONE

    def _connect(self, index: int, interrupts: range, fds: Sequence[int]) -> None:
        """Connect each interrupt to its eventfd; without eventfds, disconnect them."""
        if any(_link(fd) != _EVENTFD_LINK for fd in fds):
            raise _invalid("DEVICE_SET_IRQS with a descriptor that is no eventfd")
        for position, interrupt in enumerate(interrupts):
            fd = fds[position] if fds else None
            if index == IrqIndex.MSIX:
                self._function.interrupts.connect(interrupt, None if fd is None else os.dup(fd))
                continue
            old = self._error_and_request.pop(index, None)
            if old is not None:
                close_all([old])
            if fd is not None:
                self._error_and_request[index] = os.dup(fd)

    def _act(self, index: int, action: int, interrupts: list[int]) -> None:
        if action != IrqSet.ACTION_TRIGGER and index != IrqIndex.MSIX:
            raise _invalid(f"DEVICE_SET_IRQS: interrupts of type {index} cannot be masked")
        vectors = self._function.interrupts
        acts = {
            IrqSet.ACTION_TRIGGER: vectors.trigger,
            IrqSet.ACTION_MASK: vectors.mask,
            IrqSet.ACTION_UNMASK: vectors.unmask,
        }
        for interrupt in interrupts:
            if index == IrqIndex.MSIX:
                acts[IrqSet(action)](interrupt)
            else:
                _signal(self._error_and_request.get(index))

    # --- regions and reset -------------------------------------------------------------------------------------

    def _region_read(self, message: Message) -> Reply:
        payload = message.payload
        offset, index, count = REGION_ACCESS.unpack_from(_at_least(message, REGION_ACCESS.size))
        region = self._regions.get(index)
        if (
            region is None
            or len(payload) != REGION_ACCESS.size
            or offset + count > region.size_bytes
            or count > MAX_TRANSFER_BYTES
            or not region.readable
        ):
            raise _invalid(f"REGION_READ of {count} bytes at {offset:#x} of region {index}")
        return (payload + self._function.region_read(index, offset, count) if count else payload), _NO_FDS

    def _region_write(self, message: Message) -> Reply:
        payload = message.payload
        offset, index, count = REGION_ACCESS.unpack_from(_at_least(message, REGION_ACCESS.size))
        if len(payload) != REGION_ACCESS.size + count:
            raise _invalid(f"REGION_WRITE of {count} bytes that carries {len(payload) - REGION_ACCESS.size}")
        self._write(index, offset, payload[REGION_ACCESS.size :])
        return payload[: REGION_ACCESS.size], _NO_FDS

    def _write_multi(self, message: Message) -> Reply:
        writes = decode_writes(message.payload)
        for write in writes:
            self._check_write(write.region, write.offset, len(write.data))
        for write in writes:
            self._write(write.region, write.offset, write.data)
        return message.payload[: WRITE_MULTI.size], _NO_FDS

    def _check_write(self, index: int, offset: int, count: int) -> None:
        region = self._regions.get(index)
        if region is None or offset + count > region.size_bytes or not region.writable:
            raise _invalid(f"write of {count} bytes at {offset:#x} of region {index}")

    def _write(self, index: int, offset: int, data: bytes) -> None:
        self._check_write(index, offset, len(data))
        if data:
            self._function.region_write(index, offset, data)

    def _reset(self, message: Message) -> Reply:
        self._function.reset(ResetCause.DEVICE_RESET)
        return _DONE


def _invalid(message: str) -> OSError:
    return OSError(errno.EINVAL, message)


def _at_least(message: Message, size: int) -> bytes:
    if len(message.payload) < size:
        raise _invalid(f"command {message.command} with {len(message.payload)} bytes; it takes at least {size}")
    return message.payload


def _link(fd: int) -> str:
    return os.readlink(f"/proc/self/fd/{fd}")


def _signal(eventfd: int | None) -> None:
    """Signal an eventfd of the client, unless its counter is full: then the write would wait for the client."""
    if eventfd is None:
        return
    poller = select.poll()
    poller.register(eventfd, select.POLLOUT)
    if poller.poll(0):
        os.eventfd_write(eventfd, 1)
