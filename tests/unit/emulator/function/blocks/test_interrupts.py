"""MSI-X vectors: delivered once, or pending until they can be."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emulator.function.blocks.interrupts import Interrupts

VECTORS = 32
FULL_COUNTER = (1 << 64) - 2


class Setup:
    """Interrupts with a switchable bus master and a record of what was blocked."""

    def __init__(self) -> None:
        self.bus_master = True
        self.blocked: list[int] = []
        self.interrupts = Interrupts(VECTORS, lambda: self.bus_master, self.blocked.append)
        self.readers: list[int] = []

    def connect(self, vector: int) -> int:
        """Connect a new eventfd and return the reader's end of it."""
        reader = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.readers.append(reader)
        self.interrupts.connect(vector, os.dup(reader))
        return reader


@pytest.fixture
def setup() -> Iterator[Setup]:
    setup = Setup()
    yield setup
    setup.interrupts.close()
    for reader in setup.readers:
        os.close(reader)


def signals(reader: int) -> int:
    """How often the eventfd was signalled since the last look."""
    try:
        return os.eventfd_read(reader)
    except BlockingIOError:
        return 0


def pending(interrupts: Interrupts, vector: int) -> bool:
    """Whether the vector waits for being delivered, as the host reads it."""
    return bool(interrupts.pba_read(0, VECTORS // 8)[vector // 8] >> vector % 8 & 1)


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def test_connected_vector_is_signalled(setup: Setup) -> None:
    first, second = setup.connect(0), setup.connect(31)
    setup.interrupts.trigger(31)
    setup.interrupts.trigger(31)
    assert (signals(first), signals(second)) == (0, 2)
    assert setup.interrupts.pba_read(0, 8) == bytes(8)


def test_a_full_counter_never_blocks_the_device_even_when_the_client_asks_for_it(setup: Setup) -> None:
    reader = setup.connect(5)
    os.eventfd_write(reader, FULL_COUNTER)
    os.set_blocking(reader, True)  # the client shares the description, and so its flags
    setup.interrupts.trigger(5)
    assert os.eventfd_read(reader) == FULL_COUNTER


def test_masked_vector_fires_once_when_unmasked(setup: Setup) -> None:
    reader = setup.connect(9)
    setup.interrupts.mask(9)
    setup.interrupts.trigger(9)
    setup.interrupts.trigger(9)
    assert signals(reader) == 0
    assert pending(setup.interrupts, 9)
    assert setup.interrupts.pba_read(0, 8) == bytes.fromhex("0002000000000000")
    setup.interrupts.unmask(9)
    assert signals(reader) == 1
    setup.interrupts.unmask(9)
    assert signals(reader) == 0
    assert setup.interrupts.pba_read(1, 1) == b"\0"


def test_unconnected_vector_fires_when_connected(setup: Setup) -> None:
    setup.interrupts.trigger(3)
    assert pending(setup.interrupts, 3)
    assert signals(setup.connect(3)) == 1


def test_without_bus_mastering_it_is_recorded_and_pending(setup: Setup) -> None:
    reader = setup.connect(2)
    setup.bus_master = False
    setup.interrupts.trigger(2)
    setup.interrupts.unmask(2)
    assert signals(reader) == 0
    assert setup.blocked == [2]
    setup.bus_master = True
    setup.interrupts.deliver_pending()
    setup.interrupts.deliver_pending()
    assert signals(reader) == 1


def test_replaced_and_disconnected_eventfds_are_closed(setup: Setup) -> None:
    fds = [os.eventfd(0, os.EFD_CLOEXEC) for _ in range(2)]
    setup.interrupts.connect(0, fds[0])
    setup.interrupts.connect(0, fds[1])
    assert [is_open(fd) for fd in fds] == [False, True]
    setup.interrupts.connect(0, None)
    assert not is_open(fds[1])


def test_reset_keeps_eventfds_and_masks_and_forgets_pending(setup: Setup) -> None:
    reader = setup.connect(1)
    setup.interrupts.mask(1)
    setup.interrupts.trigger(1)
    setup.interrupts.reset()
    setup.interrupts.unmask(1)
    assert signals(reader) == 0
    setup.interrupts.trigger(1)
    assert signals(reader) == 1


def test_lost_client_leaves_nothing(setup: Setup) -> None:
    reader = setup.connect(1)
    setup.interrupts.mask(1)
    setup.interrupts.trigger(1)
    setup.interrupts.disconnect_all()
    again = setup.connect(1)
    assert signals(again) == 0
    setup.interrupts.trigger(1)
    assert (signals(reader), signals(again)) == (0, 1)


def test_full_counter_blocks_nobody(setup: Setup) -> None:
    reader = os.eventfd(0, os.EFD_CLOEXEC)
    setup.readers.append(reader)
    setup.interrupts.connect(0, os.dup(reader))
    os.eventfd_write(reader, FULL_COUNTER)
    setup.interrupts.trigger(0)
    assert os.eventfd_read(reader) == FULL_COUNTER


def test_only_eventfds_are_taken_and_others_closed(setup: Setup) -> None:
    reader, writer = os.pipe()
    with pytest.raises(OSError, match="eventfd") as caught:
        setup.interrupts.connect(0, writer)
    assert caught.value.errno == errno.EINVAL
    assert not is_open(writer)
    os.close(reader)


@pytest.mark.parametrize("vector", [-1, VECTORS])
def test_vectors_that_do_not_exist_are_refused(setup: Setup, vector: int) -> None:
    eventfd = os.eventfd(0, os.EFD_CLOEXEC)
    operations: list[Callable[[], None]] = [
        lambda: setup.interrupts.connect(vector, eventfd),
        lambda: setup.interrupts.connect(vector, None),
        lambda: setup.interrupts.mask(vector),
        lambda: setup.interrupts.unmask(vector),
    ]
    for operation in operations:
        with pytest.raises(OSError, match="there are 32"):
            operation()
    assert not is_open(eventfd)


def test_table_is_storage_without_reserved_bits(setup: Setup) -> None:
    interrupts = setup.interrupts
    assert interrupts.table_read(0, 16) == bytes.fromhex("00000000 00000000 00000000 01000000")
    interrupts.table_write(0x1F0, b"\xff" * 16)
    assert interrupts.table_read(0x1F0, 16) == bytes.fromhex("fcffffff ffffffff ffffffff 01000000")
    interrupts.table_write(0x1FC, b"\0")
    assert interrupts.table_read(0x1FC, 4) == bytes(4)
    interrupts.table_write(0x1FE, b"\xff" * 8)
    assert interrupts.table_read(0x1FC, 8) == bytes(8)
    interrupts.reset()
    assert interrupts.table_read(0x1F0, 16) == bytes.fromhex("00000000 00000000 00000000 01000000")


def test_masks_of_the_table_do_not_hold_deliveries_back(setup: Setup) -> None:
    reader = setup.connect(0)
    setup.interrupts.table_write(12, b"\x01")
    setup.interrupts.trigger(0)
    assert signals(reader) == 1


def test_close_is_idempotent_and_closes(setup: Setup) -> None:
    eventfd = os.eventfd(0, os.EFD_CLOEXEC)
    setup.interrupts.connect(0, eventfd)
    setup.interrupts.close()
    setup.interrupts.close()
    assert not is_open(eventfd)


@given(st.lists(st.tuples(st.integers(0, 0x4000), st.binary(max_size=40)), max_size=20))
def test_random_table_accesses_never_raise(accesses: list[tuple[int, bytes]]) -> None:
    interrupts = Interrupts(VECTORS, lambda: True, lambda _: None)
    for offset, data in accesses:
        interrupts.table_write(offset, data)
        assert len(interrupts.table_read(offset, len(data))) == len(data)
        assert len(interrupts.pba_read(offset, len(data))) == len(data)
    table = interrupts.table_read(0, 16 * VECTORS + 16)
    assert table[-16:] == bytes(16)
    for vector in range(VECTORS):
        entry = table[16 * vector : 16 * vector + 16]
        assert entry[0] & 3 == 0
        assert entry[12] & ~1 == 0
        assert entry[13:] == bytes(3)


@given(
    st.lists(
        st.tuples(st.sampled_from(["trigger", "mask", "unmask", "bus", "deliver_pending", "reset"]), st.integers(0, 1)),
        max_size=40,
    )
)
def test_nothing_is_signalled_while_held_back_and_nothing_is_lost(steps: list[tuple[str, int]]) -> None:
    """Against a model: per vector whether it is masked and whether a trigger still waits."""
    setup = Setup()
    readers = [setup.connect(vector) for vector in range(2)]
    masked, waiting = [False, False], [False, False]
    try:
        for step, vector in steps:
            expected = [0, 0]
            if step == "bus":
                setup.bus_master = bool(vector)
                continue
            takes_vector = step in ("trigger", "mask", "unmask")
            getattr(setup.interrupts, step)(*[vector] * takes_vector)
            if step == "reset":
                waiting = [False, False]
            elif step in ("mask", "unmask"):
                masked[vector] = step == "mask"
            elif step == "trigger":
                delivered = setup.bus_master and not masked[vector]
                expected[vector] = int(delivered)
                waiting[vector] = waiting[vector] or not delivered
            for each in {"unmask": [vector], "deliver_pending": [0, 1]}.get(step, []):
                if waiting[each] and setup.bus_master and not masked[each]:
                    waiting[each] = False
                    expected[each] += 1
            assert [signals(reader) for reader in readers] == expected
            assert [pending(setup.interrupts, each) for each in range(2)] == waiting
    finally:
        setup.interrupts.close()
        for reader in setup.readers:
            os.close(reader)
