"""Registers of BAR0 that show the core, over the memory that is shared with its process."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

from driver_shim.protocol.mailbox import MailboxState
from driver_shim.protocol.registers import MAILBOX_DATA_REGISTERS, NEVER_MEASURED, REGISTERS, Post
from driver_shim.shared import fences
from emulator.management.link import INPUT_BYTES, NUMBER_MASK, Link

_NS_PER_MS = 1_000_000
_DATA_BYTES = 8
"""Of one `mailbox_data` register."""


class CoreRegisters:
    """A reader or writer for each register, by name. A writer returns what `ManagementPort.write` does."""

    def __init__(self, link: Link, is_alive: Callable[[], bool], kick: Callable[[], None]) -> None:
        """`is_alive` tells whether there is a process; `kick` has it look at what was written."""
        self._link = link
        self._is_alive = is_alive
        self._kick = kick
        self._idle = True
        """Whether the mailbox is; else a request was rung for and not withdrawn."""
        data = [(f"mailbox_data_{index}", _DATA_BYTES * index) for index in range(MAILBOX_DATA_REGISTERS)]
        self.readers: dict[str, Callable[[], int]] = {
            "boot_progress": self._boot_progress,
            "firmware_version": partial(self._of_image, "version"),
            "firmware_build_id": partial(self._of_image, "build_id"),
            "sensor_temperature": partial(link.__getitem__, "temperature"),
            "sensor_power": partial(link.__getitem__, "power"),
            "sensor_voltage": partial(link.__getitem__, "voltage"),
            "sensor_age": self._sensor_age,
            "throttle": partial(link.__getitem__, "throttle"),
            "console_written": partial(link.noticed, "console_written"),
            "console_room": self._console_room,
            "mailbox_status": self._mailbox_status,
            **{name: partial(self._read_data, at) for name, at in data},
        }
        self.writers: dict[str, Callable[[int], bool]] = {
            "core_control": self._control,
            "console_input": self._type,
            "mailbox_control": self._mailbox_control,
            **{name: partial(self._write_data, at) for name, at in data},
        }

    @property
    def _answers(self) -> bool:
        """Whether there is a core that executes, or will once it has booted."""
        return self._is_alive() and not self._link["hold"] and not self._link["stopped"]

    def _boot_progress(self) -> int:
        register = REGISTERS["boot_progress"]
        if not self._is_alive():
            return register.encode(post_code=Post.LOST)
        if self._link["hold"]:
            return register.encode(post_code=Post.HELD)
        return self._link["boot_progress"] or register.encode(post_code=Post.BOOT_ROM)

    def _of_image(self, word: str) -> int:
        """A fact of the image that runs; zero when none does."""
        return self._link[word] if self._answers else 0

    def _control(self, value: int) -> bool:
        asked = REGISTERS["core_control"].decode(value)
        self._link["hold"] = asked["hold"]
        if asked["reset"] or asked["recovery"]:
            self._link["reset_to_recovery"] = asked["recovery"]
            self._link.count_up("reset_number")
        self._kick()
        return True

    def _sensor_age(self) -> int:
        if not self._link.noticed("publications"):
            return NEVER_MEASURED
        age_ms = (time.monotonic_ns() - self._link["published_ns"]) // _NS_PER_MS
        return min(max(age_ms, 0), NEVER_MEASURED - 1)

    def _console_room(self) -> int:
        if not self._answers:
            return 0
        return INPUT_BYTES - ((self._link["input_written"] - self._link.noticed("input_read")) & NUMBER_MASK)

    def _type(self, byte: int) -> bool:
        """Send a byte to the UART; without room it is lost."""
        if self._console_room():
            self._link.input[self._link["input_written"] % INPUT_BYTES] = byte & 0xFF
            self._link.count_up("input_written")
            self._kick()
        return True

    # --- mailbox -----------------------------------------------------------------------------------------------

    def _mailbox_state(self) -> MailboxState:
        if self._idle:
            return MailboxState.IDLE if self._answers else MailboxState.ABSENT
        if self._link.noticed("answer_number") == self._link["ring_number"]:
            return MailboxState.DONE
        return MailboxState.BUSY if self._answers else MailboxState.ABSENT

    def _mailbox_control(self, value: int) -> bool:
        asked = REGISTERS["mailbox_control"].decode(value)
        if asked["withdraw"]:
            self.withdraw()
        return self._ring() if asked["ring"] else True

    def _ring(self) -> bool:
        """Hand the request over; False when one is on its way already."""
        state = self._mailbox_state()
        if state is MailboxState.BUSY:
            return False
        if state is not MailboxState.ABSENT:
            self._idle = False
            self._link.count_up("ring_number")
            self._kick()
        return True

    def withdraw(self) -> None:
        """Forget the request that is on its way."""
        self._idle = True
        # before anything is written over the request: the core may be copying it
        self._link["withdraw_number"] = (self._link["withdraw_number"] + 1) & NUMBER_MASK
        fences.publish()

    def _mailbox_status(self) -> int:
        state = self._mailbox_state()
        result = self._link["answer_result"] if state is MailboxState.DONE else 0
        return REGISTERS["mailbox_status"].encode(state=state, result=result)

    def _read_data(self, at: int) -> int:
        area = self._link.answer if self._mailbox_state() is MailboxState.DONE else self._link.request
        return int.from_bytes(area[at : at + _DATA_BYTES], "little")

    def _write_data(self, at: int, value: int) -> bool:
        state = self._mailbox_state()
        if state is not MailboxState.BUSY:  # else the window is the firmware's
            self._idle = self._idle or state is MailboxState.DONE  # the answer was taken; this is the next request
            self._link.request[at : at + _DATA_BYTES] = value.to_bytes(_DATA_BYTES, "little")
        return True
