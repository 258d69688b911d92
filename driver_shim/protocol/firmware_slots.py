"""Layout of the management core's flash: firmware slots, and the boot state beside them (format 1).

Slots and boot state never change from contract 1.0 on: any tool must be able to mend any device.
"""

from __future__ import annotations

import enum
import zlib
from typing import NamedTuple

from driver_shim.protocol.layout import Layout, reserved, u8, u16, u32

FLASH_BYTES = 0x40_0000
SECTOR_BYTES = 0x1000
"""The smallest piece that can be erased."""
PAGE_BYTES = 0x100
"""The largest piece that one program operation writes."""
ERASED = 0xFF

BOOT_STATE_OFFSETS = (0x0000, 0x1000)
"""Two copies, a sector each: the one being rewritten may be lost, the other is whole."""
SLOT_BYTES = 0x10_0000


class ProvenSlot(enum.IntFlag):
    """Bits of `boot_state.proven_slots`."""

    A = 1 << 0
    B = 1 << 1


_NO_SLOTS = ProvenSlot(0)
_ALL_SLOTS = ProvenSlot.A | ProvenSlot.B


class Slot(enum.IntEnum):
    """A firmware bank."""

    NONE = 0
    A = 1
    B = 2

    @property
    def offset(self) -> int:
        """Where it begins in flash. Raises KeyError for NONE."""
        return SLOT_OFFSETS[self]

    @property
    def other(self) -> Slot:
        """The other bank. Raises KeyError for NONE."""
        return {Slot.A: Slot.B, Slot.B: Slot.A}[self]

    @property
    def proven_bit(self) -> ProvenSlot:
        """Its bit in `boot_state.proven_slots`. Raises KeyError for NONE."""
        return ProvenSlot[self.name]


SLOT_OFFSETS = {Slot.A: 0x10_0000, Slot.B: 0x20_0000}

LOAD_ADDRESS = 0x8000_0000
"""Where the boot ROM copies the reference firmware: the header first, the code behind it."""
STAGING_ADDRESS = 0x8020_0000
STAGING_BYTES = SLOT_BYTES
"""RAM in which an image is put together before it is verified and written."""
RETAINED_ADDRESS = 0x8030_0000
RETAINED_BYTES = 0x1_0000
"""RAM that no reset of the core touches, only power-off: the log lies there."""

BOOT_STATE_MAGIC = 0x5453_4F42
BOOT_STATE_VERSION = 1

BOOT_STATE = Layout(
    "boot_state",
    32,
    "magic" / u32,
    "version" / u16,
    "confirmed_slot" / u8,
    "trial_slot" / u8,
    "sequence" / u32,
    "trial_boots" / u8,
    "failed_slot" / u8,
    "proven_slots" / u8,
    reserved(13),
    "checksum" / u32,
)
"""One copy. `checksum` is the CRC-32 (zlib's) of the 28 bytes before it; the higher `sequence` counts."""
_CHECKED_BYTES = BOOT_STATE.size - 4
MAX_SEQUENCE = 0x7FFF_FFFF
"""Far more than a sector can be erased; a copy that has more is not whole, so that there always is a next one."""


class BootState(NamedTuple):
    """What the boot ROM goes by."""

    sequence: int = 0
    confirmed: Slot = Slot.NONE
    """Booted unless a trial is due."""
    trial: Slot = Slot.NONE
    """Booted once; then it must have been confirmed."""
    trial_boots: int = 0
    """How often the trial was started."""
    failed: Slot = Slot.NONE
    """The slot whose trial ended without being confirmed."""
    proven: ProvenSlot = _NO_SLOTS
    """The slots whose image was confirmed, at the factory or later, or written by recovery. Others were never shown to
    come up: nothing leads to them without a fall-back."""

    def forgetting(self, slot: Slot) -> BootState:
        """Without any mark that leads to a slot: to be written before the slot is erased."""
        state = self._replace(proven=self.proven & ~slot.proven_bit)
        if state.confirmed is slot:
            state = state._replace(confirmed=Slot.NONE)
        if state.trial is slot:
            state = state._replace(trial=Slot.NONE, trial_boots=0)
        if state.failed is slot:
            state = state._replace(failed=Slot.NONE)
        return state

    def build(self) -> bytes:
        """The encoded copy."""
        body = BOOT_STATE.build(
            magic=BOOT_STATE_MAGIC,
            version=BOOT_STATE_VERSION,
            confirmed_slot=int(self.confirmed),
            trial_slot=int(self.trial),
            sequence=self.sequence,
            trial_boots=self.trial_boots,
            failed_slot=int(self.failed),
            proven_slots=int(self.proven),
        )[:_CHECKED_BYTES]
        return body + zlib.crc32(body).to_bytes(4, "little")


def parse_boot_state(data: bytes) -> BootState | None:
    """One copy, None when it is not whole: a sector caught while it was written, or never written."""
    if len(data) != BOOT_STATE.size or not BOOT_STATE.reserved_clear(data):
        return None
    found = BOOT_STATE.parse(data)
    if found.magic != BOOT_STATE_MAGIC or found.version != BOOT_STATE_VERSION:
        return None
    if found.checksum != zlib.crc32(data[:_CHECKED_BYTES]) or found.sequence >= MAX_SEQUENCE:
        return None
    if max(found.confirmed_slot, found.trial_slot, found.failed_slot) > Slot.B or found.proven_slots & ~int(_ALL_SLOTS):
        return None
    return BootState(
        sequence=found.sequence,
        confirmed=Slot(found.confirmed_slot),
        trial=Slot(found.trial_slot),
        trial_boots=found.trial_boots,
        failed=Slot(found.failed_slot),
        proven=ProvenSlot(found.proven_slots),
    )


def newest_boot_state(copies: list[bytes]) -> tuple[BootState, int | None]:
    """What counts of the copies, and which of them it is; a fresh state and None when none is whole."""
    whole = [(state.sequence, index, state) for index, copy in enumerate(copies) if (state := parse_boot_state(copy))]
    if not whole:
        return BootState(), None
    _, index, state = max(whole)
    return state, index
