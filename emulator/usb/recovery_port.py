"""Interface through which the debug port writes firmware: whoever verifies and flashes may be another process."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from driver_shim.protocol.firmware_slots import Slot
from driver_shim.protocol.mailbox import MailboxResult


class Outcome(NamedTuple):
    """How `stage`, `verify` or `install` ended."""

    result: MailboxResult
    text: str = ""
    """For people, when the result is not OK."""


class SlotUnreadable(Exception):
    """A slot cannot be read: whoever reads it is away."""

    def __init__(self, outcome: Outcome) -> None:
        """Why."""
        super().__init__(outcome.text)
        self.outcome = outcome


class RecoveryPort(Protocol):
    """Takes images while the management core is in recovery. No method waits for anybody.

    `stage`, `verify` and `install` begin something; one at a time, so they are called only while `poll` returns an
    outcome.
    """

    def stage(self, offset: int, data: bytes) -> None:
        """Begin to put bytes of an image into the staging memory; `offset` 0 begins a new image."""

    def verify(self, length: int) -> None:
        """Begin to verify the `length` bytes staged; nothing is written."""

    def install(self, slot: Slot, length: int) -> None:
        """Begin to verify the `length` bytes staged once more, and if they are good, to write them to a slot."""

    def poll(self) -> Outcome | None:
        """How what was begun last ended, as often as it is asked; None while it goes on. OK before anything began."""

    def slot_length(self, slot: Slot) -> int | None:
        """Bytes of the image in a slot, 0 in an empty one. None: not known yet, to be asked again.

        Raises SlotUnreadable.
        """

    def read_slot(self, slot: Slot, offset: int, length: int) -> bytes | None:
        """Bytes of a slot's image. None: not there yet, the same is to be asked again. Raises SlotUnreadable."""
