"""Mappings that are revoked: whoever looks at them goes on looking, at nothing."""

from __future__ import annotations

import os
import threading

import pytest

from driver_shim.transport.mapping import PAGE_BYTES, DeviceMapping, create_memory_file
from tests.support.waiting import PATIENCE_S

SIZE = 4 * PAGE_BYTES


@pytest.fixture
def file() -> int:
    return create_memory_file(SIZE)


def test_a_revoked_view_reads_nothing_and_writes_nowhere(file: int) -> None:
    mapping = DeviceMapping(file, PAGE_BYTES, 2 * PAGE_BYTES)
    view = mapping.take_view()
    view[:4] = b"\x11\x22\x33\x44"
    assert os.pread(file, 4, PAGE_BYTES) == b"\x11\x22\x33\x44"
    words = view.cast("I")
    mapping.revoke()
    assert words[0] == 0
    words[0] = 0xFFFF_FFFF
    assert words[0] == 0xFFFF_FFFF
    assert os.pread(file, 4, PAGE_BYTES) == b"\x11\x22\x33\x44"
    os.close(file)


def test_a_revoked_mapping_does_not_hold_the_file(file: int) -> None:
    mapping = DeviceMapping(file, 0, SIZE)
    view = mapping.take_view()
    name = os.readlink(f"/proc/self/fd/{file}")
    inode = os.fstat(file).st_ino

    def mapped() -> bool:
        with open("/proc/self/maps") as maps:
            return any(line.split()[4] == str(inode) and name.split()[0] in line for line in maps)

    assert mapped()
    mapping.revoke()
    assert not mapped()
    assert len(view) == SIZE
    os.close(file)


def test_the_pages_go_with_the_last_view_and_revoking_later_harms_nobody(file: int) -> None:
    mapping = DeviceMapping(file, 0, SIZE)
    part = mapping.take_view()[PAGE_BYTES:]
    assert mapping.mapped
    del part
    assert not mapping.mapped
    others = [DeviceMapping(file, 0, SIZE) for _ in range(8)]  # likely where the first one was
    views = [other.take_view() for other in others]
    mapping.revoke()
    os.pwrite(file, b"\x5a", 0)
    assert [view[0] for view in views] == [0x5A] * 8
    os.close(file)


def test_the_view_is_taken_once(file: int) -> None:
    mapping = DeviceMapping(file, 0, SIZE)
    view = mapping.take_view()
    with pytest.raises(RuntimeError):
        mapping.take_view()
    assert len(view) == SIZE
    os.close(file)


def test_threads_that_look_while_it_is_revoked_see_one_or_the_other() -> None:
    """The file is cut short after each revocation: a single access to its pages then would be the end (SIGBUS)."""
    stop = threading.Event()
    current: list[memoryview] = []
    wrong: list[int] = []

    def look() -> None:
        while not stop.is_set():
            if current:
                words = current[0].cast("I")
                value = words[17]
                if value not in (0, 0xABCD):
                    wrong.append(value)
                words[33] = 0xABCD

    threads = [threading.Thread(target=look) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(300):
            fd = os.memfd_create("device", os.MFD_CLOEXEC)
            os.pwrite(fd, 0xABCD.to_bytes(4, "little") * (SIZE // 4), 0)
            mapping = DeviceMapping(fd, 0, SIZE)
            current[:] = [mapping.take_view()]
            mapping.revoke()
            os.ftruncate(fd, 0)
            os.close(fd)
    finally:
        stop.set()
        for thread in threads:
            thread.join(PATIENCE_S)
    assert not wrong
