"""The 16550A UART, as a driver sees it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from emulator.management.riscv.uart16550 import Uart16550
from tests.support.riscv import NOP, UART, Rig, addi, lbu, li, sb

RBR, IER, IIR, LCR, MCR, LSR, MSR, SCR = range(8)


class Bench:
    """A UART in a machine, its output and its interrupt line."""

    def __init__(self) -> None:
        self.sent = bytearray()
        self.rig = Rig(NOP, transmit=self.sent.extend)
        uart = self.rig.machine.peripherals["serial"]
        assert isinstance(uart, Uart16550)
        self.uart = uart

    def interrupt(self) -> bool:
        """The line into the PLIC."""
        return bool(self.rig.machine.plic._levels >> 10 & 1)


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    with made.rig:
        yield made


def test_program_sends_and_receives() -> None:
    sent = bytearray()
    with Rig(*li(5, UART), addi(6, 0, 0x41), sb(6, 5), lbu(7, 5, LSR), lbu(8, 5), transmit=sent.extend) as rig:
        uart = rig.machine.peripherals["serial"]
        assert isinstance(uart, Uart16550)
        assert uart.receive(b"zy") == 1
        rig.run(10)
        assert (bytes(sent), rig.x(7), rig.x(8)) == (b"A", 0x61, 0x7A)


def test_fifo_takes_sixteen_bytes(bench: Bench) -> None:
    bench.uart.write(IIR, 1, 0x01)
    assert bench.uart.receive(bytes(range(20))) == 16
    assert bench.uart.room == 0
    assert [bench.uart.read(RBR, 1) for _ in range(17)] == [*range(16), 0]
    assert bench.uart.read(LSR, 1) == 0x60


def test_received_data_interrupts_while_there_is_any(bench: Bench) -> None:
    bench.uart.write(IER, 1, 0x01)
    assert bench.uart.read(IIR, 1) == 0x01
    bench.uart.receive(b"x")
    assert bench.interrupt()
    assert bench.uart.read(IIR, 1) == 0x04
    bench.uart.read(RBR, 1)
    assert not bench.interrupt()


def test_below_the_trigger_level_a_timeout_is_reported(bench: Bench) -> None:
    bench.uart.write(IIR, 1, 0x81)  # FIFO, eight bytes
    bench.uart.write(IER, 1, 0x01)
    bench.uart.receive(b"1234567")
    assert bench.uart.read(IIR, 1) == 0xCC
    bench.uart.receive(b"8")
    assert bench.uart.read(IIR, 1) == 0xC4


def test_empty_transmitter_interrupts_once(bench: Bench) -> None:
    bench.uart.write(IER, 1, 0x02)
    assert bench.interrupt()
    assert bench.uart.read(IIR, 1) == 0x02
    assert bench.uart.read(IIR, 1) == 0x01
    assert not bench.interrupt()
    bench.uart.write(RBR, 1, 0x42)
    assert bench.interrupt()
    assert bench.sent == b"B"


def test_clearing_the_fifo_drops_what_was_received(bench: Bench) -> None:
    bench.uart.write(IIR, 1, 0x01)
    bench.uart.receive(b"abc")
    bench.uart.write(IIR, 1, 0x03)
    assert bench.uart.read(LSR, 1) == 0x60


def test_divisor_latch_hides_data_and_interrupt_enable(bench: Bench) -> None:
    bench.uart.write(LCR, 1, 0x83)
    bench.uart.write(RBR, 1, 0x34)
    bench.uart.write(IER, 1, 0x12)
    assert (bench.uart.read(RBR, 1), bench.uart.read(IER, 1)) == (0x34, 0x12)
    bench.uart.write(LCR, 1, 0x03)
    assert (bench.uart.read(RBR, 1), bench.uart.read(IER, 1), bench.uart.read(LCR, 1)) == (0, 0, 3)
    assert bench.sent == b""


def test_loopback(bench: Bench) -> None:
    bench.uart.write(MCR, 1, 0x1F)
    assert bench.uart.read(MSR, 1) == 0xF0
    bench.uart.write(RBR, 1, 0x55)
    assert bench.uart.room == 0
    assert bench.uart.read(RBR, 1) == 0x55
    assert bench.sent == b""
    bench.uart.write(MCR, 1, 0x10)
    assert (bench.uart.read(MSR, 1), bench.uart.read(MCR, 1)) == (0, 0x10)


def test_overrun_in_loopback_is_told_once(bench: Bench) -> None:
    bench.uart.write(IER, 1, 0x04)
    bench.uart.write(MCR, 1, 0x10)
    bench.uart.write(RBR, 1, 1)
    bench.uart.write(RBR, 1, 2)
    assert bench.uart.read(IIR, 1) == 0x06
    assert bench.uart.read(LSR, 1) == 0x63
    assert bench.uart.read(LSR, 1) == 0x61


def test_without_fifo_the_last_byte_counts_and_stays(bench: Bench) -> None:
    bench.uart.write(MCR, 1, 0x10)
    bench.uart.write(RBR, 1, 1)
    bench.uart.write(RBR, 1, 2)
    assert [bench.uart.read(RBR, 1), bench.uart.read(RBR, 1)] == [2, 2]
    assert bench.uart.read(LSR, 1) == 0x62


@pytest.mark.parametrize("control", [0x05, 0x01])
def test_clearing_the_transmitter_empties_it_once_more(bench: Bench, control: int) -> None:
    bench.uart.write(IER, 1, 0x02)
    assert [bench.uart.read(IIR, 1), bench.uart.read(IIR, 1)] == [0x02, 0x01]
    bench.uart.write(IIR, 1, control)
    assert [bench.uart.read(IIR, 1), bench.uart.read(IIR, 1)] == [0xC2, 0xC1]


def test_a_wide_access_is_one_of_its_first_register(bench: Bench) -> None:
    bench.uart.write(LCR, 1, 0x03)
    bench.uart.write(SCR, 1, 0xA5)
    bench.uart.write(RBR, 4, 0xFFFFFF41)
    assert bench.sent == b"A"
    assert (bench.uart.read(IER, 1), bench.uart.read(LCR, 1)) == (0, 0x03)
    bench.uart.write(MCR, 4, 0x03)
    assert (bench.uart.read(MCR, 4), bench.uart.read(MSR, 2), bench.uart.read(SCR, 1)) == (0x03, 0xB0, 0xA5)


def test_stray_accesses(bench: Bench) -> None:
    assert bench.uart.read(0x100, 4) == 0
    bench.uart.write(0x100, 4, 0xFFFFFFFF)
    assert bench.uart.read(MSR, 1) == 0xB0


def test_what_it_is_after_power_on(bench: Bench) -> None:
    assert [bench.uart.read(register, 1) for register in range(8)] == [0, 0, 1, 0, 0x08, 0x60, 0xB0, 0]
    bench.uart.write(LCR, 1, 0x80)
    assert [bench.uart.read(register, 1) for register in range(2)] == [12, 0]


def test_reset_forgets(bench: Bench) -> None:
    bench.uart.write(IER, 1, 0x03)
    bench.uart.receive(b"x")
    bench.uart.reset()
    assert (bench.uart.read(IER, 1), bench.uart.read(LSR, 1), bench.interrupt()) == (0, 0x60, False)
