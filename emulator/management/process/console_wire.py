"""The UART's two directions through the shared memory: what it sent last, and what it is to receive."""

from __future__ import annotations

from collections.abc import Callable

from driver_shim.protocol.registers import CONSOLE_WINDOW_BYTES
from emulator.management.link import INPUT_BYTES, NUMBER_MASK, Link


class ConsoleWire:
    """The core's end. `copy_to` gets all output as well, for a terminal of the emulator's own."""

    def __init__(self, link: Link, copy_to: Callable[[bytes], None] | None = None) -> None:
        self._link = link
        self._copy_to = copy_to

    def transmit(self, data: bytes) -> None:
        """The UART sent these bytes."""
        written = self._link["console_written"]
        for at, octet in enumerate(data, written):
            self._link.console[at % CONSOLE_WINDOW_BYTES] = octet
        self._link.announce("console_written", written + len(data))
        if self._copy_to is not None:
            self._copy_to(data)

    def feed(self, receive: Callable[[bytes], int]) -> bool:
        """Offer what the host sent to the UART; True if it took any."""
        read = self._link["input_read"]
        waiting = (self._link.noticed("input_written") - read) & NUMBER_MASK
        if not waiting:
            return False
        data = bytes(self._link.input[(read + at) % INPUT_BYTES] for at in range(min(waiting, INPUT_BYTES)))
        taken = receive(data)
        self._link.announce("input_read", (read + taken) & NUMBER_MASK)
        return bool(taken)
