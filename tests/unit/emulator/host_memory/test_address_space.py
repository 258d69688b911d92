"""The device's view of host memory: what may be mapped, how it is reached, what a hostile host cannot do to it."""

from __future__ import annotations

import errno
import fcntl
import gc
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emulator.host_memory import address_space as address_space_module
from emulator.host_memory import shared_mappings as shared_mappings_module
from emulator.host_memory.address_space import IOVA_LIMIT, PAGE_BYTES, AddressSpace, DmaFault

MakeFile = Callable[..., int]


def memfd(pages: int, *, sealed: bool = True) -> int:
    fd = os.memfd_create("test", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, pages * PAGE_BYTES)
    if sealed:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    return fd


@pytest.fixture
def make_file() -> Iterator[MakeFile]:
    made: list[int] = []

    def make(pages: int, *, sealed: bool = True) -> int:
        made.append(memfd(pages, sealed=sealed))
        return made[-1]

    yield make
    for fd in made:
        os.close(fd)


@pytest.fixture
def space() -> Iterator[AddressSpace]:
    space = AddressSpace()
    yield space
    space.unmap_all()


def map_file(space: AddressSpace, iova: int, pages: int, fd: int | None, offset: int = 0, **access: bool) -> None:
    allowed = {"readable": True, "writable": True} | access
    space.map(iova, pages * PAGE_BYTES, fd=fd, offset=offset, **allowed)


def open_files() -> int:
    gc.collect()  # what earlier tests left goes now, not while this one counts
    return len(os.listdir("/proc/self/fd"))


class RecordingHost:
    """Answers DMA by message from a dict of bytes."""

    def __init__(self) -> None:
        self.memory = bytearray(4 * PAGE_BYTES)
        self.aborts = 0
        self.before_answer: Callable[[], None] = lambda: None

    def read(self, iova: int, size: int) -> bytes:
        self.before_answer()
        return bytes(self.memory[iova : iova + size])

    def write(self, iova: int, data: memoryview) -> None:
        self.before_answer()
        self.memory[iova : iova + len(data)] = data

    def abort(self) -> None:
        self.aborts += 1


@pytest.mark.parametrize("sealed", [True, False])
def test_bytes_written_at_an_iova_land_in_the_file_at_the_mapped_offset(
    space: AddressSpace, make_file: MakeFile, sealed: bool
) -> None:
    fd = make_file(4, sealed=sealed)
    map_file(space, 0x10000, 2, fd, offset=PAGE_BYTES)
    space.write(0x10000 + 5, b"hello")
    assert os.pread(fd, 5, PAGE_BYTES + 5) == b"hello"
    os.pwrite(fd, b"world", 2 * PAGE_BYTES)
    assert space.read(0x10000 + PAGE_BYTES, 5) == b"world"


def test_a_view_is_the_memory_itself_and_read_only_unless_asked_to_write(
    space: AddressSpace, make_file: MakeFile
) -> None:
    fd = make_file(1)
    map_file(space, 0, 1, fd)
    view = space.view(8, 4, write=True)
    view[:] = b"abcd"
    assert os.pread(fd, 4, 8) == b"abcd"
    assert space.view(8, 4, write=False).readonly


def test_a_file_that_may_shrink_is_never_viewed_and_shrinking_it_is_a_fault_not_a_signal(
    space: AddressSpace, make_file: MakeFile
) -> None:
    fd = make_file(2, sealed=False)
    map_file(space, 0, 2, fd)
    with pytest.raises(DmaFault, match="sealed"):
        space.view(0, 8, write=False)
    os.ftruncate(fd, PAGE_BYTES)
    with pytest.raises(DmaFault, match="shorter"):
        space.read(PAGE_BYTES - 4, 8)
    with pytest.raises(DmaFault, match="shorter"):
        space.write(PAGE_BYTES - 4, bytes(8))
    assert os.fstat(fd).st_size == PAGE_BYTES, "a write must not make the file longer again"
    assert space.read(PAGE_BYTES - 4, 4) == bytes(4)


def test_ranges_of_one_file_share_one_mapping_and_keep_no_descriptor_each(
    space: AddressSpace, make_file: MakeFile
) -> None:
    fd = make_file(16)
    map_file(space, 0, 1, fd)
    before = open_files()
    for page in range(1, 16):
        duplicate = os.dup(fd)
        map_file(space, page * PAGE_BYTES, 1, duplicate, offset=page * PAGE_BYTES)
        os.close(duplicate)
    assert open_files() == before
    space.write(15 * PAGE_BYTES, b"x")
    assert os.pread(fd, 1, 15 * PAGE_BYTES) == b"x"


def test_a_mapping_grows_with_its_file_and_older_ranges_stay_reachable(
    space: AddressSpace, make_file: MakeFile
) -> None:
    fd = make_file(1)
    map_file(space, 0, 1, fd)
    os.ftruncate(fd, 3 * PAGE_BYTES)
    map_file(space, 2 * PAGE_BYTES, 1, fd, offset=2 * PAGE_BYTES)
    space.write(0, b"old")
    space.write(2 * PAGE_BYTES, b"new")
    assert os.pread(fd, 3, 0) == b"old"
    assert os.pread(fd, 3, 2 * PAGE_BYTES) == b"new"


def test_a_file_first_seen_read_only_becomes_writable_when_a_later_range_needs_it(
    space: AddressSpace, make_file: MakeFile
) -> None:
    fd = make_file(2)
    read_only = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
    map_file(space, 0, 1, read_only, writable=False)
    with pytest.raises(OSError, match="not open") as refused:
        map_file(space, PAGE_BYTES, 1, read_only)
    os.close(read_only)
    assert refused.value.errno == errno.EACCES
    map_file(space, PAGE_BYTES, 1, fd, offset=PAGE_BYTES)
    space.write(PAGE_BYTES, b"w")
    with pytest.raises(DmaFault, match="writing"):
        space.write(0, b"w")


def test_a_file_sealed_against_writing_is_mapped_for_reading_only(space: AddressSpace, make_file: MakeFile) -> None:
    fd = make_file(1)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
    map_file(space, 0, 1, fd, writable=False)
    assert space.read(0, 4) == bytes(4)
    with pytest.raises(PermissionError):
        map_file(space, PAGE_BYTES, 1, fd)


def test_a_range_may_end_exactly_at_the_top_of_the_address_space(space: AddressSpace, make_file: MakeFile) -> None:
    map_file(space, IOVA_LIMIT - PAGE_BYTES, 1, make_file(1))
    space.write(IOVA_LIMIT - 1, b"!")
    assert space.read(IOVA_LIMIT - 1, 1) == b"!"
    with pytest.raises(DmaFault):
        space.read(IOVA_LIMIT - 1, 2)


@pytest.mark.parametrize(
    ("iova", "size", "offset", "number"),
    [
        (0x10000, 0, 0, errno.EINVAL),
        (0x10000, 100, 0, errno.EINVAL),
        (0x10010, PAGE_BYTES, 0, errno.EINVAL),
        (0x10000, PAGE_BYTES, 8, errno.EINVAL),
        (-PAGE_BYTES, PAGE_BYTES, 0, errno.EINVAL),
        (IOVA_LIMIT - PAGE_BYTES, 2 * PAGE_BYTES, 0, errno.EINVAL),
        (0x10000, IOVA_LIMIT, 0, errno.EINVAL),
        (0x10000, PAGE_BYTES, 4 * PAGE_BYTES, errno.EINVAL),
        (0x10000, PAGE_BYTES, 1 << 63, errno.EINVAL),
        (0, PAGE_BYTES, 0, errno.EEXIST),
        (PAGE_BYTES, PAGE_BYTES, 0, errno.EEXIST),
        (-0, 4 * PAGE_BYTES, 0, errno.EEXIST),
    ],
)
def test_a_wrong_range_is_refused_and_changes_nothing(
    space: AddressSpace, make_file: MakeFile, iova: int, size: int, offset: int, number: int
) -> None:
    fd = make_file(4)
    map_file(space, 0, 2, fd)
    before = (space.generation, len(space), open_files())
    with pytest.raises(OSError) as refused:
        space.map(iova, size, fd=fd, offset=offset, readable=True, writable=True)
    assert refused.value.errno == number
    assert (space.generation, len(space), open_files()) == before


def test_only_regular_files_not_open_for_appending_are_mapped(space: AddressSpace, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(PAGE_BYTES))
    appending = os.open(path, os.O_RDWR | os.O_APPEND)
    left, right = socket.socketpair()
    for fd in (appending, left.fileno()):
        with pytest.raises(OSError, match="regular") as refused:
            map_file(space, 0, 1, fd)
        assert refused.value.errno == errno.EINVAL
    os.close(appending)
    left.close()
    right.close()


def test_the_number_of_ranges_is_bounded(space: AddressSpace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(address_space_module, "MAX_RANGES", 3)
    for page in range(3):
        map_file(space, page * PAGE_BYTES, 1, None)
    with pytest.raises(OSError) as refused:
        map_file(space, 9 * PAGE_BYTES, 1, None)
    assert refused.value.errno == errno.ENOSPC


def test_unmap_takes_back_whole_mappings(space: AddressSpace, make_file: MakeFile) -> None:
    fd = make_file(4)
    map_file(space, 0x4000, 2, fd)
    wrong = {(0x4000, PAGE_BYTES): errno.EINVAL, (0x5000, PAGE_BYTES): errno.EINVAL, (0, PAGE_BYTES): errno.ENOENT}
    for (iova, size), number in wrong.items():
        with pytest.raises(OSError) as refused:
            space.unmap(iova, size)
        assert refused.value.errno == number
    space.unmap(0x4000, 2 * PAGE_BYTES)
    with pytest.raises(DmaFault):
        space.read(0x4000, 1)


def test_mapping_and_unmapping_leaks_no_descriptor(space: AddressSpace, make_file: MakeFile) -> None:
    fds = [make_file(2, sealed=True), make_file(2, sealed=False)]
    before = open_files()
    for index, fd in enumerate(fds):
        map_file(space, index * 2 * PAGE_BYTES, 2, fd)
    space.unmap(0, 2 * PAGE_BYTES)
    space.unmap_all()
    assert open_files() == before


def test_an_access_may_cross_adjacent_ranges_but_not_a_hole(space: AddressSpace, make_file: MakeFile) -> None:
    sealed, plain = make_file(1, sealed=True), make_file(1, sealed=False)
    map_file(space, 0, 1, sealed)
    map_file(space, PAGE_BYTES, 1, plain)
    space.write(PAGE_BYTES - 3, b"abcdef")
    assert os.pread(sealed, 3, PAGE_BYTES - 3) == b"abc"
    assert os.pread(plain, 3, 0) == b"def"
    assert space.read(PAGE_BYTES - 3, 6) == b"abcdef"
    with pytest.raises(DmaFault, match="sealed"):
        space.view(PAGE_BYTES - 3, 6, write=False)
    with pytest.raises(DmaFault, match="nothing"):
        space.write(0, bytes(3 * PAGE_BYTES))
    assert os.pread(sealed, 3, PAGE_BYTES - 3) == b"abc", "nothing may be stored before the hole is found"


def mappings() -> int:
    """Mappings of this process that lie in a test's memory file."""
    gc.collect()
    return Path("/proc/self/maps").read_text().count("/memfd:test ")


def test_views_resolve_again_only_after_viewed_memory_was_unmapped(space: AddressSpace, make_file: MakeFile) -> None:
    fd = make_file(4)
    map_file(space, 0, 1, fd)
    map_file(space, PAGE_BYTES, 1, fd, offset=PAGE_BYTES)
    before = space.generation
    view = space.view(0, 8, write=True)
    map_file(space, 2 * PAGE_BYTES, 1, fd, offset=2 * PAGE_BYTES)
    space.unmap(PAGE_BYTES, PAGE_BYTES)
    assert space.generation == before
    space.unmap(0, PAGE_BYTES)
    assert space.generation != before
    view[0] = 1


def test_a_view_across_ranges_that_follow_each_other_in_a_file_is_part_of_its_mapping(
    space: AddressSpace, make_file: MakeFile
) -> None:
    fd = make_file(4)
    for page in range(1, 4):
        map_file(space, page * PAGE_BYTES, 1, fd, offset=page * PAGE_BYTES)
    before = mappings()
    view = space.view(2 * PAGE_BYTES - 2, 4, write=True)
    view[:] = b"abcd"
    assert os.pread(fd, 4, 2 * PAGE_BYTES - 2) == b"abcd"
    assert mappings() == before == 1


def test_a_view_across_scattered_pages_is_one_array_and_goes_with_its_last_use(
    space: AddressSpace, make_file: MakeFile
) -> None:
    one, other = make_file(8), make_file(8)
    places = [(one, 5), (other, 2), (one, 0), (one, 1), (other, 7)]
    for page, (fd, at) in enumerate(places):
        map_file(space, page * PAGE_BYTES, 1, fd, offset=at * PAGE_BYTES)
    idle = mappings()
    view = space.view(100, 4 * PAGE_BYTES, write=True)
    assert mappings() == idle + 4, "two of the five pages are consecutive in their file"
    expected = bytes(range(256)) * (4 * PAGE_BYTES // 256)
    view[:] = expected
    stored = b"".join(os.pread(fd, PAGE_BYTES, at * PAGE_BYTES) for fd, at in places)
    assert stored == bytes(100) + expected + bytes(PAGE_BYTES - 100)
    words = view.cast("Q")
    view.release()
    os.pwrite(one, b"seen", 5 * PAGE_BYTES + 100)
    assert words[0].to_bytes(8, "little")[:4] == b"seen"
    del words
    assert mappings() == idle


def test_a_joined_view_is_made_once_however_often_other_ranges_change(space: AddressSpace, make_file: MakeFile) -> None:
    fd = make_file(8)
    for page in range(4):
        map_file(space, page * PAGE_BYTES, 1, fd, offset=(3 - page) * PAGE_BYTES)
    first = space.view(0, 2 * PAGE_BYTES, write=True)
    other = space.view(2 * PAGE_BYTES, 2 * PAGE_BYTES, write=True)
    joined = mappings()
    space.unmap(2 * PAGE_BYTES, PAGE_BYTES)
    again = space.view(0, 2 * PAGE_BYTES, write=True)
    assert (again.obj is first.obj, mappings()) == (True, joined)
    with pytest.raises(DmaFault, match="nothing is mapped at 0x2000"):
        space.view(2 * PAGE_BYTES, 2 * PAGE_BYTES, write=True)
    map_file(space, 2 * PAGE_BYTES, 1, fd, offset=7 * PAGE_BYTES)
    moved = space.view(2 * PAGE_BYTES, 2 * PAGE_BYTES, write=True)
    moved[0] = 77
    assert os.pread(fd, 1, 7 * PAGE_BYTES) == b"\x4d"
    assert other[0] == 0


def test_scattered_pages_are_viewed_only_if_each_of_them_may_be(space: AddressSpace, make_file: MakeFile) -> None:
    fd, unsealed = make_file(8), make_file(1, sealed=False)
    map_file(space, 0, 1, fd, offset=7 * PAGE_BYTES)
    map_file(space, PAGE_BYTES, 1, fd, writable=False)
    map_file(space, 2 * PAGE_BYTES, 1, fd, offset=5 * PAGE_BYTES)
    map_file(space, 3 * PAGE_BYTES, 1, unsealed)
    map_file(space, 4 * PAGE_BYTES, 1, None)
    for start, end, write, reason in [
        (0, 2, True, "0x1000 is not mapped for writing"),
        (2, 4, False, "sealed"),
        (3, 5, False, "sealed"),
        (4, 6, False, "nothing is mapped at 0x5000"),
    ]:
        with pytest.raises(DmaFault, match=reason):
            space.view(start * PAGE_BYTES, (end - start) * PAGE_BYTES, write=write)
        if not write:
            with pytest.raises(DmaFault, match=reason):
                space.snapshot(start * PAGE_BYTES, (end - start) * PAGE_BYTES)
    assert space.view(0, 3 * PAGE_BYTES, write=False).readonly


def test_a_snapshot_of_scattered_pages_takes_no_mapping(space: AddressSpace, make_file: MakeFile) -> None:
    fd = make_file(3)
    for page in range(3):
        map_file(space, page * PAGE_BYTES, 1, fd, offset=(2 - page) * PAGE_BYTES)
        os.pwrite(fd, bytes([page + 1]), (2 - page) * PAGE_BYTES)
    before = mappings()
    data = space.snapshot(0, 3 * PAGE_BYTES)
    assert [data[page * PAGE_BYTES] for page in range(3)] == [1, 2, 3]
    assert mappings() == before


def test_joined_pages_are_bounded_and_come_back_with_their_views(
    space: AddressSpace, make_file: MakeFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_mappings_module, "MAX_PIECES", 3)
    fd = make_file(8)
    for page in range(4):
        map_file(space, page * PAGE_BYTES, 1, fd, offset=(7 - page) * PAGE_BYTES)
    held = space.view(0, 2 * PAGE_BYTES, write=True)
    with pytest.raises(DmaFault, match="2 pieces beside 2; at most 3"):
        space.view(2 * PAGE_BYTES, 2 * PAGE_BYTES, write=True)
    del held
    space.view(2 * PAGE_BYTES, 2 * PAGE_BYTES, write=True)


def test_a_view_of_scattered_pages_survives_the_end_of_their_mapping(space: AddressSpace, make_file: MakeFile) -> None:
    fd = make_file(4)
    for page in range(2):
        map_file(space, page * PAGE_BYTES, 1, fd, offset=(3 - page) * PAGE_BYTES)
    view = space.view(0, 2 * PAGE_BYTES, write=True)
    space.unmap_all()
    view[PAGE_BYTES] = 9
    assert os.pread(fd, 1, 2 * PAGE_BYTES) == b"\x09"


def test_a_file_mapped_page_by_page_costs_one_descriptor_and_one_mapping(
    space: AddressSpace, make_file: MakeFile
) -> None:
    pages = 16384
    fd = make_file(pages)
    nothing_yet = (open_files(), mappings())
    for page in range(pages):
        map_file(space, page * PAGE_BYTES, 1, fd, offset=page * 1023 % pages * PAGE_BYTES)
    assert (open_files(), mappings()) == (nothing_yet[0] + 1, nothing_yet[1] + 1)
    space.write(16383 * PAGE_BYTES, b"last")
    assert os.pread(fd, 4, 16383 * 1023 % pages * PAGE_BYTES) == b"last"
    space.unmap_all()
    assert (open_files(), mappings()) == nothing_yet


@given(
    places=st.lists(st.tuples(st.integers(0, 1), st.integers(0, 7)), min_size=2, max_size=8),
    ends=st.tuples(st.integers(0, 8 * PAGE_BYTES), st.integers(1, 8 * PAGE_BYTES)),
    write=st.booleans(),
)
def test_a_view_shows_what_reading_gives_wherever_the_pages_lie(
    places: list[tuple[int, int]], ends: tuple[int, int], write: bool
) -> None:
    space, fds = AddressSpace(), [memfd(8), memfd(8)]
    try:
        for number, fd in enumerate(fds):
            os.pwrite(fd, bytes((number * 8 + at // PAGE_BYTES) ^ (at & 0xFF) for at in range(8 * PAGE_BYTES)), 0)
        for page, (which, at) in enumerate(places):
            map_file(space, page * PAGE_BYTES, 1, fds[which], offset=at * PAGE_BYTES)
        start = min(ends[0], len(places) * PAGE_BYTES - 1)
        size = min(ends[1], len(places) * PAGE_BYTES - start)
        view = space.view(start, size, write=write)
        assert (bytes(view), view.readonly) == (bytes(space.read(start, size)), not write)
        space.write(start, b"!")
        assert view[0] == ord("!")
    finally:
        space.unmap_all()
        for fd in fds:
            os.close(fd)


def test_directions_are_enforced(space: AddressSpace, make_file: MakeFile) -> None:
    map_file(space, 0, 1, make_file(1), writable=False)
    map_file(space, PAGE_BYTES, 1, make_file(1), readable=False)
    with pytest.raises(DmaFault, match="writing"):
        space.view(0, 1, write=True)
    with pytest.raises(DmaFault, match="reading"):
        space.read(PAGE_BYTES, 1)
    space.check(0, PAGE_BYTES, write=False)
    with pytest.raises(DmaFault):
        space.check(0, PAGE_BYTES + 1, write=False)


def test_a_range_without_a_file_is_reached_by_asking_the_host(space: AddressSpace) -> None:
    map_file(space, 0, 2, None)
    with pytest.raises(DmaFault, match="no host to ask"):
        space.read(0, 4)
    host = RecordingHost()
    space.remote = host
    space.write(8, b"remote")
    assert host.memory[8:14] == b"remote"
    assert space.read(8, 6) == b"remote"
    space.abort_transfers()
    assert host.aborts == 1


def test_ranges_taken_back_while_the_host_is_asked_are_not_touched(space: AddressSpace, make_file: MakeFile) -> None:
    fd = make_file(1)
    host = RecordingHost()
    host.before_answer = lambda: space.unmap(PAGE_BYTES, PAGE_BYTES)
    space.remote = host
    map_file(space, 0, 1, None)
    map_file(space, PAGE_BYTES, 1, fd)
    with pytest.raises(DmaFault):
        space.write(0, b"x" * (2 * PAGE_BYTES))
    assert os.pread(fd, 1, 0) == b"\0"


@given(st.lists(st.tuples(st.integers(0, 15), st.integers(1, 6), st.booleans()), max_size=40))
def test_ranges_never_overlap_and_match_a_plain_model(actions: list[tuple[int, int, bool]]) -> None:
    space = AddressSpace()
    owner: dict[int, tuple[int, int]] = {}
    for first, count, mapping in actions:
        pages = range(first, first + count)
        if mapping:
            free = not any(page in owner for page in pages)
            try:
                map_file(space, first * PAGE_BYTES, count, None)
            except OSError as error:
                assert error.errno == errno.EEXIST
                assert not free
            else:
                assert free
                owner |= dict.fromkeys(pages, (first, count))
        else:
            there = {owner[page] for page in pages if page in owner}
            whole = all(first <= start and start + length <= first + count for start, length in there)
            try:
                space.unmap(first * PAGE_BYTES, count * PAGE_BYTES)
            except OSError as error:
                assert error.errno == (errno.EINVAL if there else errno.ENOENT)
                assert not there or not whole
            else:
                assert there and whole
                for page in pages:
                    owner.pop(page, None)
    for page in range(24):
        try:
            space.check(page * PAGE_BYTES, PAGE_BYTES, write=True)
        except DmaFault:
            assert page not in owner
        else:
            assert page in owner


def test_one_unmap_takes_back_all_mappings_within_it(space: AddressSpace, make_file: MakeFile) -> None:
    file = make_file(2)
    for page in (1, 2, 4):
        space.map(page * PAGE_BYTES, PAGE_BYTES, fd=file, offset=0, readable=True, writable=True)
    space.map(8 * PAGE_BYTES, 2 * PAGE_BYTES, fd=file, offset=0, readable=True, writable=True)
    for first, pages in ((0, 9), (9, 1), (8, 1)):  # parts of a mapping stay, and all else with them
        with pytest.raises(OSError) as refused:
            space.unmap(first * PAGE_BYTES, pages * PAGE_BYTES)
        assert refused.value.errno == errno.EINVAL
        assert len(space) == 4
    space.unmap(0, 8 * PAGE_BYTES)
    assert len(space) == 1
    with pytest.raises(OSError) as refused:
        space.unmap(0, 8 * PAGE_BYTES)
    assert refused.value.errno == errno.ENOENT
    space.unmap(0, 1 << 64)
    assert len(space) == 0
