"""A stranger's bare-metal program on a machine of its own, as `qemu-system-riscv32 -M virt -bios none -kernel` runs it.

`StandaloneRun` is stepped by whoever owns the loop (a process, a test); it neither sleeps nor blocks. It differs from
QEMU in that a1 is zero, for there is no device tree, and that the program begins at the file's entry.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from driver_shim.protocol.registers import CoreReset
from emulator.management.riscv.board import Board, default_board
from emulator.management.riscv.executable import Executable, read_executable
from emulator.management.riscv.machine import ACCESS_CYCLES, Machine, Stop, StopReason
from emulator.management.riscv.uart16550 import Uart16550

_HART_ID = 0
_STEP_INSTRUCTIONS = 100_000
"""Between two looks at the serial line: a millisecond of the program's time."""


class StandaloneRun:
    """One program on one machine. Close it, or use it as a context manager."""

    def __init__(self, program: Executable, board: Board, transmit: Callable[[bytes], None]) -> None:
        """`transmit` takes what the program sends. Raises BoardError or ElfError."""
        self._program = program
        self._unsent = bytearray()
        self.machine = Machine(board, transmit=transmit, access_cycles=ACCESS_CYCLES)
        try:
            self.machine.symbolize = program.symbols.place
            program.load(self.machine.memories, self.machine.load_memory)
        except BaseException:
            self.machine.close()
            raise
        uarts = [p for p in self.machine.peripherals.values() if isinstance(p, Uart16550)]
        self._uart = uarts[0] if uarts else None
        self.machine.start(program.entry, a0=_HART_ID)

    def __enter__(self) -> StandaloneRun:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the machine."""
        self.machine.close()

    @property
    def unsent(self) -> int:
        """Bytes that `send` was given and the program has had no room for."""
        return len(self._unsent)

    def send(self, data: bytes) -> None:
        """Bytes for the program's serial line; they wait until there is room."""
        self._unsent += data

    def step(self, max_instructions: int = _STEP_INSTRUCTIONS) -> Stop:
        """Run a little. When the program waits, tell with `advance_to` how long the caller slept."""
        self._feed()
        stop = self.machine.run(max_instructions)
        if stop.reason is StopReason.RESET and stop.reset is CoreReset.FIRMWARE:
            self.machine.reset()
            self._program.load(self.machine.memories, self.machine.load_memory)
            self.machine.start(self._program.entry, a0=_HART_ID)
            return Stop(StopReason.RUNNING)
        if stop.reason is StopReason.WAITING and self._unsent and self._feed():
            return self.machine.run(max_instructions)
        return stop

    def advance_to(self, tick: int) -> int:
        """See `Machine.advance_to`."""
        return self.machine.advance_to(tick)

    def _feed(self) -> int:
        if self._uart is None or not self._unsent:
            return 0
        taken = self._uart.receive(bytes(self._unsent[: self._uart.room]))
        del self._unsent[:taken]
        return taken


def load_elf(path: Path, transmit: Callable[[bytes], None], board: Board | None = None) -> StandaloneRun:
    """A run of an ELF file on a board, by default QEMU's. Raises BoardError, ElfError or OSError."""
    return StandaloneRun(read_executable(path), board or default_board(), transmit)


def run_elf(
    path: Path,
    board: Board | None = None,
    *,
    serial_input: bytes = b"",
    timeout_ticks: int,
) -> tuple[bytes, Stop]:
    """Run an ELF file to its end without sleeping: a wait takes no time but the program's own.

    Returns what it sent and why it ended: POWER_OFF, FAULT, a wait that nothing can end, or RUNNING when it has
    not ended after `timeout_ticks` of its own time.
    """
    sent: list[bytes] = []
    with load_elf(path, sent.append, board) as run:
        run.send(serial_input)
        stop = Stop(StopReason.RUNNING)
        while run.machine.tick < timeout_ticks:
            stop = run.step()
            if stop.reason is StopReason.WAITING and stop.until is not None:
                run.advance_to(min(stop.until, timeout_ticks))
                continue
            if stop.reason is not StopReason.RUNNING:
                break
        return b"".join(sent), stop
