"""Both sides of a queue pair over the same memory: order, phases, wrap, room, bells and interrupt indices."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from driver_shim.errors import ContractMismatch
from driver_shim.function.queue_pair import HostQueuePair
from driver_shim.protocol import ring
from driver_shim.protocol.commands import COMPLETION, COMPLETION_BYTES, DESCRIPTOR, LINE_BYTES, NOP, SUBMISSION_BYTES
from driver_shim.protocol.registers import BAR2
from driver_shim.transport.base import Transport
from emulator.function.queue_pair import Mapped, QueuePair

QUEUE_ID = 3
SQ_BELL, CQ_BELL = 3 * 4096, 3 * 4096 + 4
NEAR_WRAP = (1 << 32) - 64


class Bells:
    """A transport of which only doorbells are used; a store reaches the device side at once."""

    address = "bells"

    def __init__(self) -> None:
        self.rung: list[tuple[int, int]] = []
        self.queue: QueuePair | None = None

    def write(self, region: int, offset: int, value: int, width: int) -> None:
        """A doorbell store."""
        assert (region, width) == (BAR2, 4)
        self.rung.append((offset, value))
        if self.queue is not None:
            if offset == SQ_BELL:
                self.queue.bell_sq_tail = value
            else:
                assert offset == CQ_BELL
                self.queue.bell_cq_head = value


class Pair:
    """A queue pair with both its sides; `start` is the index at which both begin (a multiple of two laps)."""

    def __init__(self, entries: int, completion_entries: int, *, shadows: bool, start: int = 0) -> None:
        submissions = memoryview(bytearray(entries * SUBMISSION_BYTES))
        completions = memoryview(bytearray(completion_entries * COMPLETION_BYTES))
        lines = (memoryview(bytearray(LINE_BYTES)), memoryview(bytearray(LINE_BYTES))) if shadows else None
        self.bells = Bells()
        self.host = HostQueuePair(cast(Transport, self.bells), QUEUE_ID, submissions, completions, lines)
        mapped = Mapped(submissions, completions, *(lines or (None, None)))
        self.device = QueuePair(QUEUE_ID, lambda: mapped, entries, completion_entries, 1, (0, 0))
        self.bells.queue = self.device
        self.lines = None if lines is None else (lines[0].cast("I"), lines[1].cast("I"))
        for side, names in (
            (self.host, ("sq_tail", "cq_head", "_published_tail", "_published_head")),
            (self.device, ("sq_head", "cq_tail", "bell_sq_tail", "bell_cq_head", "signalled")),
        ):
            for name in names:
                setattr(side, name, start)
        if self.lines is not None:
            self.lines[0][0] = self.lines[0][1] = start

    def submit(self, count: int) -> None:
        """Nops; each carries the low half of its submission index as its command id."""
        for _ in range(count):
            self.host.put(NOP.codec, 0)
        self.host.publish()

    def serve(self, limit: int) -> int:
        """Fetch and complete up to `limit` commands; the result is the low half of the command's position."""
        done = 0
        while done < limit and self.device.window()[0] > 0 and self.device.window()[1] > 0:
            entry = NOP.parse(self.device.fetch())
            tick = 10 * done
            self.device.complete(entry.command_id, 0, entry.command_id, tick, tick + 1)
            done += 1
        return done

    def reap(self) -> list[int]:
        """Command ids of everything that is there."""
        ids = []
        while (completion := self.host.peek()) is not None:
            ids.append(completion[1])
            self.host.advance()
        self.host.publish_head()
        return ids


STEPS = st.lists(st.tuples(st.sampled_from(("submit", "serve", "serve_many", "reap")), st.integers(1, 9)), max_size=40)


@given(
    entries=st.sampled_from((2, 4, 8)),
    completions=st.sampled_from((2, 4, 16)),
    shadows=st.booleans(),
    start=st.sampled_from((0, NEAR_WRAP)),
    steps=STEPS,
)
def test_every_command_completes_once_and_in_order(
    entries: int, completions: int, shadows: bool, start: int, steps: list[tuple[str, int]]
) -> None:
    pair = Pair(entries, completions, shadows=shadows, start=start)
    submitted = completed = 0
    reaped: list[int] = []
    for step, amount in [*steps, *[("serve", 9), ("reap", 1)] * 20]:
        if step == "submit":
            count = min(amount, entries - (submitted - completed))
            pair.submit(count)
            submitted += count
        elif step == "serve":
            completed += pair.serve(amount)
        elif step == "serve_many":
            completed += serve_array(pair, amount)
        else:
            reaped += pair.reap()
        assert 0 <= completed - len(reaped) <= completions
    assert reaped == [(start + at) & 0xFFFF for at in range(submitted)]


def serve_array(pair: Pair, limit: int) -> int:
    """The device's vectorised path: peek, skip, complete in bulk."""
    count = min(limit, max(0, pair.device.window()[0]), max(0, pair.device.window()[1]))
    if not count:
        return 0
    words = pair.device.peek_words(count)
    pair.device.skip(len(words))
    ids = (words[:, 0] >> np.uint64(16)) & np.uint64(0xFFFF)
    pair.device.complete_many(ids, 100, 7)
    return len(words)


@given(
    entries=st.sampled_from((4, 8, 16)),
    start=st.sampled_from((0, NEAR_WRAP)),
    before=st.integers(0, 16),
    data=st.data(),
)
def test_bulk_completions_equal_single_ones_to_the_byte(
    entries: int, start: int, before: int, data: st.DataObject
) -> None:
    count = data.draw(st.integers(1, entries))
    one, many = (Pair(entries, entries, shadows=False, start=start) for _ in range(2))
    for pair in (one, many):
        for _ in range(before):
            pair.submit(1)
            pair.serve(1)
            pair.reap()
        pair.submit(count)
    for at in range(count):
        entry = NOP.parse(one.device.fetch())
        one.device.complete(entry.command_id, 0, 0, 50 + 3 * at, 53 + 3 * at)
    words = many.device.peek_words(count)
    taken = len(words)
    many.device.skip(taken)
    many.device.complete_many((words[:, 0] >> np.uint64(16)) & np.uint64(0xFFFF), 50, 3)
    first, second = ring.contiguous(start + before, taken, entries)
    for part in (first, second):
        assert many.host._rows[part].tobytes() == one.host._rows[part].tobytes()
    if taken == count:
        assert (many.device.cq_tail, many.device.last_end_tick) == (one.device.cq_tail, one.device.last_end_tick)


@pytest.mark.parametrize("tail", [9, 100, 1 << 31, 0xFFFF_FFFF])
def test_tails_beyond_the_ring_are_seen(tail: int) -> None:
    pair = Pair(8, 8, shadows=True)
    assert pair.lines is not None
    pair.lines[0][0] = 8
    assert pair.device.window()[0] == 8
    pair.lines[0][0] = tail
    assert pair.device.window()[0] == -1


@pytest.mark.parametrize("head", [1, 8, 1 << 31, (-9) & 0xFFFF_FFFF])
def test_heads_that_no_reaping_explains_are_seen(head: int) -> None:
    pair = Pair(8, 8, shadows=True)
    assert pair.lines is not None
    assert pair.device.window()[1] == 8
    pair.lines[0][1] = head
    assert pair.device.window()[1] < 0


def test_a_device_that_looks_itself_is_not_rung_and_one_that_asked_is() -> None:
    pair = Pair(8, 8, shadows=True)
    pair.submit(1)
    assert pair.bells.rung == [(SQ_BELL, 1)]  # its event index is 0: it sleeps since the beginning
    pair.serve(1)
    pair.submit(1)
    assert len(pair.bells.rung) == 1  # it has not armed again: it polls
    pair.serve(1)
    pair.device.arm()
    pair.submit(1)
    assert pair.bells.rung[1:] == [(SQ_BELL, 3)]


def test_a_queue_that_ran_out_of_room_is_rung_when_there_is_some_again() -> None:
    pair = Pair(8, 4, shadows=True)
    pair.submit(6)
    assert pair.serve(6) == 4
    assert pair.device.window()[1] == 0
    pair.device.arm()
    pair.bells.rung.clear()
    assert pair.reap() == [0, 1, 2, 3]
    assert pair.bells.rung[0][0] == CQ_BELL
    assert pair.serve(6) == 2
    assert pair.reap() == [4, 5]


def test_without_shadows_every_store_is_a_bell() -> None:
    pair = Pair(4, 4, shadows=False)
    pair.submit(2)
    pair.serve(2)
    pair.reap()
    assert (pair.bells.rung[0], pair.bells.rung[-1]) == ((SQ_BELL, 2), (CQ_BELL, 2))


def test_interrupts_are_wanted_only_when_the_index_is_passed() -> None:
    pair = Pair(8, 8, shadows=True)
    assert pair.lines is not None
    pair.lines[0][2] = 2  # tell me when the completion of index 2 is there
    pair.submit(4)
    wanted = []
    for _ in range(4):
        pair.serve(1)
        wanted.append(pair.device.wants_interrupt())
    assert wanted == [False, False, True, False]
    assert not pair.device.wants_interrupt()  # nothing new


def test_without_shadows_each_batch_of_completions_interrupts_once() -> None:
    pair = Pair(8, 8, shadows=False)
    pair.submit(3)
    pair.serve(3)
    assert pair.device.wants_interrupt()
    assert not pair.device.wants_interrupt()


def test_array_submission_writes_what_single_ones_do() -> None:
    one, many = Pair(4, 4, shadows=False), Pair(4, 4, shadows=False)
    for pair in (one, many):
        pair.submit(3)
        pair.serve(3)
        pair.reap()
    one.submit(3)
    many.host.put_array(np.zeros(3, DESCRIPTOR))
    many.host.publish()
    assert bytes(many.host._submissions) == bytes(one.host._submissions)
    assert many.serve(3) == 3
    assert [row["command_id"] for row in many.host.peek_array(8)] == [3]  # up to the end of the ring
    many.host.advance(1)
    assert [row["command_id"] for row in many.host.peek_array(8)] == [4, 5]


@pytest.mark.parametrize("in_bulk", [False, True])
def test_a_completion_out_of_order_is_a_broken_contract(in_bulk: bool) -> None:
    pair = Pair(4, 4, shadows=False)
    pair.submit(2)
    pair.device.fetch()
    pair.device.complete(1, 0, 0, 0, 0)
    with pytest.raises(ContractMismatch, match="completion of command 0x0001, due was 0x0000"):
        if in_bulk:
            pair.host.peek_array(4)
        else:
            pair.host.peek()


def test_a_completion_that_nobody_asked_for_is_a_broken_contract() -> None:
    pair = Pair(4, 4, shadows=False)
    pair.device.complete(0, 0, 0, 0, 0)
    with pytest.raises(ContractMismatch):
        pair.host.peek()


def test_completion_bytes_on_the_ring() -> None:
    pair = Pair(4, 2, shadows=False)
    pair.submit(3)
    pair.serve(2)
    expected = "01000000 0000 00 01 0000000000000000 0000000000000000 0100000000000000"
    assert bytes(pair.host._completions[:32]) == bytes.fromhex(expected)
    pair.reap()
    pair.serve(1)
    expected = "03000000 0200 00 00 0200000000000000 0000000000000000 0100000000000000"  # the second lap: phase 0
    assert bytes(pair.host._completions[:32]) == bytes.fromhex(expected)


def test_the_device_side_describes_itself() -> None:
    pair: Any = Pair(4, 8, shadows=True)
    pair.submit(3)
    pair.serve(1)
    text = "0300 0000 04000000 08000000 01000000 03000000 00000000 01000000 01000000" + "00" * 32
    assert pair.device.describe() == bytes.fromhex(text)
    assert COMPLETION.size == COMPLETION_BYTES
