"""Ring arithmetic against a model with unbounded integers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from driver_shim.protocol import ring

WRAP = 1 << 32
ENTRIES = st.integers(0, 13).map(lambda power: 1 << power)
INDICES = st.one_of(st.integers(0, 1 << 40), st.integers(WRAP - 64, WRAP + 64))


@given(head=INDICES, count=st.integers(0, 8192))
def test_occupied_counts_across_the_wrap(head: int, count: int) -> None:
    tail = head + count
    assert ring.occupied(tail % WRAP, head % WRAP) == count
    assert ring.advance(head % WRAP, count) == tail % WRAP


def test_a_tail_behind_its_head_is_seen_as_more_than_any_ring_holds() -> None:
    assert ring.occupied(9, 10) == WRAP - 1


@given(entries=ENTRIES, index=INDICES)
def test_phase_is_one_on_the_first_lap_and_flips_on_each(entries: int, index: int) -> None:
    lap = index // entries
    assert ring.phase_of(index % WRAP, entries) == (1 if lap % 2 == 0 else 0)


@pytest.mark.parametrize(
    ("event", "new", "old", "needed"),
    [
        (0, 1, 0, True),  # asleep since index 0, one submitted
        (0, 0, 0, False),  # nothing submitted
        (5, 5, 0, False),  # not yet passed
        (5, 6, 0, True),
        (5, 6, 5, True),
        (5, 7, 6, False),  # passed before
        (0xFFFF_FFFF, 0, 0xFFFF_FFFF, True),  # across the wrap
        (0xFFFF_FFFE, 3, 0xFFFF_FFFE, True),
        (2, 3, 0xFFFF_FFFE, True),
        (3, 3, 0xFFFF_FFFE, False),
    ],
)
def test_need_event_by_hand(event: int, new: int, old: int, needed: bool) -> None:
    assert ring.need_event(event, new, old) is needed


@given(old=INDICES, moved=st.integers(0, 8192), ahead=st.integers(-8192, 16384))
def test_need_event_means_that_the_step_passed_the_event(old: int, moved: int, ahead: int) -> None:
    event = old + ahead
    passed = old <= event < old + moved
    assert ring.need_event(event % WRAP, (old + moved) % WRAP, old % WRAP) is passed


@given(entries=ENTRIES, index=INDICES, data=st.data())
def test_contiguous_slices_are_the_entries_in_order(entries: int, index: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(0, entries))
    slots = list(range(entries))
    first, second = ring.contiguous(index % WRAP, count, entries)
    assert slots[first] + slots[second] == [(index + at) % entries for at in range(count)]


@given(value=st.integers(-5, 1 << 20))
def test_powers_of_two(value: int) -> None:
    assert ring.is_power_of_two(value) is (value in {1 << power for power in range(21)})
