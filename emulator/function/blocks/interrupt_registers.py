"""The registers that show interrupts and hold them back, before MSI-X."""

from __future__ import annotations

from emulator.function.blocks.interrupts import Interrupts
from emulator.function.blocks.registers import StoredValues


class InterruptRegisters:
    """interrupt_status remembers every vector raised; those that interrupt_mask holds back wait here."""

    def __init__(self, stored: StoredValues, interrupts: Interrupts) -> None:
        self._stored = stored
        self._interrupts = interrupts
        self._held = 0

    def raise_vector(self, vector: int) -> None:
        """Have the host interrupted, now or when it lets the vector through."""
        bit = 1 << vector
        self._stored["interrupt_status"] |= bit
        if self._stored["interrupt_mask"] & bit:
            self._held |= bit
        else:
            self._interrupts.trigger(vector)

    def write_mask(self, mask: int) -> None:
        """A write to interrupt_mask: vectors held back so far are delivered when it lets them."""
        released = self._held & ~mask
        self._held &= mask
        for vector in range(self._interrupts.count):
            if released >> vector & 1:
                self._interrupts.trigger(vector)

    def reset(self) -> None:
        """Forget what is held back; the registers themselves are reset with all others."""
        self._held = 0
