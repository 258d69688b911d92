"""Host DMA memory against a transport that records what is mapped."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import gc
import mmap
import os
import random
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from driver_shim.errors import BufferInUse, Closed, DeviceLost, HostMemoryLimit
from driver_shim.function import dma
from driver_shim.function.dma import FIRST_ARENA_BYTES, HostMemory
from driver_shim.transport import mapping
from driver_shim.transport.base import RegionInfo, Transport
from tests.support.forks import FORKS_WITH_THREADS, exit_status

MIB = 1 << 20
CHILD_PASSED = 0
PATIENCE_S = 20.0


class RecordingTransport(Transport):
    """Checks and records DMA mappings; everything else is out of its scope."""

    def __init__(self, ranges: tuple[tuple[int, int], ...] = ((0, (1 << 64) - 1),)) -> None:
        self.address = "recording"
        self.ranges = ranges
        self.maps: dict[int, tuple[int, mmap.mmap]] = {}
        self.refusal: Exception | None = None

    def dma_map(self, fd: int, offset: int, iova: int, size: int) -> None:
        if self.refusal:
            raise self.refusal
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
        assert seals == fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
        assert offset == 0
        assert size % mmap.PAGESIZE == iova % mmap.PAGESIZE == 0
        assert any(first <= iova and iova + size - 1 <= last for first, last in self.ranges)
        assert all(iova + size <= other or other + taken <= iova for other, (taken, _) in self.maps.items())
        self.maps[iova] = (size, mmap.mmap(fd, size))

    def dma_unmap(self, iova: int, size: int) -> None:
        taken, device_side = self.maps.pop(iova)
        assert taken == size
        device_side.close()

    def device_bytes(self, iova: int, size: int) -> bytes:
        """What the device sees at a bus address."""
        for base, (taken, device_side) in self.maps.items():
            if base <= iova and iova + size <= base + taken:
                return device_side[iova - base : iova - base + size]
        raise LookupError(hex(iova))

    def iova_ranges(self) -> tuple[tuple[int, int], ...]:
        return self.ranges

    def _out_of_scope(self, *_: object) -> Any:
        raise NotImplementedError

    def regions(self) -> dict[int, RegionInfo]:
        return {}

    def set_interrupts(self, eventfds: Sequence[int | None]) -> None:
        self._out_of_scope()

    config_read: Any = _out_of_scope
    config_write: Any = _out_of_scope
    read: Any = _out_of_scope
    write: Any = _out_of_scope
    map_region: Any = _out_of_scope
    interrupt_count: Any = _out_of_scope
    reset: Any = _out_of_scope
    alive: Any = _out_of_scope
    progress: Any = _out_of_scope
    close: Any = _out_of_scope


@pytest.fixture
def transport() -> Iterator[RecordingTransport]:
    transport = RecordingTransport()
    yield transport
    for iova in list(transport.maps):
        transport.dma_unmap(iova, transport.maps[iova][0])


@pytest.fixture
def memory(transport: RecordingTransport) -> Iterator[HostMemory]:
    with HostMemory(transport) as memory:
        yield memory


def mappings() -> int:
    """Mapped DMA arenas of this process."""
    with open("/proc/self/maps") as maps:
        return sum("npu-dma" in line for line in maps)


def mapped_at(address: int) -> bool:
    """Whether this process has anything mapped at an address."""
    with open("/proc/self/maps") as maps:
        ranges = [[int(end, 16) for end in line.split()[0].split("-")] for line in maps]
    return any(first <= address < last for first, last in ranges)


def descriptors() -> int:
    """Open memory files of this process."""
    names = []
    for entry in os.listdir("/proc/self/fd"):
        try:
            names.append(os.readlink(f"/proc/self/fd/{entry}"))
        except FileNotFoundError:
            continue
    return sum("npu-dma" in name for name in names)


def in_child(check: Callable[[], None]) -> int:
    """Run `check` in a forked child; the exit status is 0 when it passed."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            check()
            status = CHILD_PASSED
        finally:
            os._exit(status)
    return exit_status(child)


def test_device_and_host_see_the_same_bytes(memory: HostMemory, transport: RecordingTransport) -> None:
    block = memory.allocate(16)
    block.view[:] = bytes(range(16))
    assert transport.device_bytes(block.iova, 16) == bytes(range(16))


def test_addresses_are_aligned_and_never_zero(memory: HostMemory) -> None:
    for alignment in (1, 64, 256, 4096):
        block = memory.allocate(10, alignment)
        assert block.iova % max(alignment, 64) == 0
        assert block.iova != 0
        assert block.size == len(block.view) == 10


def test_first_arena_is_small_and_later_ones_grow(memory: HostMemory, transport: RecordingTransport) -> None:
    assert transport.maps == {}
    for _ in range(40):
        memory.allocate(MIB)
    sizes = [size for size, _ in transport.maps.values()]
    assert sizes[0] == 2 * MIB
    assert sizes == sorted(sizes)
    assert len(sizes) <= 5


def test_steps_stop_growing_at_their_limit(memory: HostMemory, transport: RecordingTransport) -> None:
    blocks = [memory.allocate(mapping.HUGE_PAGE_BYTES - 64, zero=False) for _ in range(110)]
    assert max(size for size, _ in transport.maps.values()) == dma.LARGEST_STEP_BYTES
    assert len(blocks) == 110


def test_big_request_gets_an_arena_of_its_own_and_gives_it_back(
    memory: HostMemory, transport: RecordingTransport
) -> None:
    small = memory.allocate(64)
    big = memory.allocate(9 * MIB)
    assert sorted(size for size, _ in transport.maps.values()) == [2 * MIB, 10 * MIB]
    memory.free(big)
    assert [size for size, _ in transport.maps.values()] == [2 * MIB]
    memory.free(small)
    assert memory.mapped_bytes == 2 * MIB
    assert memory.used_bytes == 0


def test_memory_is_zeroed_again_when_reused(memory: HostMemory) -> None:
    block = memory.allocate(4096)
    iova = block.iova
    block.view[:] = b"\xff" * 4096
    memory.free(block)
    again = memory.allocate(8192)
    assert again.iova == iova
    assert bytes(again.view) == bytes(8192)


def test_memory_is_left_alone_when_zeroing_is_declined(memory: HostMemory) -> None:
    block = memory.allocate(64)
    block.view[:] = b"\xff" * 64
    memory.free(block)
    assert bytes(memory.allocate(64, zero=False).view) == b"\xff" * 64


def test_zero_sized_blocks_are_fine(memory: HostMemory) -> None:
    first, second = memory.allocate(0), memory.allocate(0)
    assert len(first.view) == 0
    assert first.iova != second.iova
    memory.free(first)
    memory.free(second)


@pytest.mark.parametrize(("size", "alignment"), [(-1, 64), (1, 0), (1, 3), (1, 8192)])
def test_bad_requests_are_refused(memory: HostMemory, size: int, alignment: int) -> None:
    with pytest.raises(ValueError, match="power of two"):
        memory.allocate(size, alignment)


def test_double_free_is_refused(memory: HostMemory) -> None:
    block = memory.allocate(64)
    memory.free(block)
    with pytest.raises(ValueError, match="freed before"):
        memory.free(block)


def test_block_under_an_array_is_in_use(memory: HostMemory) -> None:
    block = memory.allocate(64)
    array = np.frombuffer(block.view, dtype=np.uint8)
    with pytest.raises(BufferInUse):
        memory.free(block)
    assert array.sum() == 0
    del array
    memory.free(block)
    assert memory.used_bytes == 0


def test_abandoned_block_is_freed_once_its_array_is_gone(memory: HostMemory) -> None:
    block = memory.allocate(64)
    array = np.frombuffer(block.view, dtype=np.uint8)
    memory.abandon(block)
    assert memory.used_bytes == 64
    del array
    memory.free(memory.allocate(64))
    assert memory.used_bytes == 0


def test_abandoning_asks_nothing_of_the_device(
    memory: HostMemory, transport: RecordingTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A finaliser may run while this thread holds the transport's lock: an unmap there would wait for ever."""
    memory.allocate(64)
    block = memory.allocate(FIRST_ARENA_BYTES * 2)
    unmap = transport.dma_unmap
    calls: list[int] = []

    def recording(iova: int, size: int) -> None:
        calls.append(iova)
        unmap(iova, size)

    monkeypatch.setattr(transport, "dma_unmap", recording)
    memory.abandon(block)
    assert calls == []
    memory.free(memory.allocate(64))
    assert calls == [block.iova]


def test_finaliser_inside_allocate_does_not_deadlock(memory: HostMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A collection may run at any byte code, also while the lock is held."""
    block, other = memory.allocate(64), memory.allocate(64)
    take = memory._take

    def collecting(size: int, alignment: int) -> Any:
        memory.abandon(block)
        memory.free(other)
        return take(size, alignment)

    monkeypatch.setattr(memory, "_take", collecting)
    memory.allocate(64)
    monkeypatch.undo()
    memory.allocate(64)
    assert memory.used_bytes == 2 * 64


def test_interrupts_at_any_point_of_free_leave_memory_that_allocates(transport: RecordingTransport) -> None:
    """The bytes of a call that was cut short may be lost until the end; the lock may not."""
    memory = HostMemory(transport)
    chance = random.Random(1)
    limit_s, _ = signal.getitimer(signal.ITIMER_REAL)  # the test's own
    handler = signal.signal(signal.SIGALRM, signal.default_int_handler)
    gc.disable()  # hypothesis has it call Python code, where an exception would be lost
    try:
        for _ in range(2000):
            with contextlib.suppress(KeyboardInterrupt):
                signal.setitimer(signal.ITIMER_REAL, chance.uniform(1e-6, 1e-4))
                while True:
                    memory.free(memory.allocate(64))
            allocating = threading.Thread(target=memory.allocate, args=(64,), daemon=True)
            allocating.start()
            allocating.join(PATIENCE_S)
            assert not allocating.is_alive()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, limit_s)
        gc.enable()
    memory.close()


def test_limit_names_need_limit_and_remedy(transport: RecordingTransport) -> None:
    with HostMemory(transport, limit_bytes=4 * MIB) as memory:
        memory.allocate(2 * MIB)
        with pytest.raises(
            HostMemoryLimit, match=r"3145728 bytes .* limit of 4194304 bytes: 2097152 .*NPU_HOST_MEMORY"
        ):
            memory.allocate(3 * MIB)
        block = memory.allocate(2 * MIB)
        memory.free(block)
        assert memory.mapped_bytes == 2 * MIB


def test_limit_below_the_first_arena_is_usable_to_the_last_page(transport: RecordingTransport) -> None:
    with HostMemory(transport, limit_bytes=8192) as memory:
        memory.allocate(4096)
        memory.allocate(4096)
        with pytest.raises(HostMemoryLimit):
            memory.allocate(1)


def test_large_arenas_ask_for_huge_pages_and_do_without(memory: HostMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, bool]] = []

    def without_huge_pages(size: int, *, huge: bool = False) -> int:
        asked.append((size, huge))
        if huge:
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        return mapping.create_memory_file(size)

    monkeypatch.setattr(dma, "create_memory_file", without_huge_pages)
    memory.allocate(64)
    assert memory.allocate(5 * MIB).iova % mapping.HUGE_PAGE_BYTES == 0
    assert asked == [(2 * MIB, True), (2 * MIB, False), (6 * MIB, True), (6 * MIB, False)]


@pytest.mark.parametrize("code", [errno.ENOMEM, errno.EMFILE])
def test_refusal_by_the_system_is_a_limit(memory: HostMemory, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def refuse(size: int, *, huge: bool) -> tuple[int, memoryview]:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(dma, "_create", refuse)
    with pytest.raises(HostMemoryLimit, match=os.strerror(code)) as caught:
        memory.allocate(64)
    assert caught.value.remedy


def test_impossible_size_is_a_limit_and_leaks_nothing(memory: HostMemory, transport: RecordingTransport) -> None:
    gc.collect()  # what earlier tests left goes now, not between the two counts
    before = descriptors(), mappings()
    with pytest.raises(HostMemoryLimit):
        memory.allocate(1 << 60)
    gc.collect()
    assert (descriptors(), mappings()) == before
    assert transport.maps == {}


def test_refused_mapping_leaves_nothing_behind(memory: HostMemory, transport: RecordingTransport) -> None:
    gc.collect()  # what earlier tests left goes now, not between the two counts
    before = descriptors(), mappings()
    transport.refusal = DeviceLost("gone")
    with pytest.raises(DeviceLost):
        memory.allocate(64)
    transport.refusal = None  # its traceback holds the frames that held the mapping
    gc.collect()
    assert (descriptors(), mappings()) == before
    assert memory.mapped_bytes == 0
    memory.allocate(64)


def test_narrow_bus_address_ranges_are_kept_to() -> None:
    transport = RecordingTransport(ranges=((0x1000_0800, 0x1000_0900), (0x8000_0000, 0x8000_0000 + 2 * MIB - 1)))
    with HostMemory(transport) as memory:
        memory.allocate(MIB)
        with pytest.raises(HostMemoryLimit, match="bus address ranges"):
            memory.allocate(2 * MIB)
    assert transport.maps == {}


def test_close_unmaps_at_once_and_pages_live_with_their_views(transport: RecordingTransport) -> None:
    gc.collect()  # what earlier tests left goes now, not between the two counts
    before = descriptors(), mappings()
    memory = HostMemory(transport)
    block = memory.allocate(64)
    block.view[:4] = b"live"
    array = np.frombuffer(block.view, dtype=np.uint8)
    memory.close()
    memory.close()
    assert transport.maps == {}
    assert descriptors() == before[0]
    assert mappings() == before[1] + 1
    assert bytes(array[:4]) == b"live"
    del array, block
    gc.collect()
    assert mappings() == before[1]


def test_closed_memory_refuses(transport: RecordingTransport) -> None:
    memory = HostMemory(transport)
    block, other = memory.allocate(64), memory.allocate(64)
    memory.close()
    with pytest.raises(Closed):
        memory.allocate(64)
    with pytest.raises(Closed):
        memory.free(block)
    memory.abandon(other)


def test_close_with_a_lost_device_is_quiet(transport: RecordingTransport, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(iova: int, size: int) -> None:
        raise DeviceLost("gone")

    memory = HostMemory(transport)
    memory.allocate(64)
    monkeypatch.setattr(transport, "dma_unmap", lost)
    memory.close()


@FORKS_WITH_THREADS
def test_forked_child_is_refused_and_harms_nothing(memory: HostMemory, transport: RecordingTransport) -> None:
    block = memory.allocate(64)
    block.view[:] = b"\x5a" * 64

    def child() -> None:
        for operation in (lambda: memory.allocate(64), lambda: memory.free(block)):
            with pytest.raises(Closed):
                operation()
        memory.abandon(block)
        memory.close()
        assert not mapped_at(address)

    address = np.frombuffer(block.view, np.uint8).ctypes.data
    assert mapped_at(address)
    assert in_child(child) == CHILD_PASSED
    assert len(transport.maps) == 1
    assert transport.device_bytes(block.iova, 64) == b"\x5a" * 64
    memory.free(block)


def test_no_descriptor_stays_open_for_an_arena(memory: HostMemory) -> None:
    gc.collect()  # what earlier tests left goes now, not between the two counts
    before = descriptors()
    memory.allocate(64)
    # The recording transport's own mapping holds one, as mmap.mmap does.
    assert descriptors() <= before + 1


def test_threads_allocate_and_free_at_once(memory: HostMemory) -> None:
    failures: list[BaseException] = []

    def work(mark: int) -> None:
        try:
            for turn in range(200):
                block = memory.allocate(100 + turn)
                block.view[:] = bytes([mark]) * block.size
                assert bytes(block.view) == bytes([mark]) * block.size
                memory.free(block)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(mark,)) for mark in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert failures == []
    memory.free(memory.allocate(1))
    assert memory.used_bytes == 0


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3 * MIB), st.sampled_from([1, 64, 4096]), st.booleans()), max_size=30))
def test_blocks_never_overlap_and_everything_returns(requests: list[tuple[int, int, bool]]) -> None:
    transport = RecordingTransport()
    with HostMemory(transport) as memory:
        live: list[dma.HostBlock] = []
        for size, alignment, freed in requests:
            block = memory.allocate(size, alignment, zero=False)
            assert all(block.iova + block.size <= other.iova or other.iova + other.size <= block.iova for other in live)
            live.append(block)
            if freed:
                memory.free(live.pop(len(live) // 2))
        for block in live:
            memory.free(block)
        assert memory.used_bytes == 0
        assert memory.mapped_bytes in (0, 2 * MIB)
    assert transport.maps == {}
