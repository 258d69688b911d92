"""The debug port's own requests and its two modes, on a chip that is only memory."""

from __future__ import annotations

import pytest

from driver_shim.protocol.debug_port import INFO, REASON, Flag, Mode, Refusal, Request
from driver_shim.protocol.dfu import Request as Dfu
from driver_shim.protocol.dfu import State
from driver_shim.protocol.firmware_slots import Slot
from driver_shim.protocol.registers import BAR0_BYTES, REGISTERS, Post
from driver_shim.protocol.usb import Direction, Recipient, RequestType
from emulator import timeouts
from emulator.usb.transfer import Answer, Ending
from tests.support.debug_port_bench import CLASS_IN, CLASS_OUT, GOOD, VENDOR_IN, VENDOR_OUT, Bench

SCRATCH = REGISTERS["scratch"].offset
CONTROL = REGISTERS["core_control"].offset
RECOVERY = REGISTERS["core_control"].encode(recovery=1).to_bytes(4, "little")
RESET = REGISTERS["core_control"].encode(reset=1).to_bytes(4, "little")


def reason(bench: Bench) -> Refusal:
    answer = bench.ask(VENDOR_IN, Request.REASON, data=REASON.size)
    assert isinstance(answer, bytes)
    return Refusal(REASON.parse(answer).reason)


def after(bench: Bench, seconds: float) -> bool:
    """Let time pass, then look."""
    bench.now += seconds
    return bench.port.look()


# --- registers --------------------------------------------------------------------------------------------------------


def test_info_is_these_bytes() -> None:
    bench = Bench(Post.RECOVERY)
    bench.owned = True
    expected = bytes.fromhex("0100 01 01 01 000000 c4b7 504e 00000100").ljust(INFO.size, b"\0")
    assert bench.ask(VENDOR_IN, Request.INFO, data=INFO.size) == expected


@pytest.mark.parametrize("width", [4, 8])
def test_what_is_poked_is_peeked(width: int) -> None:
    bench = Bench()
    data = bytes(range(1, width + 1))
    assert bench.ask(VENDOR_OUT, Request.POKE, SCRATCH, 0, data) == b""
    assert bench.chip.written == [(SCRATCH, data)]
    assert bench.ask(VENDOR_IN, Request.PEEK, SCRATCH, 0, width) == data


@pytest.mark.parametrize(
    ("kind", "request_", "offset", "data", "refusal"),
    [
        (VENDOR_IN, Request.PEEK, SCRATCH, 2, Refusal.BAD_LENGTH),
        (VENDOR_IN, Request.PEEK, SCRATCH, 16, Refusal.BAD_LENGTH),
        (VENDOR_IN, Request.PEEK, SCRATCH + 2, 4, Refusal.OUT_OF_RANGE),
        (VENDOR_IN, Request.PEEK, BAR0_BYTES - 4, 8, Refusal.OUT_OF_RANGE),
        (VENDOR_OUT, Request.POKE, SCRATCH, b"", Refusal.BAD_LENGTH),
        (VENDOR_OUT, Request.POKE, SCRATCH + 1, b"1234", Refusal.OUT_OF_RANGE),
        (VENDOR_OUT, Request.PEEK, SCRATCH, b"1234", Refusal.UNKNOWN_REQUEST),
        (VENDOR_IN, Request.POKE, SCRATCH, 4, Refusal.UNKNOWN_REQUEST),
        (VENDOR_IN, 0x7F, 0, 4, Refusal.UNKNOWN_REQUEST),
    ],
)
def test_a_refusal_has_a_reason_that_is_told_once(
    kind: int, request_: int, offset: int, data: bytes | int, refusal: Refusal
) -> None:
    bench = Bench()
    assert bench.ask(kind, request_, offset, 0, data) is Ending.STALL
    assert reason(bench) is refusal
    assert reason(bench) is Refusal.NONE
    assert not bench.chip.written


def test_only_force_writes_past_a_pci_client_and_looking_is_free() -> None:
    bench = Bench()
    bench.owned = True
    assert bench.ask(VENDOR_OUT, Request.POKE, SCRATCH, 0, b"1234") is Ending.STALL
    assert reason(bench) is Refusal.OWNED
    assert bench.ask(VENDOR_IN, Request.PEEK, SCRATCH, 0, 4) == bytes(4)
    assert bench.ask(VENDOR_OUT, Request.POKE, SCRATCH, Flag.FORCE << 8, b"1234") == b""
    assert bench.chip.written == [(SCRATCH, b"1234")]


@pytest.mark.parametrize(
    ("kind", "index"),
    [
        (VENDOR_IN, 1),  # the DFU interface has no vendor's requests
        (Direction.IN | RequestType.VENDOR | Recipient.DEVICE, 0),
        (Direction.IN | RequestType.VENDOR | Recipient.ENDPOINT, 0),
        (Direction.IN | RequestType.CLASS | Recipient.INTERFACE, 0),
        (Direction.IN | 0x60 | Recipient.INTERFACE, 0),
    ],
)
def test_requests_to_nobody_are_stalled(kind: int, index: int) -> None:
    assert Bench().ask(kind, Request.INFO, 0, index, INFO.size) is Ending.STALL


# --- modes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("post", [post for post in Post if post is not Post.RECOVERY])
def test_the_port_takes_images_only_while_the_core_is_in_recovery(post: Post) -> None:
    assert Bench(post).port.mode is Mode.RUN_TIME
    assert Bench(Post.RECOVERY).port.mode is Mode.RECOVERY


def test_a_core_that_goes_into_recovery_takes_the_port_off_the_bus_once() -> None:
    bench = Bench()
    assert not bench.port.look()
    bench.chip.show(Post.RECOVERY)
    assert bench.port.look()
    assert not bench.port.look()
    assert bench.port.mode is Mode.RECOVERY
    assert bench.port.configuration == 0
    bench.configure()
    assert bench.ask(CLASS_IN, Dfu.GETSTATE, 0, 1, 1) == bytes([State.IDLE])


@pytest.mark.parametrize("post", [Post.BOOT_ROM, Post.CHECKING_A, Post.CHECKING_B])
def test_while_the_boot_rom_decides_the_port_stays_as_it_is(post: Post) -> None:
    for before in (Post.RECOVERY, Post.FIRMWARE_READY):
        bench = Bench(before)
        mode = bench.port.mode
        bench.chip.show(post)
        assert not bench.port.look()
        assert bench.port.mode is mode


def test_detach_is_answered_before_the_port_goes() -> None:
    bench = Bench()
    assert bench.ask(CLASS_OUT, Dfu.DETACH, 1000, 1) == b""
    assert bench.port.leaving
    assert not after(bench, timeouts.DFU_DETACH_S / 2)
    assert bench.ask(CLASS_IN, Dfu.GETSTATE, 0, 1, 1) == bytes([State.APP_DETACH])
    assert not bench.chip.written
    assert after(bench, timeouts.DFU_DETACH_S)
    assert bench.chip.written == [(CONTROL, RECOVERY)]
    assert bench.port.mode is Mode.RECOVERY
    assert not bench.port.leaving


def test_without_a_core_there_is_nothing_to_detach_to() -> None:
    bench = Bench(Post.ABSENT)
    assert bench.ask(CLASS_OUT, Dfu.DETACH, 1000, 1) is Ending.STALL
    assert not after(bench, 10)
    assert not bench.chip.written


def flashed(bench: Bench) -> Answer:
    """Download an image; the answer to the last GETSTATUS."""
    bench.ask(CLASS_OUT, Dfu.DNLOAD, 0, 1, GOOD)
    bench.ask(CLASS_IN, Dfu.GETSTATUS, 0, 1, 6)
    bench.patiently(CLASS_OUT, Dfu.DNLOAD, 1, 1)
    bench.ask(CLASS_IN, Dfu.GETSTATUS, 0, 1, 6)
    return bench.ask(CLASS_IN, Dfu.GETSTATUS, 0, 1, 6)


def test_a_good_image_is_booted_after_the_host_was_told() -> None:
    bench = Bench(Post.RECOVERY)
    assert flashed(bench) == bytes([0, 0, 0, 0, State.IDLE, 0])
    assert bench.recovery.slots == {Slot.A: GOOD}
    assert not after(bench, timeouts.DFU_LEAVE_S / 2)
    assert not bench.chip.written
    assert after(bench, timeouts.DFU_LEAVE_S)
    assert bench.chip.written == [(CONTROL, RESET)]
    assert bench.port.mode is Mode.RUN_TIME


def test_a_core_that_boots_by_itself_waits_for_the_host_to_be_told_but_not_for_ever() -> None:
    for asks in (True, False):
        bench = Bench(Post.RECOVERY)
        bench.ask(CLASS_OUT, Dfu.DNLOAD, 0, 1, GOOD)
        bench.ask(CLASS_IN, Dfu.GETSTATUS, 0, 1, 6)
        bench.patiently(CLASS_OUT, Dfu.DNLOAD, 1, 1)
        bench.ask(CLASS_IN, Dfu.GETSTATUS, 0, 1, 6)
        bench.chip.show(Post.FIRMWARE_READY)
        assert not after(bench, timeouts.DFU_LAST_STATUS_S / 2)
        if asks:
            bench.ask(CLASS_IN, Dfu.GETSTATUS, 0, 1, 6)
            assert after(bench, timeouts.DFU_LEAVE_S)
        else:
            assert not after(bench, 0)
            assert after(bench, timeouts.DFU_LAST_STATUS_S)
        assert bench.port.mode is Mode.RUN_TIME


def test_a_host_that_goes_on_to_the_other_slot_is_not_cut_off() -> None:
    bench = Bench(Post.RECOVERY)
    flashed(bench)
    bench.ask(0x01, 11, 1, 1)  # SET_INTERFACE
    bench.ask(CLASS_OUT, Dfu.DNLOAD, 0, 1, GOOD)
    assert not after(bench, timeouts.DFU_LEAVE_S)
    assert not bench.chip.written
    assert bench.ask(CLASS_IN, Dfu.GETSTATUS, 0, 1, 6) == bytes([0, 0, 0, 0, State.DNLOAD_IDLE, 0])


def test_an_image_is_booted_though_the_host_has_hung_up() -> None:
    bench = Bench(Post.RECOVERY)
    flashed(bench)
    bench.port.unplug()
    assert bench.port.leaving
    assert after(bench, timeouts.DFU_LEAVE_S)
    assert bench.chip.written == [(CONTROL, RESET)]


def test_a_slot_that_does_not_boot_leaves_the_port_as_it_was() -> None:
    bench = Bench(Post.RECOVERY)
    bench.chip.boots = False
    assert bench.ask(CLASS_OUT, Dfu.DETACH, 1000, 1) == b""
    assert not after(bench, timeouts.DFU_LEAVE_S)
    assert bench.chip.written == [(CONTROL, RESET)]
    assert bench.ask(CLASS_IN, Dfu.GETSTATE, 0, 1, 1) == bytes([State.IDLE])
