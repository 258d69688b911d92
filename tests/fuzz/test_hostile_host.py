"""A host that does anything at any moment: the device never raises, never hangs, and serves the next client."""

from __future__ import annotations

import contextlib
import os
from typing import Any

import pytest
from hypothesis import strategies as st

from driver_shim.protocol import commands as c
from driver_shim.protocol.registers import BAR0, BAR0_BYTES, BAR2, BAR4, MSIX_PBA_OFFSET, MSIX_TABLE_OFFSET, REGISTERS
from driver_shim.transport.mapping import create_memory_file
from emulator.function.controller import Controller
from emulator.function.queue_pair import QueueState
from emulator.function.regions import CONFIG_REGION
from emulator.host_memory.address_space import DmaFault
from tests.fuzz.device import ADDRESSES, Subject, entries, fuzzed, subject
from tests.support.bus_client import BOTH, MEMORY_BYTES, MEMORY_IOVA, PAGE_BYTES

POINTERS = st.one_of(
    st.integers(0, 40),
    st.sampled_from((0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFF0, 0xFFFF_FFFF)),
    st.integers(0, 0xFFFF_FFFF),
)
OFFSETS = st.one_of(
    st.integers(0, 0x128),
    st.sampled_from([register.offset for register in REGISTERS]),
    st.integers(MSIX_TABLE_OFFSET - 8, MSIX_TABLE_OFFSET + 520),
    st.integers(MSIX_PBA_OFFSET - 8, MSIX_PBA_OFFSET + 16),
    st.integers(0, BAR0_BYTES - 1),
)
QUEUES = st.integers(0, 3)

Action = tuple[str, Any]

ACTIONS: st.SearchStrategy[Action] = st.one_of(
    st.tuples(st.just("config"), st.tuples(st.integers(0, 4095), st.binary(min_size=1, max_size=8))),
    st.tuples(st.just("register"), st.tuples(OFFSETS, st.binary(min_size=1, max_size=16))),
    st.tuples(st.just("look"), st.tuples(OFFSETS, st.integers(1, 64))),
    st.tuples(st.just("aperture"), st.tuples(st.integers(0, (MEMORY_BYTES) - 1), st.binary(min_size=1, max_size=64))),
    st.tuples(st.just("bell"), st.tuples(QUEUES, st.sampled_from((0, 4)), POINTERS)),
    st.tuples(st.just("bells"), st.tuples(st.integers(0, 0x1FFFF), st.binary(min_size=1, max_size=8))),
    st.tuples(st.just("line"), st.tuples(QUEUES, st.integers(0, 2), POINTERS)),
    st.tuples(st.just("entry"), st.tuples(st.integers(0, 2), entries())),
    st.tuples(st.just("scribble"), st.tuples(st.integers(0, 0x8000), st.binary(min_size=1, max_size=64))),
    st.tuples(st.just("map"), st.tuples(ADDRESSES, st.sampled_from(("sealed", "unsealed", "message")), st.booleans())),
    st.tuples(st.just("unmap"), st.integers(0, 8)),
    st.tuples(st.just("unmap everything"), st.none()),
    st.tuples(st.just("reset"), st.sampled_from((c.ResetCause.FLR, c.ResetCause.DEVICE_RESET))),
    st.tuples(st.just("lost"), st.none()),
    st.tuples(st.just("command"), st.sampled_from((0, 2, 4, BOTH))),
    st.tuples(st.just("enable"), st.none()),
    st.tuples(st.just("eventfd"), st.integers(0, 31)),
    st.tuples(st.just("step"), st.none()),
    st.tuples(st.just("sleep"), st.none()),
)


class Remote:
    """A host that answers DMA messages, or does not."""

    def read(self, iova: int, size: int) -> bytes:
        """Zeros for even pages."""
        if iova // PAGE_BYTES & 1:
            raise DmaFault(iova, size, "the host did not answer in time")
        return bytes(size)

    def write(self, iova: int, data: memoryview) -> None:
        """Taken for even pages."""
        if iova // PAGE_BYTES & 1:
            raise DmaFault(iova, len(data), "the host did not answer in time")

    def abort(self) -> None:
        """Nothing is under way."""


class Host:
    """Carries actions out on a device; what they need may be long gone."""

    def __init__(self, device: Subject) -> None:
        self.device = device
        self.function = device.function
        self.bus = device.bus
        self.function.address_space.remote = Remote()
        self.bus.configure_shadows()
        self.queues = [self.bus.admin_queue, self.bus.queue(1), self.bus.queue(2, 8, 4)]
        self.maps: list[tuple[int, int]] = [(MEMORY_IOVA, MEMORY_BYTES)]

    def do(self, what: str, how: Any) -> None:
        """One action."""
        getattr(self, "_" + what.replace(" ", "_"))(how)

    def _config(self, how: tuple[int, bytes]) -> None:
        offset, data = how
        self.function.region_write(CONFIG_REGION, offset, data[: 4096 - offset])
        assert len(self.function.config_read(offset, 4096 - offset)) == 4096 - offset

    def _register(self, how: tuple[int, bytes]) -> None:
        offset, data = how
        self.function.region_write(BAR0, offset, data[: BAR0_BYTES - offset])

    def _look(self, how: tuple[int, int]) -> None:
        offset, size = how[0], min(how[1], BAR0_BYTES - how[0])
        assert len(self.function.region_read(BAR0, offset, size)) == size

    def _aperture(self, how: tuple[int, bytes]) -> None:
        offset, data = how[0], how[1][: (MEMORY_BYTES) - how[0]]
        self.function.region_write(BAR4, offset, data)
        assert len(self.function.region_read(BAR4, offset, len(data))) == len(data)

    def _bell(self, how: tuple[int, int, int]) -> None:
        self.function.region_write(BAR2, how[0] * 4096 + how[1], how[2].to_bytes(4, "little"))

    def _bells(self, how: tuple[int, bytes]) -> None:
        data = how[1][: 0x20000 - how[0]]
        self.function.region_write(BAR2, how[0], data)
        assert self.function.region_read(BAR2, how[0], len(data)) in (bytes(len(data)), b"\xff" * len(data))

    def _line(self, how: tuple[int, int, int]) -> None:
        assert self.bus.shadows is not None
        at = self.bus.shadows[0] + how[0] * c.LINE_BYTES
        self.bus.at(at, c.LINE_BYTES).cast("I")[how[1]] = how[2]

    def _entry(self, how: tuple[int, bytes]) -> None:
        queue = self.queues[how[0]]
        assert queue is not None
        queue.put(how[1])
        queue.ring()

    def _scribble(self, how: tuple[int, bytes]) -> None:
        self.bus.memory[how[0] : how[0] + len(how[1])] = how[1]

    def _map(self, how: tuple[int, str, bool]) -> None:
        address, kind, writable = how
        fd: int | None = None
        if kind == "sealed":
            fd = create_memory_file(0x4000)
        elif kind == "unsealed":
            fd = self.bus.unsealed_file(0x4000)
        with contextlib.suppress(OSError):
            iova = address & ~(PAGE_BYTES - 1)
            self.function.address_space.map(iova, 0x4000, fd=fd, offset=0, readable=True, writable=writable)
            self.maps.append((iova, 0x4000))
        if kind == "sealed" and fd is not None:
            os.close(fd)

    def _unmap(self, which: int) -> None:
        if self.maps:
            iova, size = self.maps.pop(which % len(self.maps))
            with contextlib.suppress(OSError):
                self.function.address_space.unmap(iova, size)

    def _unmap_everything(self, _: None) -> None:
        self.maps.clear()
        self.function.address_space.unmap_all()

    def _reset(self, cause: c.ResetCause) -> None:
        self.function.reset(cause)

    def _lost(self, _: None) -> None:
        self.function.client_lost()
        self.maps.clear()

    def _command(self, value: int) -> None:
        self.function.config_write(4, value.to_bytes(2, "little"))

    def _enable(self, _: None) -> None:
        self._command(BOTH)
        if not self.maps:
            self.function.address_space.map(
                MEMORY_IOVA, MEMORY_BYTES, fd=self.bus.file, offset=0, readable=True, writable=True
            )
            self.maps.append((MEMORY_IOVA, MEMORY_BYTES))
        admin = self.queues[0]
        assert admin is not None
        for name, value in (
            ("admin_queue_size", admin.entries | admin.completion_entries << 16),
            ("admin_submission_base", admin.submission_iova),
            ("admin_completion_base", admin.completion_iova),
            ("control", 1),
        ):
            register = REGISTERS[name]
            self.function.region_write(BAR0, register.offset, value.to_bytes(register.size, "little"))

    def _eventfd(self, vector: int) -> None:
        self.function.interrupts.connect(vector, os.eventfd(0, os.EFD_CLOEXEC))

    def _step(self, _: None) -> None:
        self.function.step()

    def _sleep(self, _: None) -> None:
        self.device.steps()


@fuzzed(125, actions=st.lists(ACTIONS, max_size=40))
def test_anything_at_any_moment(actions: list[Action]) -> None:
    with subject() as device:
        host = Host(device)
        for what, how in actions:
            host.do(what, how)
        device.steps()
        device.serves_on()


@fuzzed(
    75,
    accesses=st.lists(
        st.tuples(st.booleans(), OFFSETS, st.integers(1, 16), st.integers(0, (1 << 128) - 1)), max_size=40
    ),
)
def test_register_accesses(accesses: list[tuple[bool, int, int, int]]) -> None:
    with subject() as device:
        function = device.function
        for write, offset, wanted, value in accesses:
            size = min(wanted, BAR0_BYTES - offset)
            if write:
                function.region_write(BAR0, offset, value.to_bytes(16, "little")[:size])
            else:
                assert len(function.region_read(BAR0, offset, size)) == size
            function.step()
        identity = function.region_read(BAR0, 0, 4)
        assert identity == b"1NPU"
        device.serves_on()


@fuzzed(75, writes=st.lists(st.tuples(st.integers(0, 4095), st.binary(min_size=1, max_size=16)), max_size=30))
def test_config_writes(writes: list[tuple[int, bytes]]) -> None:
    with subject() as device:
        function = device.function
        fixed = function.config_read(0, 4)
        for offset, data in writes:
            function.config_write(offset, data)
            function.step()
            assert function.config_read(0, 4) == fixed
            assert len(function.region_read(BAR0, 0, 4)) == 4
        device.serves_on()


@fuzzed(75, pointers=st.lists(st.tuples(QUEUES, st.integers(0, 2), POINTERS, st.booleans()), min_size=1, max_size=20))
def test_pointers(pointers: list[tuple[int, int, int, bool]]) -> None:
    """A queue with a pointer out of range halts with a record; one whose pointers stayed in range still serves."""
    with subject() as device:
        host = Host(device)
        for queue, word, value, bell in pointers:
            if bell:
                host._bell((queue, 4 * (word & 1), value))
            else:
                host._line((queue, word, value))
            device.function.step()
        device.steps()
        controller = device.function.controller
        halted = [key for key, queue in controller.queues.by_id.items() if queue.state is QueueState.HALTED]
        if halted or controller.fatal:
            assert device.function.chip.errors.fault_bits & REGISTERS["fault_status"].fields["queue"].mask
        device.serves_on()


def test_a_planted_bug_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that does not halt a queue whose pointers are wrong is at work for ever: the search sees that."""
    monkeypatch.setattr(Controller, "_halt", lambda *_: None)
    with pytest.raises(pytest.fail.Exception, match="still at work"):
        test_pointers(slow=False)
