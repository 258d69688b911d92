"""Bring-up of a function and its admin queue: handshake, contract check, identify, queues, programs, reset.

Steps and their order are NVMe's (NVM Express Base 2.0, 3.5.1): disable, set the admin queue, enable, wait for ready.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from driver_shim import timeouts
from driver_shim.errors import CommandFailed, ContractMismatch, DeviceLost, NpuError, Timeout
from driver_shim.function.allocator import RangeAllocator
from driver_shim.function.bring_up import check_function, enable_function
from driver_shim.function.dma import HostBlock, HostMemory
from driver_shim.function.pre_open import PreOpenRecord, read_pre_open
from driver_shim.function.queue_pair import Completion, HostQueuePair
from driver_shim.function.registers import Registers
from driver_shim.protocol import commands
from driver_shim.protocol.commands import AdminOpcode
from driver_shim.protocol.layout import Layout
from driver_shim.protocol.registers import ALL_FEATURES, CONTRACT_MAJOR, Feature
from driver_shim.transport.base import Transport

ADMIN_ENTRIES = 64
_MILLISECONDS_PER_READY_UNIT = 100
_LOG_CHUNK_BYTES = 65536
_ADMIN_BLOCKS = 2
"""The rings of the admin queue are the first of the kept blocks."""


class Limits(NamedTuple):
    """What the device states before it is enabled."""

    io_queues: int
    ready_timeout_s: float


class OpenQueue(NamedTuple):
    """An I/O queue and the memory its rings lie in."""

    pair: HostQueuePair
    blocks: tuple[HostBlock, HostBlock]


class Controller:
    """An enabled function. Admin commands are serialised and each is bounded by `timeout_s`."""

    def __init__(self, transport: Transport, memory: HostMemory, timeout_s: float) -> None:
        self.transport = transport
        self.memory = memory
        self.registers = Registers(transport)
        self.timeout_s = timeout_s
        self._lock = threading.RLock()
        self._giving_up = False
        self._is_ours = False
        """Whether the function was found to be one of ours; nothing is written to others."""
        self._admin: HostQueuePair | None = None
        self._blocks: list[HostBlock] = []
        self._shadows: tuple[HostBlock, HostBlock] | None = None
        self._queue_ids: set[int] = set()
        self.limits = Limits(0, 0.0)
        self.identity: Any = None
        self.pre_open: PreOpenRecord | None = None
        """What the device showed at the first bring-up, before anything here touched it."""

    # --- bring-up ----------------------------------------------------------------------------------------------

    def bring_up(self) -> None:
        """Enable bus mastering and the controller, check the contract, identify, set shadow doorbells.

        Raises DeviceLost, ContractMismatch, Timeout, HostMemoryLimit.
        """
        check_function(self.transport)
        self._is_ours = True
        enable_function(self.transport)
        self.registers.check_alive()
        if self.pre_open is None:
            self.pre_open = read_pre_open(self.registers)  # before anything can fail: it tells why
        self._check_contract()
        self._disable()
        self._set_admin_queue()
        self.registers.control.write(enable=1)
        self._await_ready(1)
        self.identity = self._identify()
        self._configure_shadows()

    def _check_contract(self) -> None:
        contract = self.registers.contract.fields()
        if contract["major"] != CONTRACT_MAJOR:
            raise ContractMismatch(
                f"{self.transport.address} speaks contract {contract['major']}.{contract['minor']},"
                f" this driver {CONTRACT_MAJOR}.x",
                device=self.transport.address,
                subsystem="contract",
                remedy="install the SDK that goes with the device's firmware, or update the firmware",
            )
        caps = self.registers.capabilities.fields()
        sizes = (1 << caps["submission_bytes_log2"], 1 << caps["completion_bytes_log2"])
        ours = (commands.SUBMISSION_BYTES, commands.COMPLETION_BYTES)
        features = Feature(self.registers.features.read() & int(ALL_FEATURES))
        if sizes != ours or Feature.SHADOW_DOORBELLS not in features:
            raise ContractMismatch(
                f"{self.transport.address} has queue entries of {sizes[0]} and {sizes[1]} bytes and features"
                f" {features!r}; this driver needs {ours[0]}, {ours[1]} and shadow doorbells",
                device=self.transport.address,
                subsystem="contract",
                remedy="install the SDK that goes with the device's firmware",
            )
        self.limits = Limits(
            caps["max_io_queues"],
            max(timeouts.READY_S, caps["ready_timeout"] * _MILLISECONDS_PER_READY_UNIT / 1000),
        )

    def _disable(self) -> None:
        self.registers.control.write(enable=0)
        self._await_ready(0)

    def _await_ready(self, wanted: int) -> None:
        """Wait for status.ready. Raises Timeout, or DeviceLost when the device reads all ones or reports an error."""
        limit = min(self.limits.ready_timeout_s, self.timeout_s)
        deadline = time.monotonic() + limit
        while True:
            status = self.registers.status.fields()
            if status["ready"] == wanted and not status["config_error"]:
                return
            self.registers.check_alive()
            if status["config_error"] or status["fatal"]:
                raise DeviceLost(
                    f"{self.transport.address} refused to start (status {status})",
                    device=self.transport.address,
                    subsystem="bring-up",
                    remedy="read its error log with npuctl, then reset it",
                )
            if time.monotonic() > deadline:
                raise Timeout(
                    f"{self.transport.address}: status.ready did not become {wanted} within {limit:g} s",
                    device=self.transport.address,
                    subsystem="bring-up",
                    remedy="reset the device",
                )
            self.transport.progress()

    def _set_admin_queue(self) -> None:
        if self._admin is None:
            submissions = self._allocate(ADMIN_ENTRIES * commands.SUBMISSION_BYTES)
            completions = self._allocate(ADMIN_ENTRIES * commands.COMPLETION_BYTES)
            self._blocks = [submissions, completions]
        submissions, completions = self._blocks[:_ADMIN_BLOCKS]
        submissions.view[:] = bytes(len(submissions.view))
        completions.view[:] = bytes(len(completions.view))
        self._admin = HostQueuePair(self.transport, commands.ADMIN_QUEUE_ID, submissions.view, completions.view, None)
        self.registers.admin_queue_size.write(submission_entries=ADMIN_ENTRIES, completion_entries=ADMIN_ENTRIES)
        self.registers.admin_submission_base.write(address=submissions.iova)
        self.registers.admin_completion_base.write(address=completions.iova)

    def _allocate(self, size: int) -> HostBlock:
        return self.memory.allocate(size, alignment=commands.QUEUE_ALIGNMENT)

    # --- admin commands ----------------------------------------------------------------------------------------

    def admin(self, layout: Layout, opcode: AdminOpcode, **fields: int) -> int:
        """Execute one admin command; returns its result. Raises CommandFailed, Timeout, DeviceLost, FieldError."""
        entry = layout.build(opcode=int(opcode), **fields)
        with self._lock:
            queue = self._admin
            if queue is None:
                raise DeviceLost(f"{self.transport.address} is not enabled", device=self.transport.address)
            self._check_going_on(opcode)
            if queue.outstanding():  # left behind by a wait that was given up, perhaps before its bell
                queue.publish()
            while queue.outstanding():
                self._take(queue, opcode)
            queue.put(layout.codec, int(opcode), layout.codec.unpack(entry)[4:])
            queue.publish()
            status, result = self._take(queue, opcode)
        if status:
            raise CommandFailed(
                f"admin command {opcode.name.lower()} failed: {commands.status_slug(status)}",
                device=self.transport.address,
                subsystem="admin",
                status=status,
                code=commands.status_slug(status),
                remedy="the device's error log says more: npuctl info",
            )
        return result

    def _take(self, queue: HostQueuePair, opcode: AdminOpcode) -> tuple[int, int]:
        """Wait for the next completion; returns (status, result)."""
        _, _, status, _, result, _, _ = self._await_completion(queue, opcode)
        queue.advance()
        queue.publish_head()
        return status, result

    def _await_completion(self, queue: HostQueuePair, opcode: AdminOpcode) -> Completion:
        now = time.monotonic()
        deadline, next_look, spin_until = now + self.timeout_s, now + timeouts.LIVENESS_S, now + timeouts.ADMIN_SPIN_S
        while (completion := queue.peek()) is None:
            self._check_going_on(opcode)
            self.transport.progress()
            now = time.monotonic()
            if now > spin_until and not self.transport.steps_device:
                time.sleep(timeouts.ADMIN_NAP_S)
            if now > next_look:
                next_look = now + timeouts.LIVENESS_S
                self.check_alive()
            if now > deadline:
                raise Timeout(
                    f"{self.transport.address}: no answer to {opcode.name.lower()} within {self.timeout_s:g} s",
                    device=self.transport.address,
                    subsystem="admin",
                    remedy="reset the device",
                )
        return completion

    def _check_going_on(self, opcode: AdminOpcode) -> None:
        """Raise CommandFailed (with status 0) if a reset or the end is coming."""
        if self._giving_up:
            raise CommandFailed(
                f"{self.transport.address} was reset or closed before {opcode.name.lower()} ended",
                device=self.transport.address,
                subsystem="admin",
                code="device-reset",
            )

    def check_operable(self) -> None:
        """Raise unless this controller carries out commands; a `RegisterWindow` does not."""

    def device_memory(self, granule: int) -> RangeAllocator:
        """All of the device's memory, to hand out in multiples of `granule` bytes."""
        return RangeAllocator(0, self.identity.memory_bytes, granule)

    def check_alive(self) -> None:
        """Raise DeviceLost unless the device answers and its controller runs."""
        self.registers.check_alive()
        status = self.registers.status.fields()
        if status["fatal"] or not status["ready"]:
            why = "fatal error" if status["fatal"] else "not ready"
            raise DeviceLost(
                f"{self.transport.address}: the controller stopped ({why})",
                device=self.transport.address,
                subsystem="controller",
                remedy="reset the device; its black box says what happened",
            )

    def _identify(self) -> Any:
        with self._transfer(commands.IDENTIFY_DATA.size) as block:
            self.admin(
                commands.IDENTIFY, AdminOpcode.IDENTIFY, destination=block.iova, size=commands.IDENTIFY_DATA.size
            )
            return commands.IDENTIFY_DATA.parse(bytes(block.view[: commands.IDENTIFY_DATA.size]))

    def _configure_shadows(self) -> None:
        size = (commands.MAX_IO_QUEUES + 1) * commands.LINE_BYTES
        if self._shadows is None:
            self._shadows = (self._allocate(size), self._allocate(size))
        for block in self._shadows:
            block.view[:] = bytes(size)
        self.admin(
            commands.CONFIGURE_SHADOWS,
            AdminOpcode.CONFIGURE_SHADOWS,
            shadows=self._shadows[0].iova,
            events=self._shadows[1].iova,
        )

    def create_queue(self, entries: int, completion_entries: int) -> OpenQueue:
        """An I/O queue pair with its own interrupt vector. Raises CommandFailed when all queues are taken."""
        self._check_going_on(AdminOpcode.CREATE_QUEUE)
        with self._lock:
            free = (i for i in range(1, self.limits.io_queues + 1) if i not in self._queue_ids)
            queue_id = next(free, None)
            if queue_id is not None:
                self._queue_ids.add(queue_id)
        if queue_id is None or self._shadows is None:
            raise CommandFailed(
                f"{self.transport.address}: all {self.limits.io_queues} I/O queues are in use",
                device=self.transport.address,
                subsystem="queue",
                code="invalid-queue",
                remedy="close queues that are no longer needed",
            )
        blocks: list[HostBlock] = []
        try:
            blocks.append(self._allocate(entries * commands.SUBMISSION_BYTES))
            blocks.append(self._allocate(completion_entries * commands.COMPLETION_BYTES))
            line = slice(queue_id * commands.LINE_BYTES, (queue_id + 1) * commands.LINE_BYTES)
            lines = (self._shadows[0].view[line], self._shadows[1].view[line])
            for view in lines:  # a queue before may have used them; the rings are fresh, so zeroed
                view[:] = bytes(len(view))
            self.admin(
                commands.CREATE_QUEUE,
                AdminOpcode.CREATE_QUEUE,
                submission_base=blocks[0].iova,
                completion_base=blocks[1].iova,
                submission_entries=entries,
                completion_entries=completion_entries,
                queue=queue_id,
                vector=queue_id,
            )
        except CommandFailed as error:
            if error.status:
                self._release(queue_id, blocks)
            else:
                self._blocks += blocks  # it may yet be created
            raise
        except BaseException:
            with contextlib.suppress(NpuError):
                self._delete(queue_id, blocks)
            raise
        # Slices of the views: a thread that still looks at the rings keeps them mapped after the blocks are given back.
        rings = (blocks[0].view[:], blocks[1].view[:])
        pair = HostQueuePair(self.transport, queue_id, *rings, lines)
        return OpenQueue(pair, (blocks[0], blocks[1]))

    def delete_queue(self, queue: OpenQueue) -> None:
        """Delete a queue on the device and free its rings; what it was carrying out is discarded."""
        try:
            self._delete(queue.pair.queue_id, list(queue.blocks))
        except NpuError:
            raise
        except BaseException:  # Ctrl-C half way: go all the way, so that the queue is not lost
            with contextlib.suppress(NpuError):
                self._delete(queue.pair.queue_id, list(queue.blocks))
            raise

    def _delete(self, queue_id: int, blocks: list[HostBlock]) -> None:
        """Delete a queue if there is one. Its memory is kept when the device may still use it: until the next reset."""
        try:
            self.admin(commands.DELETE_QUEUE, AdminOpcode.DELETE_QUEUE, queue=queue_id)
        except CommandFailed as error:
            if not error.status:
                self._blocks += blocks
                raise
        except NpuError:
            self._blocks += blocks
            raise
        self._release(queue_id, blocks)

    def _release(self, queue_id: int, blocks: list[HostBlock]) -> None:
        with self._lock:
            self._queue_ids.discard(queue_id)
        for block in blocks:
            self.memory.abandon(block)

    def load_program(self, image: bytes, constants: Sequence[tuple[int, int]]) -> int:
        """Load a program whose constants lie at these (device address, size); returns its handle."""
        table = b"".join(commands.BINDING.codec.pack(address, size) for address, size in constants)
        with self._transfer(len(table) + len(image)) as block:
            block.view[: len(table)] = table
            block.view[len(table) : len(table) + len(image)] = image
            return self.admin(
                commands.LOAD_PROGRAM,
                AdminOpcode.LOAD_PROGRAM,
                source=block.iova + len(table),
                size=len(image),
                constants=block.iova,
                constant_count=len(constants),
            )

    def unload_program(self, handle: int) -> None:
        """Forget a program."""
        self.admin(commands.UNLOAD_PROGRAM, AdminOpcode.UNLOAD_PROGRAM, program=handle)

    def program_report(self, handle: int) -> list[tuple[str, int]]:
        """(kernel, nanoseconds) of each command of a program's newest successful run; empty before one."""
        report = self._whole(commands.GET_PROGRAM_REPORT, AdminOpcode.GET_PROGRAM_REPORT, program=handle)
        entries = commands.COMMAND_RUN.codec.iter_unpack(report)
        return [(kernel.rstrip(b"\0").decode(errors="replace"), wall_ns) for wall_ns, kernel in entries]

    def log_page(self, page: commands.LogPage) -> bytes:
        """A whole log page."""
        return self._whole(commands.GET_LOG_PAGE, AdminOpcode.GET_LOG_PAGE, page=int(page))

    def _whole(self, layout: Layout, opcode: AdminOpcode, **fields: int) -> bytes:
        """All that an admin command has to tell piece by piece."""
        with self._transfer(_LOG_CHUNK_BYTES) as block:
            parts: list[bytes] = []
            offset, total = 0, 1
            while offset < total:
                total = self.admin(
                    layout, opcode, destination=block.iova, size=_LOG_CHUNK_BYTES, offset=offset, **fields
                )
                size = min(_LOG_CHUNK_BYTES, max(0, total - offset))
                parts.append(bytes(block.view[:size]))
                offset += _LOG_CHUNK_BYTES
            return b"".join(parts)

    @contextlib.contextmanager
    def _transfer(self, size: int) -> Iterator[HostBlock]:
        """Host memory for one admin command. If the command is given up, the device may still write there: kept."""
        block = self.memory.allocate(size)
        try:
            yield block
        except CommandFailed as error:
            if error.status:
                self.memory.free(block)
            else:
                self._blocks.append(block)
            raise
        except BaseException:
            self._blocks.append(block)
            raise
        else:
            self.memory.free(block)

    # --- reset and end -----------------------------------------------------------------------------------------

    def interrupt_waits(self) -> None:
        """A reset or the end is coming: whoever waits for an admin command gets CommandFailed instead of its end."""
        self._giving_up = True

    def resume(self) -> None:
        """The reset has ended, or was given up itself: admin commands are waited for again."""
        self._giving_up = False

    def reset(self) -> None:
        """Reset the function and bring it up again; queues and programs are gone."""
        with self._lock:
            self._giving_up = False
            self._queue_ids = set()
            self.transport.reset()
            self.bring_up()
            kept, self._blocks = self._blocks[_ADMIN_BLOCKS:], self._blocks[:_ADMIN_BLOCKS]
            for block in kept:
                self.memory.abandon(block)

    def shut_down(self) -> None:
        """Disable the controller so that the device knows that its client left in order."""
        if not self._is_ours:
            return
        self.registers.control.write(enable=0)
        self.registers.identity.read()  # the write is posted; a read that returned means that it has arrived

    def let_go(self) -> None:
        """Keep no host memory: whoever still holds this object should not hold that. After `shut_down`."""
        with self._lock:
            self._admin, self._blocks, self._shadows = None, [], None
