"""Device memory: sealed, sparse, zeroed in place under every mapping."""

from __future__ import annotations

import errno
import mmap
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emulator.chip import device_memory
from emulator.chip.device_memory import DeviceMemory

PAGE = mmap.PAGESIZE
STAT_BLOCK_BYTES = 512
"""Unit of `st_blocks` (POSIX stat)."""


def resident_bytes(memory: DeviceMemory) -> int:
    """Bytes the system holds for it: what was touched since it was last zeroed."""
    return os.fstat(memory.fd).st_blocks * STAT_BLOCK_BYTES


def test_it_starts_zeroed_and_holds_no_pages() -> None:
    memory = DeviceMemory(1 << 30)
    try:
        assert memory.size == len(memory.view) == 1 << 30
        assert resident_bytes(memory) == 0
        assert memory.view[(1 << 30) - 1] == 0
        memory.view[5 * PAGE] = 1
        assert resident_bytes(memory) < 1 << 24
    finally:
        memory.close()


def test_its_size_is_sealed() -> None:
    memory = DeviceMemory(PAGE)
    try:
        for size in (0, 2 * PAGE):
            with pytest.raises(OSError) as caught:
                os.ftruncate(memory.fd, size)
            assert caught.value.errno == errno.EPERM
        assert not os.get_inheritable(memory.fd)
    finally:
        memory.close()


def test_zeroing_reaches_every_mapping_and_frees_the_pages() -> None:
    memory = DeviceMemory(64 * PAGE)
    try:
        other = mmap.mmap(memory.fd, 64 * PAGE)
        other[:] = b"\xa5" * (64 * PAGE)
        held = memory.view[10 * PAGE : 11 * PAGE]
        memory.zero()
        assert resident_bytes(memory) == 0
        assert other[:] == bytes(64 * PAGE)
        assert bytes(held) == bytes(PAGE)
        held[0] = 7
        assert other[10 * PAGE] == 7
        held.release()
        other.close()
    finally:
        memory.close()


@pytest.mark.parametrize("budget", [0, PAGE, 5 * PAGE])
def test_what_is_not_given_back_is_zeroed_all_the_same(budget: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_memory, "PUNCH_BYTES", budget)
    memory = DeviceMemory(64 * PAGE)
    try:
        for first, last in ((0, 2), (10, 14), (63, 64)):
            memory.view[first * PAGE : last * PAGE] = b"\xff" * ((last - first) * PAGE)
        memory.zero()
        assert resident_bytes(memory) == 7 * PAGE - budget
        assert bytes(memory.view) == bytes(64 * PAGE)
    finally:
        memory.close()


@given(st.integers(0, 4 * PAGE), st.integers(0, 4 * PAGE))
def test_zeroing_a_range_touches_only_that_range(first: int, second: int) -> None:
    start, end = sorted((first, second))
    memory = DeviceMemory(4 * PAGE)
    try:
        memory.view[:] = b"\xff" * (4 * PAGE)
        memory.zero(start, end - start)
        expected = b"\xff" * start + bytes(end - start) + b"\xff" * (4 * PAGE - end)
        assert bytes(memory.view) == expected
    finally:
        memory.close()


@pytest.mark.parametrize(("offset", "size"), [(-1, 1), (0, PAGE + 1), (PAGE, 1), (0, -1), (PAGE + 1, None)])
def test_a_range_outside_is_refused(offset: int, size: int | None) -> None:
    memory = DeviceMemory(PAGE)
    try:
        with pytest.raises(ValueError, match="zeroing"):
            memory.zero(offset, size)
    finally:
        memory.close()


@pytest.mark.parametrize("size", [0, -PAGE, PAGE + 1])
def test_a_size_that_is_not_whole_pages_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match="positive multiple"):
        DeviceMemory(size)


def test_closing_twice_is_fine_and_a_held_slice_stays_readable() -> None:
    memory = DeviceMemory(PAGE)
    memory.view[0] = 9
    held = memory.view[:16]
    fd = memory.fd
    memory.close()
    memory.close()
    assert held[0] == 9
    with pytest.raises(OSError):
        os.fstat(fd)
