"""The DFU interface as a state machine (DFU 1.1, appendix A): `RULES` says what each request does in each state."""

from __future__ import annotations

from collections.abc import Callable

from driver_shim.protocol.debug_port import SLOTS, Mode
from driver_shim.protocol.dfu import BLOCK_NUMBERS, STATUS_REPLY, TRANSFER_BYTES, Request, State, Status
from driver_shim.protocol.firmware_slots import SLOT_BYTES
from driver_shim.protocol.mailbox import MailboxResult
from driver_shim.protocol.usb import Setup
from emulator.usb.descriptors import Text
from emulator.usb.recovery_port import Outcome, RecoveryPort, SlotUnreadable
from emulator.usb.transfer import Answer, Ending

BUSY_POLL_MS = 2
"""How long a block takes to be staged, at most some messages to another process."""
MANIFEST_POLL_MS = 50
"""How often a host need ask while an image is verified and written, which takes a second."""
STATE_BYTES = 1

STATUS_OF_RESULT = {
    MailboxResult.TOO_LARGE: Status.ERR_ADDRESS,
    MailboxResult.BAD_FORMAT: Status.ERR_FILE,
    MailboxResult.BAD_HASH: Status.ERR_FILE,
    MailboxResult.BAD_SIGNATURE: Status.ERR_FILE,
    MailboxResult.UNKNOWN_KEY: Status.ERR_FILE,
    MailboxResult.ROLLED_BACK: Status.ERR_FILE,
    MailboxResult.NO_HARDWARE_ID: Status.ERR_TARGET,
    MailboxResult.WRONG_HARDWARE: Status.ERR_TARGET,
    MailboxResult.CHANGED: Status.ERR_VERIFY,
    MailboxResult.FLASH_FAULT: Status.ERR_VERIFY,
    MailboxResult.NOT_STAGED: Status.ERR_NOTDONE,
}
"""Why the boot ROM refused an image, as DFU says it; what is not here is ERR_VENDOR. A text goes with each."""

_TEXT_OF_STATUS = {
    Status.ERR_STALLEDPKT: "the state does not allow the request",
    Status.ERR_ADDRESS: "the image does not fit a slot, or a block is out of turn",
}


class DfuInterface:
    """One stay on the bus in one mode. Downloads go block by block to the recovery port, uploads read a slot back."""

    def __init__(self, mode: Mode, port: RecoveryPort, detach: Callable[[], bool]) -> None:
        """`detach` asks the device to leave the bus for the other mode; False when it cannot."""
        self.state = State.APP_IDLE if mode is Mode.RUN_TIME else State.IDLE
        self.status = Status.OK
        self.text = ""
        """What string descriptor DFU_STATUS says."""
        self.slot = SLOTS[0]
        """The one that the alternate setting stands for."""
        self._port = port
        self._detach = detach
        self._moved = 0
        self._blocks = 0
        """Bytes of this download or upload so far, and blocks of the download."""
        self._verifying = False
        """The end of a download waits for what the boot ROM says to it."""
        self._length: int | None = None
        """Bytes of the image that is being uploaded, once that is known."""

    @property
    def at_rest(self) -> bool:
        """Whether no download or upload is under way."""
        return self.state in (State.APP_IDLE, State.APP_DETACH, State.IDLE, State.ERROR)

    @property
    def manifesting(self) -> bool:
        """Whether the host has yet to be told how its image fared."""
        return self.state in (State.MANIFEST_SYNC, State.MANIFEST)

    def select(self, alternate: int) -> None:
        """The host chose an alternate setting: what was under way ends."""
        self.slot = SLOTS[alternate]
        if self.state not in (State.APP_IDLE, State.APP_DETACH):
            self._go(State.IDLE)
            self.status, self.text = Status.OK, ""

    def answer(self, setup: Setup, data: bytes) -> Answer:
        """Carry out one request."""
        rule = RULES.get((self.state, setup.request))
        if rule is None or setup.is_in != (setup.request in _IN):
            return self._stall()
        return rule(self, setup, data)

    # --- rules: each is named for what it does, see RULES ------------------------------------------------------

    def _leave(self, setup: Setup, data: bytes) -> Answer:
        if not self._detach():
            return self._stall()
        if self.state is State.APP_IDLE:
            self._go(State.APP_DETACH)
        return b""

    def _tell_state(self, setup: Setup, data: bytes) -> Answer:
        return self.state.to_bytes(STATE_BYTES, "little")

    def _tell_status(self, setup: Setup, data: bytes) -> Answer:
        return self._status_reply(0)

    def _give_up(self, setup: Setup, data: bytes) -> Answer:
        self._go(State.IDLE)
        self.status, self.text = Status.OK, ""
        return b""

    def _first_block(self, setup: Setup, data: bytes) -> Answer:
        self._moved = self._blocks = 0
        return self._take_block(setup, data) if data else self._stall()

    def _take_block(self, setup: Setup, data: bytes) -> Answer:
        outcome = self._port.poll()
        if outcome is None:
            return Ending.LATER
        if not data:
            return self._take_end(outcome)
        if len(data) > TRANSFER_BYTES:
            return self._stall()
        if setup.value != self._blocks % BLOCK_NUMBERS or self._moved + len(data) > SLOT_BYTES:
            return self._stall(Status.ERR_ADDRESS)
        self._port.stage(self._moved, data)
        self._moved += len(data)
        self._blocks += 1
        self._go(State.DNLOAD_SYNC)
        return b""

    def _take_end(self, outcome: Outcome) -> Answer:
        """All blocks are there: verify them before the host is told so.

        dfu-util takes whatever manifestation ends with for success, and a stall for what it is.
        """
        if not self._verifying:
            self._port.verify(self._moved)
            self._verifying = True
            return Ending.LATER
        if outcome.result is not MailboxResult.OK:
            self._fail(outcome)
            return Ending.STALL
        self._go(State.MANIFEST_SYNC)
        return b""

    def _block_progress(self, setup: Setup, data: bytes) -> Answer:
        outcome = self._port.poll()
        if outcome is None:
            self._go(State.DNBUSY)
            return self._status_reply(BUSY_POLL_MS)
        return self._conclude(outcome, State.DNLOAD_IDLE)

    def _manifest(self, setup: Setup, data: bytes) -> Answer:
        if self._port.poll() is not None:
            self._port.install(self.slot, self._moved)
            self._go(State.MANIFEST)
        return self._status_reply(MANIFEST_POLL_MS)

    def _manifest_progress(self, setup: Setup, data: bytes) -> Answer:
        outcome = self._port.poll()
        if outcome is None:
            return self._status_reply(MANIFEST_POLL_MS)
        if outcome.result is MailboxResult.OK:
            self._detach()
        return self._conclude(outcome, State.IDLE)

    def _first_read(self, setup: Setup, data: bytes) -> Answer:
        self._moved = 0
        return self._read(setup, data)

    def _read(self, setup: Setup, data: bytes) -> Answer:
        if setup.length > TRANSFER_BYTES:
            return self._stall()
        try:
            block = self._next_block(setup.length)
        except SlotUnreadable as error:  # a short block would end the upload as if all of it had been read
            self._fail(error.outcome)
            return Ending.STALL
        if block is None:
            return Ending.LATER
        self._moved += len(block)
        self._go(State.UPLOAD_IDLE if len(block) == setup.length else State.IDLE)
        return block

    # --- helpers -----------------------------------------------------------------------------------------------

    def _next_block(self, size: int) -> bytes | None:
        """The next bytes of the slot's image, at most `size`; None when they are not there yet."""
        if self._length is None:
            self._length = self._port.slot_length(self.slot)
        if self._length is None:
            return None
        wanted = min(size, max(0, self._length - self._moved))
        return self._port.read_slot(self.slot, self._moved, wanted) if wanted else b""

    def _go(self, state: State) -> None:
        self.state = state
        self._verifying = False
        if state is not State.UPLOAD_IDLE:
            self._length = None

    def _stall(self, status: Status = Status.ERR_STALLEDPKT) -> Ending:
        """Refuse: in DFU mode that is an error until it is cleared, at run time DETACH is forgotten (A.2.1, A.2.2)."""
        if self.state in (State.APP_IDLE, State.APP_DETACH):
            self._go(State.APP_IDLE)
        elif self.state is not State.ERROR:
            self._go(State.ERROR)
            self.status, self.text = status, _TEXT_OF_STATUS[status]
        return Ending.STALL

    def _conclude(self, outcome: Outcome, state: State) -> bytes:
        if outcome.result is MailboxResult.OK:
            self._go(state)
        else:
            self._fail(outcome)
        return self._status_reply(0)

    def _fail(self, outcome: Outcome) -> None:
        self._go(State.ERROR)
        self.status = STATUS_OF_RESULT.get(outcome.result, Status.ERR_VENDOR)
        self.text = outcome.text or outcome.result.name.lower().replace("_", " ")

    def _status_reply(self, poll_ms: int) -> bytes:
        return STATUS_REPLY.build(
            bStatus=self.status,
            bwPollTimeout=poll_ms.to_bytes(3, "little"),
            bState=self.state,
            iString=Text.DFU_STATUS if self.text else 0,
        )


Rule = Callable[[DfuInterface, Setup, bytes], Answer]


_leave, _state, _status = DfuInterface._leave, DfuInterface._tell_state, DfuInterface._tell_status
_abort, _block, _read = DfuInterface._give_up, DfuInterface._take_block, DfuInterface._read

RULES: dict[tuple[State, int], Rule] = {
    (State.APP_IDLE, Request.DETACH): _leave,
    (State.APP_IDLE, Request.GETSTATUS): _status,
    (State.APP_IDLE, Request.GETSTATE): _state,
    (State.APP_DETACH, Request.GETSTATUS): _status,
    (State.APP_DETACH, Request.GETSTATE): _state,
    (State.IDLE, Request.DETACH): _leave,  # beyond the specification: how dfu-util -R and -e end their work
    (State.IDLE, Request.DNLOAD): DfuInterface._first_block,
    (State.IDLE, Request.UPLOAD): DfuInterface._first_read,
    (State.IDLE, Request.GETSTATUS): _status,
    (State.IDLE, Request.GETSTATE): _state,
    (State.IDLE, Request.ABORT): _abort,
    (State.DNLOAD_SYNC, Request.GETSTATUS): DfuInterface._block_progress,
    (State.DNLOAD_SYNC, Request.GETSTATE): _state,
    (State.DNLOAD_SYNC, Request.ABORT): _abort,
    (State.DNBUSY, Request.GETSTATUS): DfuInterface._block_progress,  # whoever asks too early is told again
    (State.DNBUSY, Request.GETSTATE): _state,
    (State.DNLOAD_IDLE, Request.DNLOAD): _block,
    (State.DNLOAD_IDLE, Request.GETSTATUS): _status,
    (State.DNLOAD_IDLE, Request.GETSTATE): _state,
    (State.DNLOAD_IDLE, Request.ABORT): _abort,
    (State.MANIFEST_SYNC, Request.GETSTATUS): DfuInterface._manifest,
    (State.MANIFEST_SYNC, Request.GETSTATE): _state,
    (State.MANIFEST_SYNC, Request.ABORT): _abort,
    (State.MANIFEST, Request.GETSTATUS): DfuInterface._manifest_progress,
    (State.MANIFEST, Request.GETSTATE): _state,
    (State.UPLOAD_IDLE, Request.UPLOAD): _read,
    (State.UPLOAD_IDLE, Request.GETSTATUS): _status,
    (State.UPLOAD_IDLE, Request.GETSTATE): _state,
    (State.UPLOAD_IDLE, Request.ABORT): _abort,
    (State.ERROR, Request.GETSTATUS): _status,
    (State.ERROR, Request.CLRSTATUS): _abort,
    (State.ERROR, Request.GETSTATE): _state,
}
"""What each request does in each state; every other pair is stalled. MANIFEST_WAIT_RESET is never reached: the device
tolerates manifestation."""

_IN = (Request.UPLOAD, Request.GETSTATUS, Request.GETSTATE)
