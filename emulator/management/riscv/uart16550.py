"""A 16550A UART whose line is infinitely fast: what is sent is gone at once, what is received arrives at once.

What the chip's data sheet leaves open is as in QEMU's model, which firmware for the `virt` board was tried on.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable

from emulator.management.riscv.peripheral import MachinePort, Peripheral

FIFO_BYTES = 16
_TRIGGER_LEVELS = (1, 4, 8, 14)


class _Register(enum.IntEnum):
    DATA = 0
    INTERRUPT_ENABLE = 1
    INTERRUPT_IDENTIFICATION = 2
    LINE_CONTROL = 3
    MODEM_CONTROL = 4
    LINE_STATUS = 5
    MODEM_STATUS = 6
    SCRATCH = 7


_IER_RECEIVED = 1 << 0
_IER_TRANSMITTER_EMPTY = 1 << 1
_IER_LINE_STATUS = 1 << 2
_IER_MASK = 0x0F

_IIR_NONE = 0x01
_IIR_TRANSMITTER_EMPTY = 0x02
_IIR_RECEIVED = 0x04
_IIR_LINE_STATUS = 0x06
_IIR_TIMEOUT = 0x0C
_IIR_FIFO = 0xC0

_FCR_ENABLE = 1 << 0
_FCR_CLEAR_RECEIVER = 1 << 1
_FCR_CLEAR_TRANSMITTER = 1 << 2
_FCR_TRIGGER_SHIFT = 6

_LCR_DIVISOR_LATCH = 1 << 7

_MCR_DTR = 1 << 0
_MCR_RTS = 1 << 1
_MCR_OUT1 = 1 << 2
_MCR_OUT2 = 1 << 3
_MCR_LOOPBACK = 1 << 4
_MCR_MASK = 0x1F

_LSR_DATA_READY = 1 << 0
_LSR_OVERRUN = 1 << 1
_LSR_TRANSMITTER_EMPTY = 0x60
"""Holding register and shift register."""

_DIVISOR_AT_RESET = 12
"""9600 baud."""

_MSR_CTS = 1 << 4
_MSR_DSR = 1 << 5
_MSR_RI = 1 << 6
_MSR_DCD = 1 << 7
_MSR_CONNECTED = _MSR_CTS | _MSR_DSR | _MSR_DCD


class Uart16550(Peripheral):
    """Eight registers, a byte apart. A wider access is one of the register at its address: its upper bytes are zero
    in a load and ignored in a store, so drivers may take the registers for words.
    """

    def __init__(self, port: MachinePort, interrupt: int, transmit: Callable[[bytes], None]) -> None:
        """`transmit` takes every byte that is sent."""
        self._port = port
        self._interrupt = interrupt
        self._transmit = transmit
        self._received: deque[int] = deque()
        self._clear()

    def _clear(self) -> None:
        self._received.clear()
        self._interrupt_enable = 0
        self._fifo = False
        self._trigger = _TRIGGER_LEVELS[0]
        self._line_control = 0
        self._modem_control = _MCR_OUT2
        self._scratch = 0
        self._divisor = _DIVISOR_AT_RESET
        self._last_received = 0
        self._overrun = False
        self._transmitter_pending = False

    def reset(self) -> None:
        """As after power-on; what was received is lost."""
        self._clear()
        self._drive()

    @property
    def room(self) -> int:
        """How many bytes `receive` would take now."""
        if self._modem_control & _MCR_LOOPBACK:
            return 0
        return (FIFO_BYTES if self._fifo else 1) - len(self._received)

    def receive(self, data: bytes) -> int:
        """Bytes arrive. Returns how many there was room for; the rest should be offered again."""
        taken = data[: max(self.room, 0)]
        self._received.extend(taken)
        if taken:
            self._drive()
        return len(taken)

    def read(self, offset: int, size: int) -> int:
        """See `Peripheral`."""
        return self._read_register(offset)

    def write(self, offset: int, size: int, value: int) -> None:
        """See `Peripheral`."""
        self._write_register(offset, value & 0xFF)

    def _read_register(self, register: int) -> int:
        match register:
            case _Register.DATA if self._line_control & _LCR_DIVISOR_LATCH:
                return self._divisor & 0xFF
            case _Register.DATA:
                if self._received:
                    self._last_received = self._received.popleft()
                    self._drive()
                elif self._fifo:
                    return 0
                return self._last_received
            case _Register.INTERRUPT_ENABLE if self._line_control & _LCR_DIVISOR_LATCH:
                return self._divisor >> 8
            case _Register.INTERRUPT_ENABLE:
                return self._interrupt_enable
            case _Register.INTERRUPT_IDENTIFICATION:
                identification = self._identify()
                if identification == _IIR_TRANSMITTER_EMPTY:
                    self._transmitter_pending = False
                    self._drive()
                return identification | (_IIR_FIFO if self._fifo else 0)
            case _Register.LINE_CONTROL:
                return self._line_control
            case _Register.MODEM_CONTROL:
                return self._modem_control
            case _Register.LINE_STATUS:
                status = _LSR_TRANSMITTER_EMPTY
                status |= _LSR_DATA_READY if self._received else 0
                status |= _LSR_OVERRUN if self._overrun else 0
                self._overrun = False
                self._drive()
                return status
            case _Register.MODEM_STATUS:
                return self._modem_status()
            case _Register.SCRATCH:
                return self._scratch
        return 0

    def _write_register(self, register: int, value: int) -> None:
        match register:
            case _Register.DATA if self._line_control & _LCR_DIVISOR_LATCH:
                self._divisor = self._divisor & 0xFF00 | value
            case _Register.DATA:
                self._send(value)
            case _Register.INTERRUPT_ENABLE if self._line_control & _LCR_DIVISOR_LATCH:
                self._divisor = self._divisor & 0x00FF | value << 8
            case _Register.INTERRUPT_ENABLE:
                if value & ~self._interrupt_enable & _IER_TRANSMITTER_EMPTY:
                    self._transmitter_pending = True
                self._interrupt_enable = value & _IER_MASK
            case _Register.INTERRUPT_IDENTIFICATION:
                self._control_fifo(value)
            case _Register.LINE_CONTROL:
                self._line_control = value
            case _Register.MODEM_CONTROL:
                self._modem_control = value & _MCR_MASK
            case _Register.SCRATCH:
                self._scratch = value
        self._drive()

    def _send(self, value: int) -> None:
        if self._modem_control & _MCR_LOOPBACK:
            if len(self._received) < (FIFO_BYTES if self._fifo else 1):
                self._received.append(value)
            else:
                self._overrun = True
                if not self._fifo:
                    self._received[0] = value
        else:
            self._transmit(bytes([value]))
        self._transmitter_pending = True

    def _control_fifo(self, value: int) -> None:
        enabled = bool(value & _FCR_ENABLE)
        if value & _FCR_CLEAR_RECEIVER or enabled != self._fifo:
            self._received.clear()
        if value & _FCR_CLEAR_TRANSMITTER or enabled != self._fifo:
            self._transmitter_pending = True
        self._fifo = enabled
        self._trigger = _TRIGGER_LEVELS[value >> _FCR_TRIGGER_SHIFT] if enabled else _TRIGGER_LEVELS[0]

    def _modem_status(self) -> int:
        if not self._modem_control & _MCR_LOOPBACK:
            return _MSR_CONNECTED
        pairs = ((_MCR_RTS, _MSR_CTS), (_MCR_DTR, _MSR_DSR), (_MCR_OUT1, _MSR_RI), (_MCR_OUT2, _MSR_DCD))
        return sum(status for control, status in pairs if self._modem_control & control)

    def _identify(self) -> int:
        """The interrupt of the highest priority."""
        if self._interrupt_enable & _IER_LINE_STATUS and self._overrun:
            return _IIR_LINE_STATUS
        if self._interrupt_enable & _IER_RECEIVED and self._received:
            # Below the trigger level the chip waits four characters' time, which take no time here.
            return _IIR_RECEIVED if len(self._received) >= self._trigger else _IIR_TIMEOUT
        if self._interrupt_enable & _IER_TRANSMITTER_EMPTY and self._transmitter_pending:
            return _IIR_TRANSMITTER_EMPTY
        return _IIR_NONE

    def _drive(self) -> None:
        self._port.set_interrupt(self._interrupt, self._identify() != _IIR_NONE)
