"""Requests to the firmware through the management mailbox, over any transport that has registers.

One request at a time. A request that is not answered in time, or that Ctrl-C cuts short, is withdrawn, so the mailbox
is usable by whoever comes next. An answer is taken away, which makes the mailbox idle again.
"""

from __future__ import annotations

import random
import threading
import time
from typing import NamedTuple

from driver_shim import timeouts
from driver_shim.errors import FirmwareError, Timeout
from driver_shim.firmware.answers import result_slug
from driver_shim.firmware.core_state import read_boot_progress
from driver_shim.function.registers import Registers
from driver_shim.protocol.mailbox import (
    BODY_BYTES,
    REQUEST,
    REQUEST_BODIES,
    MailboxCommand,
    MailboxResult,
    MailboxState,
)
from driver_shim.protocol.registers import BAR0, MAILBOX_DATA_OFFSET
from driver_shim.transport.base import Transport

_WORD_BYTES = 8
_SEQUENCES = 1 << 32


class Refusal(NamedTuple):
    """What to say of a result."""

    message: str
    remedy: str | None = None


REFUSALS: dict[MailboxResult, Refusal] = {
    MailboxResult.UNKNOWN_COMMAND: Refusal("it does not know this request", "update the firmware"),
    MailboxResult.BAD_LENGTH: Refusal("the request is not as long as it should be", "update tool and firmware"),
    MailboxResult.BAD_ARGUMENT: Refusal("the request has an argument that it does not accept"),
    MailboxResult.BUSY: Refusal("a firmware update is going on", "wait for its end: npuctl fw info shows it"),
    MailboxResult.TOO_LARGE: Refusal("the image does not fit the slot", "build a smaller one"),
    MailboxResult.BAD_FORMAT: Refusal(
        "that is no image which this device boots", "npuctl fw inspect shows what it is; sign it anew"
    ),
    MailboxResult.BAD_HASH: Refusal("the image does not match its hash: it was damaged", "get the file again"),
    MailboxResult.BAD_SIGNATURE: Refusal("the image's signature is wrong", "get it from its maker, or sign it anew"),
    MailboxResult.UNKNOWN_KEY: Refusal(
        "the image is signed with a key that this device does not trust", "sign it with the device's key"
    ),
    MailboxResult.NO_HARDWARE_ID: Refusal(
        "the image does not say which hardware it is for", "--allow-no-hwid, if you know that it is for this one"
    ),
    MailboxResult.WRONG_HARDWARE: Refusal("the image is for other hardware", "get the one for this device"),
    MailboxResult.ROLLED_BACK: Refusal(
        "the image's security counter is below the device's", "take a newer image: nothing overrides this"
    ),
    MailboxResult.DMA_FAULT: Refusal(
        "it could not read host memory", "check bus mastering and the IOMMU, and flash again"
    ),
    MailboxResult.CHANGED: Refusal(
        "the image changed in host memory while it was being verified", "flash again; nothing was activated"
    ),
    MailboxResult.FLASH_FAULT: Refusal(
        "flash does not read back as written", "flash again; if that fails too, the flash is worn out"
    ),
    MailboxResult.NOT_ON_TRIAL: Refusal("the running image is not on trial: there is nothing to confirm"),
    MailboxResult.NO_OTHER_IMAGE: Refusal(
        "the other slot holds nothing that could be booted", "flash an image: npuctl fw flash IMAGE"
    ),
    MailboxResult.ABORTED: Refusal("the update was aborted", "flash again: what was written is kept"),
    MailboxResult.NOT_STAGED: Refusal("bytes of the image are missing in the staging memory", "flash again"),
    MailboxResult.UNCONFIRMED: Refusal(
        "the running image is on trial, and the other slot is its only fall-back",
        "npuctl fw confirm keeps it, npuctl fw rollback returns to the other one",
    ),
    MailboxResult.UNTRIED: Refusal(
        "the image in the other slot failed its trial, or was never confirmed, and would have no fall-back",
        "flash it, which tries it: npuctl fw flash IMAGE --allow-reinstall --activate",
    ),
    MailboxResult.CORE_RESET: Refusal("the core was reset before it had answered", "ask again"),
}


def refused(address: str, what: str, result: int) -> FirmwareError:
    """The error for a result that is not OK; `what` says what was asked."""
    code = result_slug(result)
    known = REFUSALS.get(MailboxResult(result)) if result in MailboxResult.__members__.values() else None
    message, remedy = known or Refusal(f"it answers {code}", "update this tool: npuctl --version")
    return FirmwareError(
        f"{address}: the firmware refuses {what}: {message}",
        device=address,
        subsystem="firmware",
        cause=code,
        remedy=remedy,
        code=code,
        result=result,
    )


class Mailbox:
    """The mailbox of one open device. Thread-safe."""

    def __init__(self, transport: Transport, registers: Registers | None = None) -> None:
        self.address = transport.address
        self.registers = registers or Registers(transport)
        self._transport = transport
        self._lock = threading.Lock()
        # two processes (one of which looks through sysfs, say) must not take each other's answers for their own
        self._sequence = random.randrange(_SEQUENCES)

    def request(self, command: MailboxCommand, body: bytes = b"", *, limit_s: float = timeouts.MAILBOX_S) -> bytes:
        """Ask, and return the body of the answer.

        Raises FirmwareError (no firmware answers, or it refuses), Timeout, DeviceLost, ValueError for a wrong length.
        """
        shortest, longest = REQUEST_BODIES[command]
        if not shortest <= len(body) <= longest:
            raise ValueError(f"the body of {command.name} is {shortest} to {longest} bytes, got {len(body)}")
        with self._lock:
            deadline = time.monotonic() + limit_s
            self._await_turn(command, deadline, limit_s)
            self._sequence = (self._sequence + 1) % _SEQUENCES
            try:
                self._hand_over(command, body)
                result = self._await_answer(command, deadline, limit_s)
                answer = self._take_answer(command)
            finally:
                # in order: the answer was taken; else: it is not wanted any more
                self.registers.mailbox_control.write(withdraw=1)
        if result != MailboxResult.OK:
            raise refused(self.address, command.name.lower().replace("_", " "), result)
        return answer

    def progress(self) -> None:
        """Called on each turn of a wait outside of a request, as the transport's."""
        self._transport.progress()

    # --- handshake ---------------------------------------------------------------------------------------------

    def _await_turn(self, command: MailboxCommand, deadline: float, limit_s: float) -> None:
        """Wait while another process's request is on its way, or its answer waits to be taken."""
        waits = _Waits(self._transport)
        picked_up_by = time.monotonic() + timeouts.MAILBOX_PICK_UP_S
        while True:
            state = self._state(command)
            now = time.monotonic()
            if state == MailboxState.IDLE or (state == MailboxState.DONE and now > picked_up_by):
                return
            if now > deadline and state == MailboxState.ABSENT:
                raise self._silent(command, limit_s)
            if now > deadline:
                raise FirmwareError(
                    f"{self.address}: another program's request is in the mailbox, for {limit_s:g} s now",
                    device=self.address,
                    subsystem="firmware",
                    remedy="end that program, or reset the device: npuctl reset",
                    code="mailbox-busy",
                )
            waits.wait()

    def _hand_over(self, command: MailboxCommand, body: bytes) -> None:
        head = REQUEST.pack(int(command), len(body), self._sequence)
        request = head + body
        for at in range(0, len(request), _WORD_BYTES):
            word = int.from_bytes(request[at : at + _WORD_BYTES], "little")
            self._transport.write(BAR0, MAILBOX_DATA_OFFSET + at, word, _WORD_BYTES)
        self.registers.mailbox_control.write(ring=1)

    def _await_answer(self, command: MailboxCommand, deadline: float, limit_s: float) -> int:
        """Wait for the answer; returns its result."""
        waits = _Waits(self._transport)
        look_at = time.monotonic() + timeouts.LIVENESS_S
        while True:
            fields = self.registers.mailbox_status.fields()
            if fields["state"] == MailboxState.DONE:
                return fields["result"]
            now = time.monotonic()
            if fields["state"] == MailboxState.IDLE:
                raise FirmwareError(
                    f"{self.address}: the request {command.name} was taken back: the device or its core was reset",
                    device=self.address,
                    subsystem="firmware",
                    remedy="ask again",
                    code="mailbox-withdrawn",
                )
            if fields["state"] != MailboxState.BUSY or now > look_at:
                self._check(fields["state"], command)
                look_at = now + timeouts.LIVENESS_S
            if now > deadline:
                raise self._silent(command, limit_s)
            waits.wait()

    def _take_answer(self, command: MailboxCommand) -> bytes:
        """The answer's body. Raises FirmwareError when it is not the answer to this request."""
        first = self._transport.read(BAR0, MAILBOX_DATA_OFFSET, _WORD_BYTES).to_bytes(_WORD_BYTES, "little")
        answered, length, sequence = REQUEST.unpack_from(first)
        if (answered, sequence) != (command, self._sequence):
            raise FirmwareError(
                f"{self.address}: the answer is to request {answered:#x} (number {sequence}), not to {int(command):#x}"
                f" (number {self._sequence}): another program uses the mailbox",
                device=self.address,
                subsystem="firmware",
                remedy="end that program and ask again",
                code="mailbox-disturbed",
            )
        if length > BODY_BYTES:
            raise bad_answer(self.address, command, f"it says it is {length} bytes, the mailbox holds {BODY_BYTES}")
        data = b"".join(
            self._transport.read(BAR0, MAILBOX_DATA_OFFSET + at, _WORD_BYTES).to_bytes(_WORD_BYTES, "little")
            for at in range(REQUEST.size, REQUEST.size + length, _WORD_BYTES)
        )
        return data[:length]

    # --- the core's state --------------------------------------------------------------------------------------

    def _state(self, command: MailboxCommand) -> int:
        state = self.registers.mailbox_status.state
        if state not in (MailboxState.IDLE, MailboxState.DONE, MailboxState.BUSY):
            self._check(state, command)
        return state

    def _check(self, state: int, command: MailboxCommand) -> None:
        """Raise DeviceLost or FirmwareError unless an answer may still come."""
        self.registers.check_alive()
        explanation = read_boot_progress(self.registers).explanation
        if explanation is not None:
            raise FirmwareError(
                f"{self.address} does not answer {command.name}: {explanation.why}",
                device=self.address,
                subsystem="firmware",
                cause=explanation.code,
                remedy=explanation.remedy,
                code=explanation.code,
            )
        if state not in (MailboxState.BUSY, MailboxState.ABSENT):
            raise bad_answer(self.address, command, f"the mailbox is in the unknown state {state}")

    def _silent(self, command: MailboxCommand, limit_s: float) -> Timeout:
        return Timeout(
            f"{self.address}: no answer to {command.name} within {limit_s:g} s; the firmware stands at"
            f" {read_boot_progress(self.registers).stage}",
            device=self.address,
            subsystem="firmware",
            remedy="see npuctl console; its watchdog, or npuctl regs --unsafe core_control=2, resets the core",
        )


class _Waits:
    """Sleeps that grow: an answer usually comes at once, and a core at work should be left in peace."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._next_s = timeouts.MAILBOX_FIRST_POLL_S

    def wait(self) -> None:
        self._transport.progress()
        time.sleep(self._next_s)
        self._next_s = min(2 * self._next_s, timeouts.MAILBOX_POLL_S)


def bad_answer(address: str, command: MailboxCommand, why: str) -> FirmwareError:
    """The error for an answer that no firmware of ours gives."""
    return FirmwareError(
        f"{address}: the answer to {command.name} is not understood: {why}",
        device=address,
        subsystem="firmware",
        cause=why,
        remedy="tool and firmware do not go together: update one of them",
        code="bad-answer",
    )
