"""The management core's UART through registers, both ways, without disturbing anybody: looking changes nothing.

What the core sends lies in a window of the last 4 KiB, counted since power-on: neither a reset of the core nor one of
the device moves the count back.
"""

from __future__ import annotations

from typing import NamedTuple

from driver_shim.function.registers import Registers
from driver_shim.protocol.registers import BAR0, CONSOLE_WINDOW_BYTES, CONSOLE_WINDOW_OFFSET
from driver_shim.transport.base import Transport

_WORD_BYTES = 8


class Output(NamedTuple):
    """What the core sent since the last look."""

    offset: int
    """Number of the first byte, counted since power-on."""
    data: bytes
    lost_bytes: int
    """Overwritten before they were read; they came before `data`."""
    restarted: bool
    """The count began anew: the device was switched off and on."""


class Console:
    """One reader and writer. Any number can look at once; all bytes of all writers reach the core."""

    def __init__(self, transport: Transport, registers: Registers, *, history: bool = True) -> None:
        """With `history`, reading begins with what the window still holds. Raises DeviceLost."""
        self._transport = transport
        self._registers = registers
        written = self._written()
        self._position = max(0, written - CONSOLE_WINDOW_BYTES) if history else written

    def read(self) -> Output:
        """What was sent since the last call; does not wait. Raises DeviceLost."""
        written = self._written()
        restarted = written < self._position
        if restarted:
            self._position = 0
        begin = max(self._position, written - CONSOLE_WINDOW_BYTES)
        data = self._window(begin, written)
        # what the core has sent meanwhile took the place of the oldest bytes, perhaps while they were read
        safe = min(written, max(begin, self._written() - CONSOLE_WINDOW_BYTES))
        output = Output(safe, data[safe - begin :], safe - self._position, restarted)
        self._position = written
        return output

    def send(self, data: bytes) -> int:
        """Send as much as the core takes at the moment; returns how many bytes that was. Raises DeviceLost."""
        count = min(self._registers.console_room.bytes, len(data))
        for byte in data[:count]:
            self._registers.console_input.write(byte=byte)
        return count

    def _written(self) -> int:
        """The count. Raises DeviceLost where all registers read ones."""
        written = self._registers.console_written.bytes
        if written >> 63:
            self._registers.check_alive()
        return written

    def _window(self, begin: int, end: int) -> bytes:
        """The bytes from number `begin` on, a window of them at most."""
        first = begin - begin % _WORD_BYTES
        words = [
            self._transport.read(BAR0, CONSOLE_WINDOW_OFFSET + at % CONSOLE_WINDOW_BYTES, _WORD_BYTES)
            for at in range(first, end, _WORD_BYTES)
        ]
        data = b"".join(word.to_bytes(_WORD_BYTES, "little") for word in words)
        return data[begin - first : end - first]
