"""The management core as the PCI function has it: a process of its own.

The function never waits for it. What it wants of the bus it says in the shared memory and by an eventfd; when it dies,
boot progress reads `LOST` and the next reset of the device starts it anew, with the flash as it was.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import select
import signal
import socket
import subprocess
from collections.abc import Callable, Sequence

from driver_shim.protocol.registers import CONSOLE_WINDOW_BYTES
from driver_shim.shared.child_process import main_command, wait_or_kill
from emulator import timeouts
from emulator.host_memory.address_space import AddressSpace, DmaFault
from emulator.management.link import Link, make_link_file
from emulator.management.port import ManagementPort
from emulator.management.process.core_registers import CoreRegisters

_logger = logging.getLogger("npu.emulator.management")

_TICK_MASK = (1 << 64) - 1
_STEPS_PER_LIFE_CHECK = 64
"""The end of the process is looked for this seldom; until then its accesses just stay without an answer."""
EXIT_FAILED = 1
NEEDED_MODULES = ("unicorn", "cryptography")
"""What the extra `[firmware]` brings."""


def missing_modules() -> list[str]:
    """Modules of the extra `[firmware]` that are not installed; without them there is no management core."""
    return [name for name in NEEDED_MODULES if importlib.util.find_spec(name) is None]


class CoreProcess(ManagementPort):
    """A running core. It owns the descriptor of its storage."""

    def __init__(
        self,
        storage_fd: int,
        arguments: Sequence[str] = (),
        on_power_off: Callable[[int], None] | None = None,
        *,
        owns_terminal: bool = False,
    ) -> None:
        """Start it; it boots on its own. `arguments` are handed to `serve.py`. Raises OSError.

        `on_power_off` is told, once, of the exit code with which the image switched the core off. With `owns_terminal`
        the core's process has this process's standard input.
        """
        self._on_power_off = on_power_off
        self._owns_terminal = owns_terminal
        self._storage_fd = storage_fd
        self._arguments = tuple(arguments)
        self._link_fd = make_link_file()
        self._link = Link(self._link_fd)
        self._to_core = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._to_function = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._steps = 0
        self._busy_ticks = -1
        self._dma_done = 0
        self._power_offs = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._pidfd = -1
        self.recovery = None
        self._registers = CoreRegisters(self._link, lambda: self._process is not None, self._kick)
        self._start()

    def _start(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            inherited = (self._storage_fd, self._link_fd, self._to_core, self._to_function, theirs.fileno())
            self._process = subprocess.Popen(
                main_command(
                    "emulator.management.process.serve", *map(str, (os.getpid(), *inherited)), *self._arguments
                ),
                pass_fds=inherited,
                stdin=None if self._owns_terminal else subprocess.DEVNULL,
                process_group=None if self._owns_terminal else 0,
            )
            self._pidfd = os.pidfd_open(self._process.pid)
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        ours.setblocking(False)
        self.recovery = ours

    @property
    def pid(self) -> int:
        """Of the core's process; 0 when it is lost."""
        return self._process.pid if self._process else 0

    def _lose(self) -> None:
        """The process has ended: nothing answers any more."""
        if self._process is None:
            return
        status = self._process.wait()
        self._forget_process()
        if self._on_power_off is None:
            _logger.error("the management core's process ended with status %d; a device reset starts it anew", status)
        else:  # without the image that it was started for, there is nothing to serve
            self._on_power_off(EXIT_FAILED)
            self._on_power_off = None

    def _forget_process(self) -> None:
        self._process = None
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1
        if self.recovery is not None:
            self.recovery.close()
            self.recovery = None

    def _kick(self) -> None:
        os.eventfd_write(self._to_core, 1)

    def step(self, memory: AddressSpace, *, bus_master: bool, busy_ticks: int) -> bool:
        """See ManagementPort."""
        link = self._link
        if busy_ticks != self._busy_ticks:
            self._busy_ticks = busy_ticks
            link["busy_ticks"] = busy_ticks & _TICK_MASK
        self._steps += 1
        if not self._steps % _STEPS_PER_LIFE_CHECK and self._process and select.select([self._pidfd], [], [], 0)[0]:
            self._lose()
            return True
        number, power_offs = link.noticed("dma_number"), link.noticed("power_offs")
        if number == self._dma_done and power_offs == self._power_offs:
            return False
        try:
            os.eventfd_read(self._to_function)
        except BlockingIOError:
            pass  # it is rung after the number is stored
        if power_offs != self._power_offs:
            self._power_offs = power_offs
            if self._on_power_off is not None:
                self._on_power_off(link["exit_code"] - 1)
                self._on_power_off = None
        if number != self._dma_done:
            self._transfer(memory, number, bus_master)
        return True

    def _transfer(self, memory: AddressSpace, number: int, bus_master: bool) -> None:
        link = self._link
        length = min(link["dma_length"], len(link.dma))
        failed = not bus_master
        if bus_master:
            try:
                memory.copy_from(link["dma_address"], link.dma[:length])
            except DmaFault as fault:
                _logger.info("the core's DMA failed: %s", fault)
                failed = True
        link["dma_failed"] = int(failed)
        self._dma_done = number
        link.announce("dma_finished", number)
        self._kick()

    def wake_fds(self) -> list[int]:
        """See ManagementPort."""
        return [self._to_function] if self._process is None else [self._to_function, self._pidfd]

    def read(self, register: str) -> int:
        """See ManagementPort."""
        return self._registers.readers[register]()

    def write(self, register: str, value: int) -> bool:
        """See ManagementPort."""
        return self._registers.writers[register](value)

    def window(self, offset: int, size: int) -> bytes:
        """See ManagementPort."""
        return bytes(self._link.console[offset : min(offset + size, CONSOLE_WINDOW_BYTES)])

    def device_reset(self) -> None:
        """See ManagementPort."""
        self._registers.withdraw()
        if self._process is not None and select.select([self._pidfd], [], [], 0)[0]:
            self._lose()
        if self._process is None:
            self._link["stopped"] = self._link["boot_progress"] = self._link["version"] = 0
            self._link["answer_number"] = self._link["ring_number"]  # what it was asked will not be answered
            try:
                self._start()
            except OSError as error:
                _logger.error("the management core does not start: %s", error)

    def close(self) -> None:
        """See ManagementPort."""
        if self._link_fd < 0:
            return
        process = self._process
        self._forget_process()  # its end of the channel reads end-of-file
        if process is not None:
            process.send_signal(signal.SIGTERM)
            if not wait_or_kill(process, timeouts.CORE_STOP_S, timeouts.REAP_S):
                _logger.warning("the management core's process %d was killed and does not end", process.pid)
        self._link.close()
        for fd in (self._link_fd, self._to_core, self._to_function, self._storage_fd):
            os.close(fd)
        self._link_fd = -1
