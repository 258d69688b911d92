"""The DFU state machine: every state with every request, whole downloads and uploads, every reason for a refusal."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

from driver_shim.protocol import dfu
from driver_shim.protocol.debug_port import Mode
from driver_shim.protocol.dfu import Request, State, Status
from driver_shim.protocol.firmware_slots import SLOT_BYTES, Slot
from driver_shim.protocol.mailbox import MailboxResult
from driver_shim.protocol.usb import Setup
from emulator.usb.descriptors import Text
from emulator.usb.dfu import STATUS_OF_RESULT, DfuInterface
from emulator.usb.recovery_port import Outcome, SlotUnreadable
from emulator.usb.transfer import Answer, Ending
from tests.support.debug_port_bench import CLASS_IN, CLASS_OUT, GOOD, MOST_ATTEMPTS, MemoryRecovery

S, R = State, Request
STALL = "stall"
BLOCK = GOOD + bytes(dfu.TRANSFER_BYTES - len(GOOD))

EXPECTED: dict[State, dict[Request, State | str]] = {
    S.APP_IDLE: {R.DETACH: S.APP_DETACH, R.GETSTATUS: S.APP_IDLE, R.GETSTATE: S.APP_IDLE},
    S.APP_DETACH: {R.GETSTATUS: S.APP_DETACH, R.GETSTATE: S.APP_DETACH},
    S.IDLE: {
        R.DETACH: S.IDLE, R.DNLOAD: S.DNLOAD_SYNC, R.UPLOAD: S.UPLOAD_IDLE, R.GETSTATUS: S.IDLE, R.GETSTATE: S.IDLE,
        R.ABORT: S.IDLE,
    },
    S.DNLOAD_SYNC: {R.GETSTATUS: S.DNLOAD_IDLE, R.GETSTATE: S.DNLOAD_SYNC, R.ABORT: S.IDLE},
    S.DNBUSY: {R.GETSTATUS: S.DNLOAD_IDLE, R.GETSTATE: S.DNBUSY},
    S.DNLOAD_IDLE: {
        R.DNLOAD: S.DNLOAD_SYNC, R.GETSTATUS: S.DNLOAD_IDLE, R.GETSTATE: S.DNLOAD_IDLE, R.ABORT: S.IDLE,
    },
    S.MANIFEST_SYNC: {R.GETSTATUS: S.MANIFEST, R.GETSTATE: S.MANIFEST_SYNC, R.ABORT: S.IDLE},
    S.MANIFEST: {R.GETSTATUS: S.IDLE, R.GETSTATE: S.MANIFEST},
    S.MANIFEST_WAIT_RESET: {},
    S.UPLOAD_IDLE: {R.UPLOAD: S.UPLOAD_IDLE, R.GETSTATUS: S.UPLOAD_IDLE, R.GETSTATE: S.UPLOAD_IDLE, R.ABORT: S.IDLE},
    S.ERROR: {R.GETSTATUS: S.ERROR, R.CLRSTATUS: S.IDLE, R.GETSTATE: S.ERROR},
}  # fmt: skip
"""State after each request that is answered, as DFU 1.1, A.2 has it. All others are stalled: at run time that ends in
APP_IDLE, in DFU mode in ERROR. Only DETACH in IDLE is beyond the specification."""


class Machine:
    """The interface in one mode over slots in memory."""

    def __init__(self, state: State = State.IDLE, busy: int = 0) -> None:
        self.port = MemoryRecovery(busy)
        self.detached = 0
        mode = Mode.RUN_TIME if state in (State.APP_IDLE, State.APP_DETACH) else Mode.RECOVERY
        self.dfu = DfuInterface(mode, self.port, self._detach)

    def _detach(self) -> bool:
        self.detached += 1
        return True

    def send(self, request: int, data: bytes = b"", value: int = 0) -> Answer:
        return self.dfu.answer(Setup(CLASS_OUT, request, value, 1, len(data)), data)

    def end(self) -> Answer:
        """Say that all blocks were sent, until the device has verified them."""
        for _ in range(MOST_ATTEMPTS):
            answer = self.send(Request.DNLOAD)
            if answer is not Ending.LATER:
                return answer
        raise AssertionError("never verified")

    def ask(self, request: int, size: int) -> Answer:
        return self.dfu.answer(Setup(CLASS_IN, request, 0, 1, size), b"")

    def status(self) -> tuple[Status, State, int]:
        """(status, state, number of the text)."""
        answer = self.ask(Request.GETSTATUS, 6)
        assert isinstance(answer, bytes)
        found = dfu.STATUS_REPLY.parse(answer)
        return Status(found.bStatus), State(found.bState), found.iString

    def until(self, *states: State) -> tuple[Status, State, int]:
        for _ in range(100):
            found = self.status()
            if found[1] in states:
                return found
        raise AssertionError(f"never in {states}, but in {found}")

    def download(self, image: bytes) -> tuple[Status, State, int]:
        for number, at in enumerate(range(0, len(image), dfu.TRANSFER_BYTES)):
            assert self.send(Request.DNLOAD, image[at : at + dfu.TRANSFER_BYTES], number) == b""
            assert self.until(State.DNLOAD_IDLE, State.ERROR)[1] is State.DNLOAD_IDLE
        assert self.end() == b""
        return self.until(State.IDLE, State.ERROR)


def _download_begun(machine: Machine) -> None:
    machine.send(Request.DNLOAD, BLOCK)


def _block_taken(machine: Machine) -> None:
    _download_begun(machine)
    machine.status()


def _all_sent(machine: Machine) -> None:
    _block_taken(machine)
    machine.end()


def _manifesting(machine: Machine) -> None:
    _all_sent(machine)
    machine.status()


def _reading(machine: Machine) -> None:
    machine.port.slots[Slot.A] = bytes(3 * dfu.TRANSFER_BYTES)
    machine.ask(Request.UPLOAD, dfu.TRANSFER_BYTES)


def _busy(machine: Machine) -> None:
    _download_begun(machine)
    machine.dfu.state = State.DNBUSY


def _waits_for_reset(machine: Machine) -> None:
    machine.dfu.state = State.MANIFEST_WAIT_RESET  # never reached


WAYS: dict[State, Callable[[Machine], object]] = {
    S.APP_IDLE: lambda machine: None,
    S.APP_DETACH: lambda machine: machine.send(Request.DETACH),
    S.IDLE: lambda machine: machine.port.slots.update({Slot.A: bytes(2 * dfu.TRANSFER_BYTES)}),
    S.DNLOAD_SYNC: _download_begun,
    S.DNBUSY: _busy,
    S.DNLOAD_IDLE: _block_taken,
    S.MANIFEST_SYNC: _all_sent,
    S.MANIFEST: _manifesting,
    S.MANIFEST_WAIT_RESET: _waits_for_reset,
    S.UPLOAD_IDLE: _reading,
    S.ERROR: lambda machine: machine.send(Request.CLRSTATUS),
}


@pytest.mark.parametrize(
    ("state", "request_"),
    [pytest.param(s, r, id=f"{s.name}-{r.name}") for s, r in itertools.product(State, Request)],
)
def test_every_state_with_every_request(state: State, request_: Request) -> None:
    machine = Machine(state)
    WAYS[state](machine)
    assert machine.dfu.state is state
    sizes = {Request.UPLOAD: dfu.TRANSFER_BYTES, Request.GETSTATUS: 6, Request.GETSTATE: 1}
    if request_ in sizes:
        answer = machine.ask(request_, sizes[request_])
    else:
        number = 1 if state is State.DNLOAD_IDLE else 0
        answer = machine.send(request_, BLOCK if request_ is Request.DNLOAD else b"", number)
    after = EXPECTED[state].get(request_, STALL)
    if after is STALL:
        assert answer is Ending.STALL
        assert machine.dfu.state is (S.APP_IDLE if state in (S.APP_IDLE, S.APP_DETACH) else S.ERROR)
        if state not in (S.APP_IDLE, S.APP_DETACH):
            assert machine.status()[:2] == (Status.ERR_STALLEDPKT, S.ERROR)
    else:
        assert isinstance(answer, bytes)
        assert machine.dfu.state is after
    if answer == b"" and request_ is Request.DETACH:
        assert machine.detached == 1


@pytest.mark.parametrize("busy", [0, 3])
@pytest.mark.parametrize("size", [len(GOOD), dfu.TRANSFER_BYTES, dfu.TRANSFER_BYTES + 1, 5 * dfu.TRANSFER_BYTES - 7])
def test_an_image_goes_down_and_comes_up_again(size: int, busy: int) -> None:
    machine = Machine(busy=busy)
    machine.dfu.select(1)
    image = (GOOD + bytes(range(256)) * 100)[:size]
    assert machine.download(image) == (Status.OK, State.IDLE, 0)
    assert machine.port.slots == {Slot.B: image}
    assert machine.detached == 1  # to boot it, once the host was told
    read = b""
    while isinstance(block := machine.ask(Request.UPLOAD, dfu.TRANSFER_BYTES), bytes):
        read += block
        if len(block) < dfu.TRANSFER_BYTES:
            break
    assert read == image
    assert machine.dfu.state is State.IDLE


def test_a_host_that_sends_smaller_blocks_than_it_may() -> None:
    machine = Machine()
    for number in range(3):
        assert machine.send(Request.DNLOAD, GOOD, number) == b""
        assert machine.status()[1] is State.DNLOAD_IDLE
    machine.end()
    assert machine.until(State.IDLE, State.ERROR)[0] is Status.OK
    assert machine.port.slots[Slot.A] == 3 * GOOD


def test_an_empty_slot_is_an_empty_upload() -> None:
    machine = Machine()
    assert machine.ask(Request.UPLOAD, dfu.TRANSFER_BYTES) == b""
    assert machine.dfu.state is State.IDLE


def test_an_upload_that_cannot_go_on_is_no_shorter_image(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(_slot: Slot, _offset: int, _length: int) -> bytes | None:
        raise SlotUnreadable(Outcome(MailboxResult.ABORTED, "the core is gone"))

    machine = Machine()
    _reading(machine)
    monkeypatch.setattr(machine.port, "read_slot", gone)
    assert machine.ask(Request.UPLOAD, dfu.TRANSFER_BYTES) is Ending.STALL
    assert machine.status() == (Status.ERR_VENDOR, State.ERROR, Text.DFU_STATUS)
    assert machine.dfu.text == "the core is gone"


def test_a_busy_device_says_so_and_is_polled_as_often_as_the_host_likes() -> None:
    machine = Machine(busy=2)
    machine.send(Request.DNLOAD, GOOD)
    assert machine.ask(Request.GETSTATUS, 6) == bytes([0, 2, 0, 0, State.DNBUSY, 0])
    assert machine.ask(Request.GETSTATUS, 6) == bytes([0, 2, 0, 0, State.DNBUSY, 0])
    assert machine.ask(Request.GETSTATUS, 6) == bytes([0, 0, 0, 0, State.DNLOAD_IDLE, 0])


def test_a_block_waits_for_what_an_aborted_download_left_behind() -> None:
    machine = Machine(busy=1)
    machine.send(Request.DNLOAD, GOOD)
    machine.send(Request.ABORT)
    assert machine.send(Request.DNLOAD, GOOD) is Ending.LATER
    assert machine.send(Request.DNLOAD, GOOD) == b""


@pytest.mark.parametrize(
    ("data", "number", "status"),
    [
        (b"", 0, Status.ERR_STALLEDPKT),  # an image of nothing
        (bytes(dfu.TRANSFER_BYTES + 1), 0, Status.ERR_STALLEDPKT),
        (GOOD, 1, Status.ERR_ADDRESS),  # the first block is missing
    ],
)
def test_blocks_that_are_not_taken(data: bytes, number: int, status: Status) -> None:
    machine = Machine()
    assert machine.send(Request.DNLOAD, data, number) is Ending.STALL
    assert machine.status() == (status, State.ERROR, Text.DFU_STATUS)
    assert machine.send(Request.CLRSTATUS) == b""
    assert machine.status() == (Status.OK, State.IDLE, 0)


def test_an_image_that_is_larger_than_a_slot() -> None:
    machine = Machine()
    for number in range(SLOT_BYTES // dfu.TRANSFER_BYTES):
        assert machine.send(Request.DNLOAD, BLOCK, number) == b""
        machine.status()
    assert machine.send(Request.DNLOAD, b"x", SLOT_BYTES // dfu.TRANSFER_BYTES) is Ending.STALL
    assert machine.status()[0] is Status.ERR_ADDRESS


@pytest.mark.parametrize("result", [result for result in MailboxResult if result is not MailboxResult.OK])
def test_what_the_boot_rom_says_is_told_by_a_status_and_in_words(
    result: MailboxResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine()
    monkeypatch.setattr(machine.port, "install", lambda slot, length: None)
    machine.send(Request.DNLOAD, GOOD)
    machine.status()
    machine.end()
    machine.status()
    monkeypatch.setattr(machine.port, "poll", lambda: Outcome(result))
    assert machine.status() == (STATUS_OF_RESULT.get(result, Status.ERR_VENDOR), State.ERROR, Text.DFU_STATUS)
    assert machine.dfu.text == result.name.lower().replace("_", " ")
    assert machine.detached == 0


@pytest.mark.parametrize("busy", [0, 2])
def test_a_bad_image_is_refused_at_its_end_where_every_host_looks(busy: int) -> None:
    machine = Machine(busy=busy)
    machine.send(Request.DNLOAD, b"bad image")
    machine.until(State.DNLOAD_IDLE)
    assert machine.end() is Ending.STALL
    assert machine.status() == (Status.ERR_FILE, State.ERROR, Text.DFU_STATUS)
    assert machine.dfu.text == "the signature is wrong"
    assert machine.port.slots == {}


def test_the_other_slot_ends_what_was_under_way() -> None:
    machine = Machine()
    machine.send(Request.DNLOAD, GOOD)
    machine.dfu.select(1)
    assert machine.status() == (Status.OK, State.IDLE, 0)


def test_a_request_that_goes_the_wrong_way_is_stalled() -> None:
    machine = Machine()
    assert machine.ask(Request.DNLOAD, 10) is Ending.STALL
    assert machine.status()[0] is Status.ERR_STALLEDPKT
