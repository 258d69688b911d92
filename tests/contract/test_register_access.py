"""Every register × access × width, from the declaration alone: legal accesses work, all others read zeros and count."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import pytest

from driver_shim.protocol.commands import FaultSource
from driver_shim.protocol.register_kinds import Access, Register
from driver_shim.protocol.registers import (
    BAR0,
    BAR0_BYTES,
    CONSOLE_WINDOW_BYTES,
    CONSOLE_WINDOW_OFFSET,
    MSIX_PBA_OFFSET,
    MSIX_TABLE_OFFSET,
    REGISTERS,
    Post,
)
from tests.support.bus_client import BusClient, text
from tests.support.coverage import CaseTable

WIDTHS = (1, 2, 4, 8)
BLOCK_BYTES = 0x20
BLOCKS = sorted({at - at % BLOCK_BYTES for r in REGISTERS for at in (r.offset, r.offset + r.size - 1)})
"""Every stretch of BAR0 that holds a register."""
SAMPLES = (0x120, 0x1FC, 0x220, 0x600, 0x1000, 0x1FF8, 0x3000, 0x4004, 0x7FF0, 0x7FF8)
"""Offsets where nothing is, below the MSI-X table."""
MAILBOX_DATA = {register.name for register in REGISTERS if register.name.startswith("mailbox_data_")}
FIRMWARE_DRIVEN = {
    *("boot_progress", "firmware_version", "firmware_build_id", "console_written", "console_room"),
    *("sensor_temperature", "sensor_power", "sensor_voltage", "sensor_age"),
}
"""Change between two reads while the management core boots and runs."""
SIDE_EFFECTS = {
    *("control", "clock_snapshot", "counter_snapshot", "core_control", "mailbox_control", "console_input"),
    *MAILBOX_DATA,
}
"""Written by tests of their own: what a write does there is more than storing."""


class Case(NamedTuple):
    """One access; `legal` is derived from the declaration."""

    verb: str
    offset: int
    width: int
    register: str | None
    legal: bool


def _declared(offset: int) -> Register | None:
    return next((r for r in REGISTERS if r.offset <= offset < r.offset + r.size), None)


def _cases(offset: int) -> list[Case]:
    register = _declared(offset)
    cases = []
    for width in WIDTHS:
        legal = register is not None and (
            (offset == register.offset and width == register.size)
            or (register.size == 8 and width == 4 and offset in (register.offset, register.offset + 4))
        )
        for verb in ("read", "write"):
            cases.append(Case(verb, offset, width, register.name if register else None, legal))
    return cases


ALL_CASES = [
    case
    for offset in (*(at for block in BLOCKS for at in range(block, block + BLOCK_BYTES)), *SAMPLES)
    for case in _cases(offset)
]
TABLE = CaseTable(ALL_CASES)


def test_the_table_has_every_register_both_ways_in_every_width() -> None:
    for register in REGISTERS:
        own = [case for case in ALL_CASES if case.register == register.name]
        assert {(case.verb, case.width, case.offset - register.offset) for case in own} == {
            (verb, width, at) for verb in ("read", "write") for width in WIDTHS for at in range(register.size)
        }
        assert sum(case.legal for case in own) == (2 if register.size == 4 else 6)


each_block = pytest.mark.parametrize("block", BLOCKS, ids=hex)
natural_or_not = pytest.mark.parametrize("aligned", [True, False], ids=["aligned", "misaligned"])


def faults(bus: BusClient) -> int:
    return bus.registers.fault_count.read()


@each_block
@natural_or_not
def test_reads(bus: BusClient, block: int, aligned: bool) -> None:
    check_reads(bus, range(block, block + BLOCK_BYTES), aligned)


@natural_or_not
def test_reads_of_samples_elsewhere(bus: BusClient, aligned: bool) -> None:
    check_reads(bus, SAMPLES, aligned)


def cases_of(verb: str, offsets: range | tuple[int, ...], aligned: bool) -> Iterator[Case]:
    """The table's accesses at these offsets, those that are naturally aligned or the others."""
    for case in (case for offset in offsets for case in _cases(offset)):
        if case.verb == verb and (case.offset % case.width == 0) == aligned:
            yield case


def check_reads(bus: BusClient, offsets: range | tuple[int, ...], aligned: bool) -> None:
    before = faults(bus)
    for case in cases_of("read", offsets, aligned):
        value = bus.transport.read(BAR0, case.offset, case.width)
        after = faults(bus)
        if case.legal:
            assert after == before, case
            if case.register not in FIRMWARE_DRIVEN:
                assert value == expected_value(bus, case), case
        else:
            assert (value, after) == (0, before + 1), case
            assert bus.registers.fault_status.register == 1
            assert bus.registers.fault_address.read() == case.offset
        before = after
        TABLE.reach(case)


def expected_value(bus: BusClient, case: Case) -> int:
    """The register as a whole read gives it now, or the half of it that was asked for."""
    register = REGISTERS[case.register or ""]
    whole = bus.registers[register.name].read()
    return whole if case.width == register.size else whole >> 8 * (case.offset - register.offset) & 0xFFFF_FFFF


@each_block
@natural_or_not
def test_wrong_writes_are_ignored_and_counted(bus: BusClient, block: int, aligned: bool) -> None:
    check_wrong_writes(bus, range(block, block + BLOCK_BYTES), aligned)


@natural_or_not
def test_wrong_writes_of_samples_elsewhere(bus: BusClient, aligned: bool) -> None:
    check_wrong_writes(bus, SAMPLES, aligned)


def check_wrong_writes(bus: BusClient, offsets: range | tuple[int, ...], aligned: bool) -> None:
    stable = {name: bus.registers[name].read() for name in STABLE}
    before = faults(bus)
    for case in cases_of("write", offsets, aligned):
        if case.legal:
            continue
        bus.transport.write(BAR0, case.offset, (1 << 8 * case.width) - 1, case.width)
        after = faults(bus)
        assert after == before + 1, case
        assert bus.registers.fault_address.read() == case.offset
        before = after
        TABLE.reach(case)
    assert {name: bus.registers[name].read() for name in STABLE} == stable


VOLATILE = {"fault_status", "fault_count", "fault_address", *FIRMWARE_DRIVEN}
STABLE = [register.name for register in REGISTERS if register.name not in VOLATILE]
"""Registers that an idle device with a disabled controller does not change by itself, nor its firmware."""


@pytest.mark.parametrize(
    ("name", "halves"),
    [(r.name, halves) for r in REGISTERS if r.name not in SIDE_EFFECTS for halves in (False, True)[: r.size // 4]],
)
def test_legal_writes_follow_the_access_of_each_field(bus: BusClient, name: str, halves: bool) -> None:
    register = REGISTERS[name]
    access = bus.registers[name]
    stored = register.mask_of(Access.RW)
    cleared = register.mask_of(Access.RW1C)
    for value in (register.declared_mask, 0, 0xA5A5_5A5A_1234_8765 & register.declared_mask):
        before, count = access.read(), faults(bus)
        if halves:
            for at in (0, 4):
                bus.transport.write(BAR0, register.offset + at, value >> 8 * at & 0xFFFF_FFFF, 4)
                TABLE.reach(Case("write", register.offset + at, 4, name, True))
        else:
            access.write_value(value)
            TABLE.reach(Case("write", register.offset, register.size, name, True))
        expected = before & ~(stored | cleared) | value & stored | before & cleared & ~value
        if name not in FIRMWARE_DRIVEN:
            assert access.read() == expected
        assert faults(bus) == count


@pytest.mark.parametrize("name", [r.name for r in REGISTERS if r.declared_mask != (1 << 8 * r.size) - 1])
def test_writes_that_set_reserved_bits_are_ignored_whole_and_counted(bus: BusClient, name: str) -> None:
    register = REGISTERS[name]
    reserved = ((1 << 8 * register.size) - 1) & ~register.declared_mask
    lowest = reserved & -reserved
    for value in (reserved, lowest | register.declared_mask, lowest):
        before, count = bus.registers[name].read(), faults(bus)
        bus.transport.write(BAR0, register.offset, value, register.size)
        assert faults(bus) == count + 1
        if name not in VOLATILE:
            assert bus.registers[name].read() == before
    assert bus.registers.fault_address.read() == register.offset


def test_the_mailbox_window_takes_whole_and_half_writes(bus: BusClient) -> None:
    there = bus.registers.boot_progress.post_code != Post.ABSENT
    for name in MAILBOX_DATA:
        register = REGISTERS[name]
        count = faults(bus)
        bus.registers[name].write(value=0x1122_3344_5566_7788)
        TABLE.reach(Case("write", register.offset, 8, name, True))
        assert bus.registers[name].read() == (0x1122_3344_5566_7788 if there else 0)
        for at, half in ((0, 0xAABB_CCDD), (4, 0x0102_0304)):
            bus.transport.write(BAR0, register.offset + at, half, 4)
            TABLE.reach(Case("write", register.offset + at, 4, name, True))
        assert bus.registers[name].read() == (0x0102_0304_AABB_CCDD if there else 0)
        assert faults(bus) == count


@pytest.mark.parametrize("name", ["core_control", "mailbox_control", "console_input"])
def test_writing_zero_to_the_management_core_asks_for_nothing(bus: BusClient, name: str) -> None:
    count = faults(bus)
    bus.registers[name].write_value(0)
    TABLE.reach(Case("write", REGISTERS[name].offset, 4, name, True))
    assert bus.registers[name].read() == 0
    assert faults(bus) == count


def test_the_console_window_takes_reads_of_words_only(bus: BusClient) -> None:
    count = faults(bus)
    for width in (4, 8):
        for at in (0, width, CONSOLE_WINDOW_BYTES - width):
            bus.transport.read(BAR0, CONSOLE_WINDOW_OFFSET + at, width)
    assert faults(bus) == count
    assert bus.transport.read(BAR0, CONSOLE_WINDOW_OFFSET, 2) == 0
    bus.transport.write(BAR0, CONSOLE_WINDOW_OFFSET, 0, 4)
    assert faults(bus) == count + 2


def test_the_console_window_takes_no_misaligned_reads(bus: BusClient) -> None:
    count = faults(bus)
    assert bus.transport.read(BAR0, CONSOLE_WINDOW_OFFSET + 4, 8) == 0
    assert faults(bus) == count + 1


@pytest.mark.parametrize("name", ["clock_snapshot", "counter_snapshot"])
def test_write_one_to_start_reads_zero_and_zero_does_nothing(bus: BusClient, name: str) -> None:
    shown = "tick_snapshot" if name == "clock_snapshot" else "commands_completed"
    bus.registers[name].write(take=1)
    TABLE.reach(Case("write", REGISTERS[name].offset, 4, name, True))
    assert bus.registers[name].read() == 0
    taken = bus.registers[shown].read()
    bus.registers[name].write(take=0)
    assert bus.registers[shown].read() == taken


def test_control_reads_what_was_written(bus: BusClient) -> None:
    bus.enable()
    TABLE.reach(Case("write", REGISTERS["control"].offset, 4, "control", True))
    assert bus.registers.control.fields() == {"enable": 1}
    bus.disable()
    assert bus.registers.control.fields() == {"enable": 0}


def test_rw1c_bits_clear_one_by_one(bus: BusClient) -> None:
    access = bus.registers.fault_status
    access.write_value(REGISTERS["fault_status"].declared_mask)
    assert access.read() == 0
    bus.transport.read(BAR0, 0x1002, 2)
    seen = access.fields()
    assert seen["register"] == 1
    access.write(command=1)
    assert access.fields() == seen
    access.write(register=1)
    assert access.fields() == {**seen, "register": 0}


def test_low_first_latches_the_high_half_for_reads(bus: BusClient) -> None:
    bus.registers.scratch_wide.write(value=0x1111_1111_2222_2222)
    offset = REGISTERS["scratch_wide"].offset
    assert bus.transport.read(BAR0, offset, 4) == 0x2222_2222
    bus.registers.scratch_wide.write(value=0x3333_3333_4444_4444)
    assert bus.transport.read(BAR0, offset + 4, 4) == 0x1111_1111  # as it was when the low half was read
    assert bus.transport.read(BAR0, offset + 4, 4) == 0x3333_3333  # nothing latched any more


def test_a_write_by_halves_takes_effect_with_the_high_one(bus: BusClient) -> None:
    offset = REGISTERS["scratch_wide"].offset
    bus.registers.scratch_wide.write(value=0x1111_1111_2222_2222)
    bus.transport.write(BAR0, offset, 0x4444_4444, 4)
    assert bus.registers.scratch_wide.read() == 0x1111_1111_2222_2222
    bus.transport.write(BAR0, offset + 4, 0x3333_3333, 4)
    assert bus.registers.scratch_wide.read() == 0x3333_3333_4444_4444
    bus.transport.write(BAR0, offset + 4, 0x5555_5555, 4)  # the high half alone keeps the low one
    assert bus.registers.scratch_wide.read() == 0x5555_5555_4444_4444


def test_a_whole_write_forgets_a_half_that_was_never_completed(bus: BusClient) -> None:
    offset = REGISTERS["scratch_wide"].offset
    bus.transport.write(BAR0, offset, 0x4444_4444, 4)
    bus.registers.scratch_wide.write(value=0x1111_1111_2222_2222)
    bus.transport.write(BAR0, offset + 4, 0x3333_3333, 4)
    assert bus.registers.scratch_wide.read() == 0x3333_3333_2222_2222


def test_wrong_accesses_are_in_the_error_log(bus: BusClient) -> None:
    bus.enable()
    bus.transport.read(BAR0, 0x0A2, 2)
    entry = bus.newest_error()
    assert (entry.source, entry.address, entry.count) == (FaultSource.REGISTER, 0x0A2, 1)
    assert "read of 2 bytes at 0xa2; scratch takes 4" in text(entry)
    for _ in range(5):
        bus.transport.write(BAR0, 0x018, 0x8000_0001, 4)
    entry = bus.newest_error()
    assert (entry.address, entry.count) == (0x018, 5)  # the same misuse again and again is one entry
    assert "sets reserved bits of control" in text(entry)
    assert bus.registers.control.enable == 1


def test_the_msix_table_and_pending_bits_have_pages_of_their_own(bus: BusClient) -> None:
    before = faults(bus)
    assert bus.transport.read(BAR0, MSIX_TABLE_OFFSET + 12, 4) == 1  # masked after reset
    bus.transport.write(BAR0, MSIX_TABLE_OFFSET, 0xFEE0_0000, 4)
    assert bus.transport.read(BAR0, MSIX_TABLE_OFFSET, 4) == 0xFEE0_0000
    assert bus.transport.read(BAR0, MSIX_PBA_OFFSET, 8) == 0
    assert bus.transport.read(BAR0, BAR0_BYTES - 4, 4) == 0
    assert faults(bus) == before
    bus.transport.write(BAR0, MSIX_PBA_OFFSET, 1, 4)
    assert bus.transport.read(BAR0, MSIX_PBA_OFFSET, 4) == 0
    assert faults(bus) == before + 1


def test_no_case_of_the_table_is_left_out(request: pytest.FixtureRequest) -> None:
    TABLE.check_all_reached(request)
