"""The sub-allocator against a naive model: nothing overlaps, all is aligned, everything coalesces."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from driver_shim.function.allocator import OutOfSpace, RangeAllocator

START, SIZE, GRANULE = 0x1000, 0x4000, 64


class Model(RuleBasedStateMachine):
    """A list of live (address, size) pairs is all the naive model is."""

    def __init__(self) -> None:
        super().__init__()
        self.allocator = RangeAllocator(START, SIZE, GRANULE)
        self.live: dict[int, int] = {}

    def fits(self, size: int, alignment: int) -> bool:
        """Whether any gap between live allocations holds the request."""
        at = START
        for address, taken in [*sorted(self.live.items()), (START + SIZE, 0)]:
            if -(-at // alignment) * alignment + size <= address:
                return True
            at = address + taken
        return False

    @rule(size=st.integers(0, SIZE // 4), alignment=st.sampled_from([1, 8, 64, 128, 256, 1024, 4096]))
    def allocate(self, size: int, alignment: int) -> None:
        taken = max(-(-size // GRANULE) * GRANULE, GRANULE)
        if not self.fits(taken, max(alignment, GRANULE)):
            with pytest.raises(OutOfSpace) as caught:
                self.allocator.allocate(size, alignment)
            assert caught.value.free == SIZE - sum(self.live.values())
            return
        address = self.allocator.allocate(size, alignment)
        assert address % alignment == 0
        assert address >= START
        assert address + taken <= START + SIZE
        for other, other_size in self.live.items():
            assert address + taken <= other or other + other_size <= address
        self.live[address] = taken

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        address = data.draw(st.sampled_from(sorted(self.live)))
        self.allocator.free(address)
        del self.live[address]

    @rule(address=st.integers(START, START + SIZE))
    def free_what_is_not_allocated(self, address: int) -> None:
        if address not in self.live:
            with pytest.raises(ValueError, match="freed twice"):
                self.allocator.free(address)

    @invariant()
    def figures_agree(self) -> None:
        gaps, at = [], START
        for address, taken in [*sorted(self.live.items()), (START + SIZE, 0)]:
            if address > at:
                gaps.append((at, address - at))
            at = address + taken
        assert sorted(self.allocator.holes()) == gaps
        assert self.allocator.free_bytes == sum(size for _, size in gaps)
        assert self.allocator.largest_hole == max((size for _, size in gaps), default=0)
        assert self.allocator.allocations == len(self.live)

    def teardown(self) -> None:
        for address in self.live:
            self.allocator.free(address)
        assert list(self.allocator.holes()) == [(START, SIZE)]


TestAgainstTheModel = Model.TestCase
TestAgainstTheModel.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)


def test_zero_sized_allocations_have_addresses_of_their_own() -> None:
    allocator = RangeAllocator(0, 256)
    assert len({allocator.allocate(0) for _ in range(4)}) == 4
    with pytest.raises(OutOfSpace):
        allocator.allocate(0)


def test_the_whole_range_can_be_taken_at_once() -> None:
    allocator = RangeAllocator(0x20_0000, 0x20_0000)
    assert allocator.allocate(0x20_0000, alignment=4096) == 0x20_0000
    assert allocator.largest_hole == allocator.free_bytes == 0


def test_refusal_names_need_free_bytes_and_largest_hole() -> None:
    allocator = RangeAllocator(0, 4 * 64)
    blocks = [allocator.allocate(64) for _ in range(4)]
    allocator.free(blocks[0])
    allocator.free(blocks[2])
    with pytest.raises(
        OutOfSpace, match="no room for 128 bytes: 128 bytes are free, the largest hole has 64"
    ) as caught:
        allocator.allocate(100)
    assert (caught.value.requested, caught.value.free, caught.value.largest) == (128, 128, 64)


def test_double_free_is_refused() -> None:
    allocator = RangeAllocator(0, 4096)
    address = allocator.allocate(100)
    allocator.free(address)
    with pytest.raises(ValueError, match="freed twice"):
        allocator.free(address)


@pytest.mark.parametrize(("size", "alignment"), [(-1, 1), (1, 0), (1, 3), (1, -8)])
def test_bad_requests_are_refused(size: int, alignment: int) -> None:
    with pytest.raises(ValueError, match=r"negative|power of two"):
        RangeAllocator(0, 4096).allocate(size, alignment)


@pytest.mark.parametrize(
    ("start", "size", "granule"), [(0, 4096, 3), (0, 4096, 0), (32, 4096, 64), (-64, 4096, 64), (0, 63, 64)]
)
def test_bad_ranges_are_refused(start: int, size: int, granule: int) -> None:
    with pytest.raises(ValueError, match="granule"):
        RangeAllocator(start, size, granule)


def test_a_range_may_end_at_two_to_the_64() -> None:
    allocator = RangeAllocator(0, 1 << 64, granule=4096)
    assert allocator.allocate(1 << 63) == 0
    assert allocator.allocate(1 << 63) == 1 << 63


@given(st.lists(st.integers(1, 4096), max_size=200))
def test_freeing_in_any_order_leaves_one_hole(sizes: list[int]) -> None:
    allocator = RangeAllocator(0, 1 << 20)
    for address in sorted(
        (allocator.allocate(size) for size in sizes), key=lambda address: address * 2654435761 % 1009
    ):
        allocator.free(address)
    assert list(allocator.holes()) == [(0, 1 << 20)]


def test_waste_by_fragmentation_is_bounded() -> None:
    """Of many long-lived blocks every other one is freed; blocks of the same size fill the holes again exactly."""
    allocator = RangeAllocator(0, 1024 * 1088)
    blocks = [allocator.allocate(1088) for _ in range(1024)]
    for address in blocks[::2]:
        allocator.free(address)
    assert sorted(allocator.allocate(1088) for _ in range(512)) == blocks[::2]
    assert allocator.free_bytes == 0
