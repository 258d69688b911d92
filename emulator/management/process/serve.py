"""The management core's process: runs the core in slices, sleeps while it waits, ends with the emulator.

While the core works its time is that of its own instructions, the same at each run; while it waits it follows the wall
(`pace.py`). A core that never waits gets its share of one CPU and no more.
"""

from __future__ import annotations

import argparse
import logging
import os
import select
import signal
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from driver_shim.protocol.elf import ElfError
from driver_shim.protocol.management_registers import MTIME_HERTZ
from driver_shim.protocol.registers import CoreReset
from driver_shim.shared.child_process import die_with_parent
from emulator.management.link import Link
from emulator.management.npu.core import Core, ForeignFirmware
from emulator.management.npu.one_time import OneTimeError
from emulator.management.npu.storage import Storage
from emulator.management.npu.thermal import Thermal, ThermalFigures
from emulator.management.process.console_wire import ConsoleWire
from emulator.management.process.pace import Pace
from emulator.management.process.recovery_channel import answer_requests
from emulator.management.process.uart_port import UartPort, UartPortError, open_uart_port
from emulator.management.riscv.board import BoardError
from emulator.management.riscv.machine import Stop, StopReason
from emulator.state_error import StateError

_logger = logging.getLogger("npu.emulator.management")

CORE_NICENESS = 5
"""The core yields to the bus."""
EXIT_FAILED = 1
EXIT_CODE_MASK = 0xFF
"""What a process can end with; QEMU cuts the rest off too."""
_MS_PER_S = 1000
_LONGEST_SLEEP_TICKS = 3600 * MTIME_HERTZ
"""What `poll` can be told; a program's next deadline may be tens of thousands of years away."""


class CoreLoop:
    """Runs one core until the emulator is gone."""

    def __init__(
        self,
        core: Core,
        link: Link,
        wire: ConsoleWire,
        wake_fd: int,
        channel: socket.socket,
        share: float,
        wake_function: Callable[[], None],
        uart: UartPort | None = None,
    ) -> None:
        self._core = core
        self._link = link
        self._wire = wire
        self._wake_fd = wake_fd
        self._channel = channel
        self._wake_function = wake_function
        self._pace = Pace(share)
        self._reset_number = link["reset_number"]
        self._runs = False
        self._gone = False
        self._poller = select.poll()
        self._poller.register(wake_fd, select.POLLIN)
        self._poller.register(channel, select.POLLIN)
        self._uart = uart
        self._uart_fds: dict[int, int] = {}
        self._typed = b""
        """What came from `uart` and the core's UART had no room for yet."""
        self._watch_uart()

    def run(self) -> None:
        """Until the emulator is gone."""
        self._boot(CoreReset.POWER_ON)
        while not self._gone:
            self._look()
            if self._link["hold"] or not self._runs:
                self._flush()
                self._sleep(None)
                self._pace.begin(self._core.machine.tick)
                continue
            stop = self._work()
            if stop.reason is StopReason.RUNNING:
                self._sleep(0.0)
            elif stop.reason is StopReason.WAITING:
                self._wait(stop)
            else:
                self._end(stop)
            self._rest()

    def _work(self) -> Stop:
        """Run one slice; between slices the core is told of what the function left for it."""
        machine, pace = self._core.machine, self._pace
        started_ns = time.monotonic_ns()
        stop = machine.run(pace.instructions)
        pace.worked(time.monotonic_ns() - started_ns, whole_slice=stop.reason is StopReason.RUNNING)
        self._flush()
        return stop

    def _look(self) -> None:
        """Deal with what the function wants: a reset, requests, input."""
        number = self._link.noticed("reset_number")
        if number != self._reset_number:
            self._reset_number = number
            self._boot(CoreReset.RECOVERY if self._link["reset_to_recovery"] else CoreReset.HOST)
        if self._runs and not self._link["hold"]:
            self._core.look()
            self._wire.feed(self._core.receive)
            if self._typed:
                self._typed = self._typed[self._core.receive(self._typed) :]
                self._watch_uart()

    def _wait(self, stop: Stop) -> None:
        """Sleep until the core's next deadline or until somebody wants something; the core's time goes on."""
        machine, pace = self._core.machine, self._pace
        idle = _LONGEST_SLEEP_TICKS
        if stop.until is not None:
            idle = min(max(0, stop.until - machine.tick - pace.lag(machine.tick)), idle)
        self._sleep(idle / MTIME_HERTZ)
        machine.advance_to(machine.tick + pace.lag(machine.tick, idle))

    def _rest(self) -> None:
        """What the core's share of the CPU asks for. Nothing ends it early: pokes are no CPU time."""
        rest_s = self._pace.rest_s()
        if rest_s:
            started_ns = time.monotonic_ns()
            time.sleep(rest_s)
            self._pace.rested(time.monotonic_ns() - started_ns)

    def _end(self, stop: Stop) -> None:
        if stop.reason is StopReason.RESET:
            self._boot(stop.reset or CoreReset.FIRMWARE)
            return
        if stop.reason is StopReason.POWER_OFF:
            _logger.info("the image switched the core off with code %d", stop.exit_code or 0)
            self._link["exit_code"] = ((stop.exit_code or 0) & EXIT_CODE_MASK) + 1
        else:
            _logger.error("the core stopped at an access to nothing")
            self._link["exit_code"] = EXIT_FAILED + 1
        self._core.power_off()
        self._runs = False
        self._flush()
        self._link.count_up("power_offs")
        self._wake_function()

    def _boot(self, reason: CoreReset) -> None:
        self._runs = self._core.boot(reason)
        self._pace.begin(self._core.machine.tick)

    def _flush(self) -> None:
        if self._uart is not None:
            self._uart.flush()
            self._watch_uart()

    def _sleep(self, seconds: float | None) -> None:
        """At most this long; for ever with None. Ends early when the function or the USB controller wants something."""
        timeout_ms = None if seconds is None else seconds * _MS_PER_S
        started_ns = time.monotonic_ns()
        events = self._poller.poll(timeout_ms)
        self._pace.rested(time.monotonic_ns() - started_ns)
        for fd, event in events:
            if fd == self._wake_fd:
                os.eventfd_read(self._wake_fd)
            elif fd in self._uart_fds and self._uart is not None:
                if event & ~select.POLLOUT:
                    self._typed += self._uart.serve(fd)
                self._flush()
            elif not answer_requests(self._channel, None if self._runs else self._core.recovery):
                self._gone = True

    def _watch_uart(self) -> None:
        """Look out for clients, for input while what came before was taken, for room while there is output left."""
        if self._uart is None:
            return
        wanted = dict.fromkeys(self._uart.fds() if not self._typed else (), select.POLLIN)
        for fd in self._uart.full_fds():
            wanted[fd] = wanted.get(fd, 0) | select.POLLOUT
        if wanted == self._uart_fds:
            return
        for fd in self._uart_fds.keys() - wanted.keys():
            self._poller.unregister(fd)
        for fd, events in wanted.items():
            self._poller.register(fd, events)
        self._uart_fds = wanted


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """What `core_process.py` and `options.py` say."""
    parser = argparse.ArgumentParser(prog="python -m emulator.management")
    for name in ("owner", "storage_fd", "link_fd", "wake_fd", "function_fd", "channel_fd"):
        parser.add_argument(name, type=int)
    parser.add_argument("--ticks-per-s", type=int, required=True)
    parser.add_argument("--engines", type=int, required=True)
    parser.add_argument("--share", type=float, required=True)
    parser.add_argument("--ambient", type=float, default=ThermalFigures.ambient_celsius)
    parser.add_argument("--firmware", type=Path)
    parser.add_argument("--board", type=Path)
    parser.add_argument("--uart")
    parser.add_argument("--log-level", default="WARNING")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> None:
    """Run until the emulator is gone."""
    chosen = parse_arguments(arguments)
    die_with_parent(chosen.owner)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in the terminal is the emulator's to handle
    os.nice(CORE_NICENESS)
    logging.basicConfig(format="%(asctime)s %(name)s %(levelname)s %(message)s")
    logging.getLogger("npu").setLevel(chosen.log_level)
    try:
        _serve(chosen)
    except (BoardError, ElfError, OneTimeError, StateError, UartPortError, OSError) as error:
        _logger.error("%s", error)
        raise SystemExit(EXIT_FAILED) from error


def _serve(chosen: argparse.Namespace) -> None:
    with ExitStack() as cleanup:
        channel = cleanup.enter_context(socket.socket(fileno=chosen.channel_fd))
        channel.setblocking(False)
        link = Link(chosen.link_fd)
        storage = Storage(chosen.storage_fd)
        uart = open_uart_port(chosen.uart, lambda text: _logger.warning("%s", text)) if chosen.uart else None
        if uart is not None:
            cleanup.callback(uart.close)
        wire = ConsoleWire(link, uart.send if uart is not None else None)

        def wake_function() -> None:
            os.eventfd_write(chosen.function_fd, 1)

        thermal = Thermal(
            ThermalFigures(ambient_celsius=chosen.ambient),
            lambda: link["busy_ticks"],
            chosen.ticks_per_s,
            chosen.engines,
        )
        foreign = ForeignFirmware(chosen.firmware, chosen.board) if chosen.firmware or chosen.board else None
        core = Core(
            storage,
            link,
            thermal,
            foreign=foreign,
            transmit=wire.transmit,
            wake_function=wake_function,
        )
        cleanup.callback(core.close)
        CoreLoop(core, link, wire, chosen.wake_fd, channel, chosen.share, wake_function, uart).run()
