"""Base of all our peripherals: 32-bit registers that store, and tables of those that do more."""

from __future__ import annotations

from collections.abc import Callable

from driver_shim.protocol.management_registers import Block
from driver_shim.protocol.register_kinds import Access
from emulator.management.riscv.peripheral import Peripheral

WORD_BYTES = 4


class RegisterPeripheral(Peripheral):
    """A block of registers. Accesses of another width or to nothing read zero, store nothing and are reported."""

    def __init__(
        self, block: Block, reads: dict[str, Callable[[], int]], writes: dict[str, Callable[[int], None]]
    ) -> None:
        """`reads` gives a register's value, `writes` is told of one after it was stored."""
        registers = block.registers
        self._reset_values = {register.offset: register.reset_value for register in registers}
        self._stored = {register.offset: register.mask_of(Access.RW) for register in registers}
        self._values = dict(self._reset_values)
        self._offsets = {register.name: register.offset for register in registers}
        self._reads = {registers[name].offset: read for name, read in reads.items()}
        self._writes = {registers[name].offset: write for name, write in writes.items()}

    def read(self, offset: int, size: int) -> int:
        """See Peripheral."""
        if not self._is_register(offset, size):
            return 0
        read = self._reads.get(offset)
        return read() if read else self._values[offset]

    def write(self, offset: int, size: int, value: int) -> None:
        """See Peripheral."""
        if not self._is_register(offset, size):
            return
        mask = self._stored[offset]
        self._values[offset] = self._values[offset] & ~mask | value & mask
        write = self._writes.get(offset)
        if write:
            write(value)
        elif not mask and self.report:
            self.report(f"the register at {offset:#x} is read-only")

    def _is_register(self, offset: int, size: int) -> bool:
        if size == WORD_BYTES and offset in self._values:
            return True
        if self.report:
            missing = f"no register is at {offset:#x}"
            self.report(f"{size} bytes, registers have {WORD_BYTES}" if offset in self._values else missing)
        return False

    def reset(self) -> None:
        """See Peripheral."""
        self._values.update(self._reset_values)

    def value(self, name: str) -> int:
        """What a register stores."""
        return self._values[self._offsets[name]]

    def store(self, name: str, value: int) -> None:
        """Set what a register stores."""
        self._values[self._offsets[name]] = value

    def words(self, first: str, count: int) -> bytes:
        """What `count` registers from `first` on store, as bytes."""
        start = self._offsets[first]
        return b"".join(self._values[start + WORD_BYTES * i].to_bytes(WORD_BYTES, "little") for i in range(count))

    def store_words(self, first: str, data: bytes) -> None:
        """Set what the registers from `first` on store."""
        start = self._offsets[first]
        for at in range(0, len(data), WORD_BYTES):
            self._values[start + at] = int.from_bytes(data[at : at + WORD_BYTES], "little")
