"""How a step's rows and tokens are divided among the programs that were loaded by name."""

from __future__ import annotations

import pytest

from sdk.model.step_widths import MOST_CHUNKS, Chunk, StepWidths


def widths(*shapes: tuple[int, int], idle_rows: bool = False, masks: bool = True) -> StepWidths:
    made = StepWidths("ids", idle_rows=idle_rows, masks=masks)
    for rows, tokens in shapes:
        made.add(rows, tokens)
    return made


def test_without_named_shapes_a_step_is_one_chunk_of_its_own_length() -> None:
    assert widths().chunks(1, 37) == [Chunk(37, 37)]
    assert widths((2, 8)).chunks(1, 37) == [Chunk(37, 37)]


def test_the_widest_is_taken_again_and_again_and_the_narrowest_takes_the_rest() -> None:
    loaded = widths((1, 1), (1, 16), (1, 4))
    assert loaded.chunks(1, 35) == [Chunk(16, 16), Chunk(16, 16), Chunk(4, 3)]
    assert loaded.chunks(1, 4) == [Chunk(4, 4)]


def test_where_nothing_can_be_masked_every_chunk_is_full() -> None:
    loaded = widths((1, 4), (1, 16), masks=False)
    assert loaded.chunks(1, 27) == [Chunk(16, 16), Chunk(4, 4), Chunk(4, 4), Chunk(3, 3)]


def test_more_chunks_than_a_queue_takes_are_refused() -> None:
    loaded = widths((1, 2))
    assert len(loaded.chunks(1, 2 * MOST_CHUNKS)) == MOST_CHUNKS
    with pytest.raises(ValueError, match=f"{MOST_CHUNKS + 1} chunks of the widest shape"):
        loaded.chunks(1, 2 * MOST_CHUNKS + 1)


def test_fewer_rows_take_the_next_larger_program_only_where_rows_may_be_idle() -> None:
    shapes = ((2, 1), (4, 1), (8, 1))
    assert widths(*shapes, idle_rows=True).rows_for(3) == 4
    assert widths(*shapes).rows_for(4) == 4
    assert widths(*shapes).rows_for(9) == 9
    with pytest.raises(ValueError, match=r"3 rows of input 'ids'; programs are loaded for \[2, 4, 8\]"):
        widths(*shapes).rows_for(3)


def test_a_shape_that_is_named_twice_is_one() -> None:
    loaded = widths((1, 4), (1, 4))
    assert loaded.is_named(1, 4)
    assert not loaded.is_named(1, 2)
    assert not loaded.is_named(2, 4)
