"""An engine as a process: takes programs and jobs from its socket, computes into its scratch, answers.

Device memory is mapped read-only here; only the states of a job are given to its executor in a mapping that can be
written. The process ends when the emulator does: by end-of-file on the socket, and by the kernel's parent-death signal
while it computes.
"""

from __future__ import annotations

import array
import importlib
import mmap
import os
import socket
import time
from collections.abc import Sequence
from typing import Any, cast

from driver_shim.protocol.commands import COMMAND_RUN, KERNEL_NAME_BYTES, Status
from driver_shim.shared import import_guard
from driver_shim.shared.child_process import die_with_parent
from emulator.engines.job import Executor, KernelRun, ProgramFault
from emulator.engines.messages import (
    KIND,
    LOAD_REQUEST,
    MAX_REQUEST_BYTES,
    MESSAGE_BYTES,
    REPLY,
    RUN_REQUEST,
    UNLOAD_REQUEST,
    Request,
    padded,
    unpack_addresses,
)


class EngineWorker:
    """The worker's state: mapped files, loaded programs, and the loop over its socket."""

    def __init__(
        self, channel: socket.socket, memory_fd: int, scratch_fd: int, executor: Executor, kernels: str
    ) -> None:
        self._channel = channel
        self._memory = memoryview(mmap.mmap(memory_fd, 0, prot=mmap.PROT_READ))
        self._memory_fd = memory_fd
        self._writable: memoryview | None = None
        """Device memory once more, from the first job with states on."""
        self._scratch_fd = scratch_fd
        self._scratch = memoryview(b"")
        self._executor = executor
        self._kernels = kernels
        self._programs: dict[int, Any] = {}

    def serve(self) -> None:
        """Carry out requests until the other side closes. A programming error in a kernel propagates."""
        ancillary = socket.CMSG_SPACE(array.array("i").itemsize)
        while True:
            message, control, _, _ = self._channel.recvmsg(MAX_REQUEST_BYTES, ancillary)
            if not message:
                return
            (kind,) = KIND.unpack_from(message)
            if kind == Request.RUN:
                self._run(message)
            elif kind == Request.LOAD:
                self._load(message, control)
            else:
                self._programs.pop(UNLOAD_REQUEST.unpack_from(message)[1], None)

    def _load(self, message: bytes, control: list[tuple[int, int, bytes]]) -> None:
        """Map the file that came with a LOAD and prepare the program in it."""
        _, program, image_bytes, constant_count = LOAD_REQUEST.unpack_from(message)
        (fd,) = array.array("i", control[0][2])
        try:
            file = memoryview(mmap.mmap(fd, 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ))
        finally:
            os.close(fd)
        constants = unpack_addresses(file, image_bytes, constant_count)
        self._programs[program] = self._executor.load(file[:image_bytes], constants)

    def _run(self, message: bytes) -> None:
        """Carry out one RUN and answer it."""
        _, program, job, entry, input_count, state_count, scratch_bytes, report_offset = RUN_REQUEST.unpack_from(
            message
        )
        if len(self._scratch) < scratch_bytes:
            self._scratch = memoryview(mmap.mmap(self._scratch_fd, scratch_bytes))
        began = time.monotonic_ns()
        status, index, text = Status.SUCCESS, 0, b""
        try:
            report = self._executor.execute(
                self._programs[program],
                entry,
                memory=self._memory,
                inputs=unpack_addresses(message, RUN_REQUEST.size, input_count),
                states=self._states(message, RUN_REQUEST.size + 8 * input_count, state_count),
                scratch=self._scratch[:report_offset],
                kernels=self._kernels,
            )
            self._write_report(report_offset, report)
        except ProgramFault as fault:
            status, index, text = fault.status, fault.command_index, padded(fault.message, MESSAGE_BYTES)
        self._channel.send(REPLY.pack(job, time.monotonic_ns() - began, index, status, text))

    def _states(self, message: bytes, offset: int, count: int) -> list[memoryview]:
        """The memory of a job's states, which alone it may write."""
        if not count:
            return []
        if self._writable is None:
            self._writable = memoryview(mmap.mmap(self._memory_fd, 0))
        numbers = unpack_addresses(message, offset, 2 * count)
        return [self._writable[at : at + size] for at, size in zip(numbers[:count], numbers[count:], strict=True)]

    def _write_report(self, offset: int, report: Sequence[KernelRun]) -> None:
        """Leave the report behind the program's own scratch, where its length has no limit."""
        for run in report:
            COMMAND_RUN.pack_into(self._scratch, offset, run.wall_ns, padded(run.kernel, KERNEL_NAME_BYTES))
            offset += COMMAND_RUN.size


def main(arguments: Sequence[str]) -> None:
    """Entry point of the worker process: socket, memory, scratch (descriptors), parent's id, executor, kernels."""
    channel_fd, memory_fd, scratch_fd, parent = (int(text) for text in arguments[:4])
    executor_name, kernels = arguments[4:]
    die_with_parent(parent)
    if kernels != "auto":  # whoever names the kernels wants no others to take part
        import_guard.install()
    executor = cast("Executor", importlib.import_module(executor_name))
    with socket.socket(fileno=channel_fd) as channel:
        EngineWorker(channel, memory_fd, scratch_fd, executor, kernels).serve()
