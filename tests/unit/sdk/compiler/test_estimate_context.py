"""What a program that attends to caches takes, by how much its sequences have."""

from __future__ import annotations

import pytest

from emulator.model.profile import load_profile
from sdk.compiler.estimate import Estimate, estimate
from tests.support.cache_programs import CacheProgram

PROGRAM = CacheProgram(tokens=1, blocks=64, entries=32)
"""Two rows, tables of 128 tokens; 512 bytes of keys and values a block; 512 bytes of queries and results."""


def of(context: int | None = None, rows: int | None = None) -> Estimate:
    return estimate(PROGRAM.compiled(), "generic", context=context, rows=rows)


def test_each_block_that_has_tokens_is_read_once_a_row() -> None:
    assert [of(context).commands[2].moved_bytes for context in (0, 1, 4, 5, 128)] == [
        512 + 2 * 512 * blocks for blocks in (0, 1, 1, 2, 32)
    ]
    assert [of(context).commands[2].macs for context in (0, 1, 5)] == [2 * 4 * 16 * keys for keys in (0, 1, 5)]
    assert of(5, 1).commands[2].moved_bytes == 512 + 512 * 2


def test_ticks_are_those_of_the_chips_figures() -> None:
    profile = load_profile("generic")
    fixed = profile.exec_fixed_ticks + 3 * profile.command_fixed_ticks
    assert of(100).latency_ticks == fixed + 1 + 1 + (512 + 2 * 25 * 512) // 256


def test_without_a_context_tables_are_full() -> None:
    assert of() == of(128) == of(128, 2)


def test_a_ring_has_no_end() -> None:
    ring = CacheProgram(tokens=1, blocks=64, entries=32, ring=64, left_window=63)
    long, longer = (estimate(ring.compiled(), "generic", context=tokens) for tokens in (128, 1 << 20))
    assert long == longer


@pytest.mark.parametrize(
    ("context", "rows", "reason"),
    [(129, None, "0 to 128"), (-1, None, "0 to 128"), (1, 3, "0 to 2"), (1, -1, "0 to 2")],
)
def test_what_there_is_no_room_for_is_refused(context: int, rows: int | None, reason: str) -> None:
    with pytest.raises(ValueError, match=f"{reason} are possible"):
        of(context, rows)
