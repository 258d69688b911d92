"""Requests that nobody meant, to the real firmware: each is answered, and the firmware goes on and boots again."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st

from driver_shim.protocol.firmware_slots import SLOT_BYTES
from driver_shim.protocol.mailbox import (
    BODY_BYTES,
    LOG_QUERY,
    MAILBOX_BYTES,
    REQUEST,
    REQUEST_BODIES,
    SLOT_QUERY,
    STAGE_BYTES,
    STAGE_WRITE,
    UPDATE_BEGIN,
    MailboxCommand,
    MailboxResult,
)
from driver_shim.protocol.registers import CoreReset, Post
from tests.fuzz.device import fuzzed
from tests.support.core_bench import HOST_ADDRESS, REFERENCE_IMAGE, CoreBench, core_bench

MOST_REQUESTS = 25
EXAMPLES = 6
NUMBERS = st.one_of(
    st.integers(0, 8),
    st.sampled_from((0xFF, 0x100, SLOT_BYTES - 1, SLOT_BYTES, SLOT_BYTES + 1, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF)),
    st.integers(0, 0xFFFF_FFFF),
)
ADDRESSES = st.one_of(
    st.just(HOST_ADDRESS),
    st.integers(HOST_ADDRESS - 4096, HOST_ADDRESS + len(REFERENCE_IMAGE)),
    st.sampled_from((0, 0xFFFF_FFFF, (1 << 64) - 1, (1 << 64) - 0x1000)),
    st.integers(0, (1 << 64) - 1),
)
LENGTHS = st.one_of(st.integers(0, BODY_BYTES + 2), st.integers(0, 0xFFFF))
COMMANDS = st.one_of(st.sampled_from([int(command) for command in MailboxCommand]), st.integers(0, 0xFFFF))


def framed(command: int, body: bytes) -> bytes:
    return REQUEST.build(command=command, body_bytes=len(body), sequence=1) + body


GARBAGE = st.one_of(
    st.binary(max_size=MAILBOX_BYTES),
    st.builds(
        lambda command, length, sequence, rest: (
            REQUEST.build(command=command, body_bytes=length, sequence=sequence) + rest
        ),
        COMMANDS,
        LENGTHS,
        NUMBERS,
        st.binary(max_size=BODY_BYTES),
    ),
)
ARGUMENTS = st.one_of(
    st.builds(
        lambda address, size, flags: framed(
            MailboxCommand.UPDATE_BEGIN, UPDATE_BEGIN.build(address=address, image_bytes=size, flags=flags)
        ),
        ADDRESSES,
        st.one_of(NUMBERS, st.just(len(REFERENCE_IMAGE))),
        st.one_of(st.integers(0, 3), NUMBERS),
    ),
    st.builds(
        lambda offset, data: framed(MailboxCommand.STAGE_WRITE, STAGE_WRITE.build(offset=offset) + data),
        NUMBERS,
        st.binary(max_size=STAGE_BYTES),
    ),
    st.builds(lambda first: framed(MailboxCommand.LOG_READ, LOG_QUERY.build(first=first)), NUMBERS),
    st.builds(lambda slot: framed(MailboxCommand.SLOT_INFO, SLOT_QUERY.build(slot=slot)), st.integers(0, 0xFF)),
    st.sampled_from([framed(command, b"") for command, (least, _) in REQUEST_BODIES.items() if not least]),
)
REQUESTS = st.lists(st.tuples(st.one_of(GARBAGE, ARGUMENTS), st.sampled_from((0.0, 0.0, 0.01, 1.0))))


def takes(request: bytes) -> bool:
    """Whether the firmware may do what is asked: the command exists, and the body is as long as it takes."""
    head = REQUEST.parse(request.ljust(REQUEST.size, b"\0")[: REQUEST.size])
    least, most = REQUEST_BODIES.get(head.command, (1, 0))
    return least <= int(head.body_bytes) <= min(most, BODY_BYTES)


def check_answer(request: bytes, result: MailboxResult) -> None:
    command = int.from_bytes(request[:2].ljust(2, b"\0"), "little")
    if command not in REQUEST_BODIES:
        assert result is MailboxResult.UNKNOWN_COMMAND
    elif not takes(request):
        assert result is MailboxResult.BAD_LENGTH
    else:
        assert result not in (MailboxResult.UNKNOWN_COMMAND, MailboxResult.BAD_LENGTH)


def carry_out(bench: CoreBench, request: bytes, pause_s: float) -> None:
    """Ask, and let a reset that was asked for come."""
    seen = len(bench.resets)
    result, _ = bench.ask_raw(request)
    check_answer(request, result)
    command = int.from_bytes(request[:2].ljust(2, b"\0"), "little")
    if command == MailboxCommand.RESET and result is MailboxResult.OK:
        assert bench.run_until(lambda: len(bench.resets) > seen)
        assert bench.ready()
    bench.run_for(pause_s)


def serves_on(bench: CoreBench) -> None:
    """The firmware has not reset by itself, answers well, and what is in flash boots."""
    assert set(bench.resets) <= {CoreReset.FIRMWARE}
    assert bench.ask(MailboxCommand.PING, b"still there") == (MailboxResult.OK, b"still there")
    assert bench.boot_to_ready()


@fuzzed(EXAMPLES, requests=st.one_of(st.lists(st.tuples(GARBAGE, st.just(0.0)), max_size=MOST_REQUESTS), REQUESTS))
def test_any_requests(requests: list[tuple[bytes, float]]) -> None:
    with core_bench() as bench:
        assert bench.boot_to_ready()
        bench.host = REFERENCE_IMAGE
        for request, pause_s in requests[:MOST_REQUESTS]:
            carry_out(bench, request, pause_s)
        serves_on(bench)


@fuzzed(EXAMPLES, requests=st.lists(ARGUMENTS, min_size=1, max_size=MOST_REQUESTS), steps=st.lists(st.integers(1, 900)))
def test_requests_that_are_rung_before_the_last_is_answered(requests: list[bytes], steps: list[int]) -> None:
    """A host that gives up and asks anew at once: the newest is answered, and nothing else breaks."""
    with core_bench() as bench:
        assert bench.boot_to_ready()
        bench.host = REFERENCE_IMAGE
        for at, request in enumerate(requests):
            bench.link.request[:] = request.ljust(MAILBOX_BYTES, b"\0")
            bench.link["ring_number"] += 1
            bench.core.look()
            bench.core.machine.run(steps[at % len(steps)] if steps else 1)
            if bench.core.machine.run(0).reset is not None:
                bench.boot_to_ready(CoreReset.FIRMWARE)
        assert bench.run_until(lambda: bench.link["answer_number"] == bench.link["ring_number"])
        assert bench.run_until(lambda: bench.progress()["post_code"] == Post.FIRMWARE_READY)
        serves_on(bench)


@pytest.mark.parametrize("command", sorted(REQUEST_BODIES))
@pytest.mark.parametrize("body", [bytes(BODY_BYTES), b"\xff" * BODY_BYTES], ids=["zeros", "ones"])
def test_every_length_of_every_command(command: MailboxCommand, body: bytes) -> None:
    with core_bench() as bench:
        assert bench.boot_to_ready()
        least, most = REQUEST_BODIES[command]
        lengths = {0, 1, least - 1, least, least + 1, most - 1, most, most + 1, BODY_BYTES, BODY_BYTES + 1, 0xFFFF}
        for length in sorted(length for length in lengths if length >= 0):
            head = REQUEST.build(command=command, body_bytes=length, sequence=length)
            carry_out(bench, (head + body)[:MAILBOX_BYTES], 0.0)
        serves_on(bench)
