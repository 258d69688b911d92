"""One engine worker seen from the controller: its process, its socket, its scratch file.

No call blocks but `wait`. What cannot be sent or received means the worker is dead or stuck; the pool replaces it.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import mmap
import os
import socket
import subprocess

from driver_shim.protocol.commands import COMMAND_RUN
from driver_shim.shared.child_process import main_command
from emulator.engines.job import EngineJob, EntryPlan, KernelRun, ProgramImage
from emulator.engines.messages import (
    LOAD_REQUEST,
    REPLY,
    RUN_REQUEST,
    UNLOAD_REQUEST,
    Request,
    pack_addresses,
    unpadded,
)

ENGINE_NICENESS = 5
"""Engines yield to the bus: registers must answer while they compute, and while they start."""
_SEALS_FIXED = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
_SEALS_GROWING = fcntl.F_SEAL_SHRINK
_THREAD_VARIABLES = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")


def program_file(image: ProgramImage) -> int:
    """A memory file with a program as LOAD carries it, that nobody can change. Raises OSError.

    It holds the container, then the addresses of the constants.
    """
    return sealed_file("npu-program", image.data, pack_addresses(image.constants))


def sealed_file(name: str, *parts: bytes | memoryview) -> int:
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        with open(fd, "wb", closefd=False) as file:
            file.writelines(parts)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS_FIXED)
    except BaseException:
        os.close(fd)
        raise
    return fd


class WorkerProcess:
    """A running worker."""

    def __init__(self, memory_fd: int, executor: str, kernels: str, threads: int) -> None:
        """Start it; it takes requests at once, and works on them when it has imported what it needs.

        Raises OSError when the system refuses a process or file.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, contextlib.ExitStack() as undo:
            undo.callback(ours.close)
            self._scratch_fd = os.memfd_create("npu-scratch", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            undo.callback(os.close, self._scratch_fd)
            fcntl.fcntl(self._scratch_fd, fcntl.F_ADD_SEALS, _SEALS_GROWING)
            inherited = (theirs.fileno(), memory_fd, self._scratch_fd)
            self._process = subprocess.Popen(
                main_command(
                    "emulator.engines.worker",
                    *map(str, (*inherited, os.getpid())),
                    executor,
                    kernels,
                    niceness=ENGINE_NICENESS,
                ),
                env=_environment(threads),
                pass_fds=inherited,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                process_group=0,
            )
            undo.pop_all()
        ours.setblocking(False)
        self._socket = ours
        self.fd = ours.fileno()
        self.pid = self._process.pid
        self._scratch = memoryview(b"")
        self._known: set[int] = set()
        """Programs the worker holds."""
        self._forgotten: set[int] = set()
        """Of those, the ones it has yet to be told to drop."""

    @property
    def used(self) -> bool:
        """Whether it holds a program."""
        return bool(self._known)

    @property
    def scratch_bytes(self) -> int:
        """Size of its scratch."""
        return len(self._scratch)

    def knows(self, number: int) -> bool:
        """Whether it holds this program."""
        return number in self._known

    def send_program(self, number: int, image: ProgramImage, fd: int) -> bool:
        """Make sure the worker has the program; False if it takes no messages."""
        if not self._tell_forgotten():
            return False
        if number in self._known:
            return True
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))]
        request = LOAD_REQUEST.pack(Request.LOAD, number, len(image.data), len(image.constants))
        if not self._send(request, rights):
            return False
        self._known.add(number)
        return True

    def drop_program(self, number: int) -> None:
        """Have the worker forget the program, at the latest before it is given its next one."""
        if number in self._known:
            self._forgotten.add(number)
            self._tell_forgotten()

    def send_job(self, job: EngineJob, number: int, image: ProgramImage) -> bool:
        """Start a job of program `number`; False if the worker takes no messages.

        Raises OSError when scratch cannot grow.
        """
        plan = image.entries[job.entry]
        report_offset = _report_offset(plan)
        self._grow_scratch(report_offset + plan.commands * COMMAND_RUN.size)
        request = RUN_REQUEST.pack(
            Request.RUN,
            number,
            job.id,
            job.entry,
            len(job.inputs),
            len(job.states),
            len(self._scratch),
            report_offset,
        )
        sizes = pack_addresses(plan.states)
        return self._send(request + pack_addresses((*job.inputs, *job.states)) + sizes)

    def receive(self) -> bytes | None:
        """The worker's answer, None if there is none yet, empty if it died."""
        try:
            return self._socket.recv(REPLY.size)
        except BlockingIOError:
            return None
        except ConnectionError:
            return b""

    def results(self, plan: EntryPlan) -> tuple[tuple[memoryview, ...], tuple[KernelRun, ...]]:
        """Outputs and report of the job that has just finished, the outputs in place."""
        outputs = tuple(self._scratch[offset : offset + size].toreadonly() for offset, size in plan.outputs)
        start = _report_offset(plan)
        records = self._scratch[start : start + plan.commands * COMMAND_RUN.size]
        report = tuple(
            KernelRun(unpadded(kernel), wall_ns) for wall_ns, kernel in COMMAND_RUN.codec.iter_unpack(records)
        )
        return outputs, report

    def kill(self) -> None:
        """End it now, without waiting; its socket and scratch are closed."""
        self._process.kill()
        self._socket.close()
        os.close(self._scratch_fd)
        self._scratch = memoryview(b"")

    def reap(self) -> bool:
        """Take the exit status of a killed worker if it is there; True when done."""
        return self._process.poll() is not None

    def wait(self, timeout_s: float) -> bool:
        """Wait for a killed worker's end; False if it has not ended by then."""
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    def _tell_forgotten(self) -> bool:
        for number in list(self._forgotten):
            if not self._send(UNLOAD_REQUEST.pack(Request.UNLOAD, number)):
                return False
            self._forgotten.discard(number)
            self._known.discard(number)
        return True

    def _send(self, message: bytes, ancillary: list[tuple[int, int, array.array[int]]] | None = None) -> bool:
        try:
            self._socket.sendmsg([message], ancillary or [])
        except (BlockingIOError, ConnectionError):
            return False
        return True

    def _grow_scratch(self, size: int) -> None:
        """Make the scratch file and our view of it at least `size` bytes, in whole pages."""
        if len(self._scratch) >= size:
            return
        pages = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        if os.fstat(self._scratch_fd).st_size < pages:  # it may be longer: an earlier mapping of it failed
            os.ftruncate(self._scratch_fd, pages)
        self._scratch = memoryview(mmap.mmap(self._scratch_fd, pages, prot=mmap.PROT_READ))


def _report_offset(plan: EntryPlan) -> int:
    """Where in scratch the report of a job begins."""
    return -(-plan.scratch_bytes // COMMAND_RUN.size) * COMMAND_RUN.size


def _environment(threads: int) -> dict[str, str]:
    """The worker's environment: ours, with BLAS kept to its threads."""
    return {**os.environ, **dict.fromkeys(_THREAD_VARIABLES, str(threads))}
