"""The management core put together: machine, our peripherals, boot ROM and recovery over one chip's storage."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from driver_shim.protocol.firmware_slots import FLASH_BYTES
from driver_shim.protocol.management_registers import (
    BLOCK_BYTES,
    BOOT,
    CRYPTO,
    DMA,
    FLASH,
    FLASH_BASE,
    MAILBOX,
    MANAGEMENT_BLOCKS,
    SENSORS,
    WATCHDOG,
)
from driver_shim.protocol.registers import CoreReset, Post
from emulator.management.link import Link
from emulator.management.npu.boot_record import BootRecord
from emulator.management.npu.boot_rom import BootRom
from emulator.management.npu.peripherals.boot import BootBlock
from emulator.management.npu.peripherals.crypto import CryptoEngine
from emulator.management.npu.peripherals.dma import DmaEngine
from emulator.management.npu.peripherals.flash_controller import FlashController
from emulator.management.npu.peripherals.mailbox import Mailbox
from emulator.management.npu.peripherals.sensors import Sensors
from emulator.management.npu.peripherals.watchdog import Watchdog
from emulator.management.npu.recovery import Recovery
from emulator.management.npu.storage import Storage
from emulator.management.npu.thermal import Thermal
from emulator.management.riscv.board import Board, MemoryEntry, PeripheralEntry, default_board, load_board
from emulator.management.riscv.executable import Executable, read_executable
from emulator.management.riscv.machine import ACCESS_CYCLES, Machine
from emulator.management.riscv.peripheral import Peripheral
from emulator.management.riscv.uart16550 import Uart16550

_FLASH_MEMORY = "flash"
_Kind = TypeVar("_Kind", bound=Peripheral)


def model_name(block_name: str) -> str:
    """What a board file calls one of our peripherals."""
    return f"npu-{block_name}"


MODEL_BYTES = {model_name(block.name): BLOCK_BYTES for block in MANAGEMENT_BLOCKS}


def npu_board() -> Board:
    """The NPU's own board: QEMU's `virt`, flash, and our peripherals."""
    board = default_board().with_memory(MemoryEntry(_FLASH_MEMORY, FLASH_BASE, FLASH_BYTES, writable=False))
    for block in MANAGEMENT_BLOCKS:
        board = board.with_peripheral(PeripheralEntry(block.name, model_name(block.name), block.base, block.interrupt))
    return board


@dataclass(frozen=True)
class ForeignFirmware:
    """Somebody's own image, started instead of what flash holds."""

    elf: Path | None
    """What to run; without it the board's memories hold the image already."""
    board: Path | None

    def load_board(self) -> Board:
        """Its board. Raises BoardError."""
        return load_board(self.board, MODEL_BYTES) if self.board else npu_board()


class Core:
    """One management core."""

    def __init__(
        self,
        storage: Storage,
        link: Link,
        thermal: Thermal,
        *,
        foreign: ForeignFirmware | None = None,
        transmit: Callable[[bytes], None],
        wake_function: Callable[[], None],
    ) -> None:
        """Power on, held in reset: `boot` comes next. Raises BoardError, ElfError."""
        self._link = link
        self._foreign = foreign
        self.record = BootRecord(link)
        board = foreign.load_board() if foreign else npu_board()
        models: dict[str, Callable[[Machine, int], Peripheral]] = {
            model_name(BOOT.name): lambda machine, _: BootBlock(machine, self.record, storage.one_time),
            model_name(MAILBOX.name): lambda machine, interrupt: Mailbox(machine, interrupt, link),
            model_name(DMA.name): lambda machine, interrupt: DmaEngine(machine, interrupt, link, wake_function),
            model_name(FLASH.name): lambda machine, _: FlashController(machine, storage.flash),
            model_name(CRYPTO.name): lambda machine, _: CryptoEngine(machine),
            model_name(SENSORS.name): lambda _, __: Sensors(link, thermal),
            model_name(WATCHDOG.name): lambda machine, _: Watchdog(machine),
        }
        has_flash = any(memory.name == _FLASH_MEMORY for memory in board.memories)
        buffers = {_FLASH_MEMORY: storage.memory} if has_flash and (not foreign or not foreign.board) else {}
        self.machine = Machine(board, models=models, buffers=buffers, transmit=transmit, access_cycles=ACCESS_CYCLES)
        self._program: Executable | None = None
        try:
            if foreign is not None and foreign.elf is not None:
                self._program = read_executable(foreign.elf)
                self.machine.symbolize = self._program.symbols.place
                self._program.load(self.machine.memories, self.machine.load_memory)
        except BaseException:
            self.machine.close()
            raise
        storage.flash.on_change = self._flash_changed
        self.rom = BootRom(storage.flash, storage.one_time, self.record)
        self.recovery = Recovery(self.rom, storage.flash, self.machine.read_memory, self.machine.write_memory)

    def boot(self, reason: CoreReset) -> bool:
        """Reset the core and start what is to run; False when it is in recovery mode and runs nothing."""
        self.machine.reset()
        if self._foreign is not None:
            return self._boot_foreign(reason)
        image = self.rom.boot(reason)
        if image is None:
            self.record.set_post_code(Post.RECOVERY)
            self._link["stopped"] = 1
            return False
        self.machine.load_memory(image.load_address, image.loaded_region)
        for watchdog in self._all(Watchdog):
            watchdog.start()
        self._hand_over(image.load_address + image.header_size)
        return True

    def _boot_foreign(self, reason: CoreReset) -> bool:
        self.record.begin(reason)
        entry = self.machine.board.reset_vector
        if self._program is not None:
            self._program.load(self.machine.memories, self.machine.load_memory)
            entry = self._program.entry
        self._hand_over(entry)
        return True

    def _hand_over(self, entry: int) -> None:
        self.record.set_post_code(Post.HANDED_OVER)
        self._link["stopped"] = 0
        self.machine.start(entry)

    def look(self) -> bool:
        """Take what the PCI function has left in the shared memory; True if there was anything."""
        return any([*(box.look() for box in self._all(Mailbox)), *(engine.look() for engine in self._all(DmaEngine))])

    def receive(self, data: bytes) -> int:
        """Bytes for the UART. Returns how many it took; the rest should be offered again."""
        return max((uart.receive(data) for uart in self._all(Uart16550)), default=len(data))

    def power_off(self) -> None:
        """The image has switched the core off."""
        self.record.set_post_code(Post.POWERED_OFF)
        self._link["stopped"] = 1

    def _all(self, kind: type[_Kind]) -> list[_Kind]:
        return [peripheral for peripheral in self.machine.peripherals.values() if isinstance(peripheral, kind)]

    def _flash_changed(self, offset: int, size: int) -> None:
        self.machine.code_changed(FLASH_BASE + offset, size)

    def close(self) -> None:
        """Free the machine; the storage is the caller's."""
        self.machine.close()
