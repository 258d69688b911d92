"""The chip's storage without power: flash, its wear, and the one-time-programmed values, in one file.

The file outlives the core's process, and with a state folder the emulator's. It is written in place, as flash is: a
kill in the middle of an operation leaves it half done.
"""

from __future__ import annotations

import mmap
import os
from pathlib import Path

from driver_shim.protocol.firmware_slots import (
    BOOT_STATE_OFFSETS,
    ERASED,
    FLASH_BYTES,
    PAGE_BYTES,
    SECTOR_BYTES,
    SLOT_OFFSETS,
    BootState,
    ProvenSlot,
    Slot,
)
from driver_shim.protocol.image_layout import DEVELOPMENT_KEY_HASH
from driver_shim.protocol.management_registers import HARDWARE_ID
from driver_shim.shared.whole_file import replace_whole
from emulator.management.npu.flash import SECTORS, Flash
from emulator.management.npu.one_time import OneTimeError, OneTimeValues, fresh_values
from emulator.state_error import StateError

WEAR_OFFSET = FLASH_BYTES
WEAR_BYTES = 4 * SECTORS
ONE_TIME_OFFSET = WEAR_OFFSET + WEAR_BYTES
STORAGE_BYTES = ONE_TIME_OFFSET + SECTOR_BYTES
STORAGE_FILE = "flash.bin"


class Storage:
    """The file, mapped for as long as somebody has a view of it."""

    def __init__(self, fd: int) -> None:
        """`fd` stays the caller's. Raises OneTimeError when it is no storage, StateError when it is cut short."""
        size = os.fstat(fd).st_size
        if size < STORAGE_BYTES:
            raise StateError(f"flash has {size} bytes instead of {STORAGE_BYTES}; begin with a new state folder")
        whole = memoryview(mmap.mmap(fd, STORAGE_BYTES))
        self.memory = whole[:FLASH_BYTES]
        """All of flash, as the core sees it on its bus."""
        self.one_time = OneTimeValues(whole[ONE_TIME_OFFSET:])
        self.wear = whole[WEAR_OFFSET : WEAR_OFFSET + WEAR_BYTES].cast("I")
        """Erases of each sector."""
        self.flash = Flash(self.memory, self.wear)


def fresh_storage(image: bytes | None) -> bytes:
    """A chip as it leaves the factory: with `image` confirmed in slot A, or with empty slots."""
    contents = bytearray([ERASED]) * FLASH_BYTES
    if image is not None:
        offset = SLOT_OFFSETS[Slot.A]
        contents[offset : offset + len(image)] = image
        page = BootState(sequence=1, confirmed=Slot.A, proven=ProvenSlot.A).build().ljust(PAGE_BYTES, bytes([ERASED]))
        contents[BOOT_STATE_OFFSETS[0] : BOOT_STATE_OFFSETS[0] + PAGE_BYTES] = page
    contents += bytes(WEAR_BYTES)
    contents += fresh_values(HARDWARE_ID, DEVELOPMENT_KEY_HASH).ljust(SECTOR_BYTES, b"\0")
    return bytes(contents)


def open_storage(folder: Path | None, image: bytes | None) -> int:
    """A descriptor of the storage in a state folder, made with `image` if it is not there; without one, of memory.

    Raises StateError when what is there is not usable, OSError when the system refuses.
    """
    if folder is None:
        fd = os.memfd_create("npu-flash", os.MFD_CLOEXEC)
        os.pwrite(fd, fresh_storage(image), 0)
        return fd
    path = folder / STORAGE_FILE
    try:
        if not path.exists():
            replace_whole(path, fresh_storage(image))
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise StateError(f"{path}: {error.strerror}; name a state folder that can be written") from error
    try:
        _check(path, fd)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _check(path: Path, fd: int) -> None:
    """Raise StateError unless the file is a storage that this version understands."""
    size = os.fstat(fd).st_size
    if size != STORAGE_BYTES:
        raise StateError(f"{path} has {size} bytes, flash {STORAGE_BYTES}; remove it to begin with a new chip")
    try:
        Storage(fd)
    except OneTimeError as error:
        raise StateError(f"{path} is damaged or of another version ({error}); remove it for a new chip") from error
