"""Blocks of caches: who has which, and that a sequence gets adjacent ones where it can."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdk.state.blocks import Blocks, OutOfBlocks, runs


def test_a_sequence_gets_the_blocks_behind_its_last_one() -> None:
    blocks = Blocks(8)
    first = blocks.take(2)
    assert first == [0, 1]
    assert blocks.take(3, behind=first[-1]) == [2, 3, 4]


def test_a_second_sequence_leaves_the_first_room_to_grow() -> None:
    blocks = Blocks(16)
    first = blocks.take(2)
    second = blocks.take(2)
    assert runs(second) == [range(second[0], second[0] + 2)]
    assert blocks.take(3, behind=first[-1]) == [2, 3, 4]
    assert blocks.take(3, behind=second[-1]) == list(range(second[-1] + 1, second[-1] + 4))


def test_blocks_are_found_in_pieces_when_no_run_is_long_enough() -> None:
    blocks = Blocks(6)
    whole = blocks.take(6)
    blocks.give([whole[0], whole[2], whole[4], whole[5]])
    assert sorted(blocks.take(4)) == [0, 2, 4, 5]


def test_what_does_not_fit_is_refused_with_the_numbers_and_takes_nothing() -> None:
    blocks = Blocks(4)
    blocks.take(3)
    with pytest.raises(OutOfBlocks, match="2 blocks asked for; 1 are free"):
        blocks.take(2)
    assert blocks.free == 1


def test_a_shared_block_is_free_when_both_have_given_it_back() -> None:
    blocks = Blocks(2)
    (block,) = blocks.take(1)
    blocks.share([block])
    assert blocks.is_shared(block)
    blocks.give([block])
    assert not blocks.is_shared(block)
    assert blocks.free == 1
    blocks.give([block])
    assert blocks.free == 2


def test_a_block_that_another_had_is_told_once() -> None:
    blocks = Blocks(2)
    taken = blocks.take(2)
    assert blocks.used_from(taken) == []
    blocks.give(taken)
    again = blocks.take(2)
    assert blocks.used_from(again) == again
    assert blocks.used_from(again) == []


def test_free_blocks_behind_are_told_with_one_that_another_had() -> None:
    blocks = Blocks(24)
    whole = blocks.take(24)
    blocks.give([*whole[:4], *whole[5:]])
    first = blocks.take(1, behind=4)
    assert blocks.used_from(first) == list(range(5, 21))
    assert blocks.used_from(blocks.take(15, behind=5)) == []
    assert blocks.used_from(blocks.take(1, behind=20)) == [21, 22, 23]
    assert blocks.used_from([0]) == [0, 1, 2, 3]


def test_adjacent_blocks_are_one_run() -> None:
    assert runs([3, 4, 5, 1, 2, 9]) == [range(3, 6), range(1, 3), range(9, 10)]
    assert runs([]) == []


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 9)), max_size=60))
def test_no_block_has_two_owners_and_none_is_lost(steps: list[tuple[int, int]]) -> None:
    blocks = Blocks(24)
    held: list[list[int]] = [[] for _ in range(4)]
    for who, count in steps:
        mine = held[who]
        if count > blocks.free:
            blocks.give(mine)
            mine.clear()
            continue
        mine += blocks.take(count, mine[-1] if mine else None)
        everything = [block for each in held for block in each]
        assert len(set(everything)) == len(everything)
        assert len(everything) + blocks.free == len(blocks)
