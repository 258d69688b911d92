"""ELF files for the management core, good and hostile, and runs of them."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from driver_shim.protocol.elf import BadSegment, ElfError, ElfTooLarge, NotAnElf, TruncatedElf, WrongTarget
from emulator.management.riscv import executable as programs
from emulator.management.riscv.board import default_board
from emulator.management.riscv.executable import Executable, Segment, Symbols, parse_executable
from emulator.management.riscv.machine import StopReason
from tests.support.elf import ElfFile
from tests.support.riscv import (
    NOTHING,
    POWER_OFF,
    RAM,
    UART,
    WFI,
    addi,
    code,
    csrr,
    j,
    lbu,
    li,
    lw,
    sb,
    sw,
)
from tests.support.standalone_core import StandaloneRun, load_elf, run_elf

HELLO = code(*li(5, UART), addi(6, 0, 0x48), sb(6, 5), *li(5, POWER_OFF), *li(6, 0x0003_3333), sw(6, 5))
GOOD = ElfFile(((RAM, HELLO, len(HELLO)),), symbols=(("main", RAM), ("exit", RAM + 16)))
SECONDS = 10_000_000


def test_program_runs_to_its_power_off(tmp_path: Path) -> None:
    path = tmp_path / "hello.elf"
    path.write_bytes(GOOD.build())
    output, stop = run_elf(path, timeout_ticks=SECONDS)
    assert (output, stop.reason, stop.exit_code) == (b"H", StopReason.POWER_OFF, 3)


def test_segments_are_loaded_and_their_rest_is_zeroed() -> None:
    program = parse_executable(ElfFile(((RAM, HELLO, len(HELLO)), (RAM + 0x2000, b"data", 12))).build())
    with StandaloneRun(program, default_board(), lambda _data: None) as run:
        run.machine.load_memory(RAM + 0x2000, b"x" * 16)
        program.load(run.machine.memories, run.machine.load_memory)
        assert run.machine.read_memory(RAM + 0x2000, 16) == b"data" + bytes(8) + b"xxxx"
        assert (run.machine.hart.pc, run.machine.hart.read_register(10)) == (RAM, 0)


@pytest.mark.parametrize(
    ("pc", "place"), [(RAM, "main"), (RAM + 4, "main+0x4"), (RAM + 20, "exit+0x4"), (RAM - 1, ""), (0, "")]
)
def test_symbols_name_places(pc: int, place: str) -> None:
    assert parse_executable(GOOD.build()).symbols.place(pc) == place


def test_fault_is_reported_with_its_symbol(caplog: pytest.LogCaptureFixture) -> None:
    program = code(*li(5, NOTHING), lw(6, 5), WFI)
    data = ElfFile(((RAM, program, len(program)),), symbols=(("probe", RAM),)).build()
    with StandaloneRun(parse_executable(data), default_board(), lambda _data: None) as run:
        run.step(3)
    assert "by pc 0x80000008 probe+0x8: nothing is there" in caplog.text


def test_serial_input_waits_for_room() -> None:
    program = code(
        *li(5, UART),
        lbu(6, 5, 5),
        0x00137313,  # andi x6, x6, 1
        0xFE030CE3,  # beqz x6, . - 8
        lbu(7, 5),
        sb(7, 5),
        j(-20),
    )
    sent = bytearray()
    data = ElfFile(((RAM, program, len(program)),)).build()
    with StandaloneRun(parse_executable(data), default_board(), sent.extend) as run:
        run.send(b"abc")
        assert run.unsent == 3
        for _ in range(5):
            run.step(5_000)
        assert (run.unsent, bytes(sent)) == (0, b"abc")


def test_run_ends_when_nothing_can_end_the_wait(tmp_path: Path) -> None:
    path = tmp_path / "wait.elf"
    path.write_bytes(ElfFile(((RAM, code(WFI), 4),)).build())
    assert run_elf(path, timeout_ticks=SECONDS)[1].reason is StopReason.WAITING


def test_run_ends_at_its_time_limit(tmp_path: Path) -> None:
    path = tmp_path / "loop.elf"
    path.write_bytes(ElfFile(((RAM, code(0x6F), 4),)).build())
    assert run_elf(path, timeout_ticks=1000)[1].reason is StopReason.RUNNING


def test_reset_by_the_program_starts_it_again(tmp_path: Path) -> None:
    program = code(*li(5, UART), addi(6, 0, 0x52), sb(6, 5), *li(5, POWER_OFF), *li(6, 0x7777), sw(6, 5))
    path = tmp_path / "reset.elf"
    path.write_bytes(ElfFile(((RAM, program, len(program)),)).build())
    sent = bytearray()
    with load_elf(path, sent.extend) as run:
        for _ in range(3):
            assert run.step().reason is StopReason.RUNNING
    assert sent == b"RRR"


def mend(**fields: object) -> bytes:
    """The good file with other fields."""
    return ElfFile(**{**vars(GOOD), **fields}).build()


def patched(offset: int, layout: str, value: int) -> bytes:
    """The good file with one number changed."""
    data = bytearray(GOOD.build())
    struct.pack_into(layout, data, offset, value)
    return bytes(data)


SEGMENT_AT = 52
SECTION_TABLE = 32
SECTIONS = struct.unpack_from("<I", GOOD.build(), SECTION_TABLE)[0]


@pytest.mark.parametrize(
    ("data", "kind", "message"),
    [
        pytest.param(b"", NotAnElf, "begins with nothing", id="empty"),
        pytest.param(b"#!/bin/sh\n", NotAnElf, "begins with 23 21 2f 62", id="script"),
        pytest.param(GOOD.build()[:40], TruncatedElf, "has 40 bytes; an ELF header alone has 52", id="short"),
        pytest.param(mend(elf_class=2), WrongTarget, "64-bit machines; the core has 32 bits", id="64 bits"),
        pytest.param(mend(elf_class=9), NotAnElf, "EI_CLASS", id="no class"),
        pytest.param(mend(data=2), WrongTarget, "big-endian", id="big-endian"),
        pytest.param(mend(data=0), NotAnElf, "EI_DATA", id="no endianness"),
        pytest.param(mend(machine=40), WrongTarget, "machine EM_ARM; the core is EM_RISCV", id="ARM"),
        pytest.param(mend(machine=60000), WrongTarget, "machine 60000", id="unknown machine"),
        pytest.param(mend(kind=1), WrongTarget, "ET_REL; only ET_EXEC", id="object file"),
        pytest.param(mend(kind=3), WrongTarget, "ET_DYN; only ET_EXEC", id="shared object"),
        pytest.param(mend(entry=RAM + 1), WrongTarget, "entry 0x80000001 is odd", id="odd entry"),
        pytest.param(mend(segments=()), BadSegment, "no segment that is to be loaded", id="no segment"),
        pytest.param(mend(segments=((RAM, b"", 0),)), BadSegment, "no segment", id="only empty segments"),
        pytest.param(mend(segments=((RAM, b"abcd", 4), (RAM + 2, b"abcd", 4))), BadSegment, "overlap", id="overlap"),
        pytest.param(mend(segments=((RAM, b"abcd", 2),)), BadSegment, "more than its 0x2", id="memsz < filesz"),
        pytest.param(mend(segments=((0xFFFF_F000, b"", 0x1001),)), BadSegment, "behind the 32-bit", id="address wraps"),
        pytest.param(mend(segment_entry_bytes=16), WrongTarget, "header has 16 bytes", id="small header"),
        pytest.param(patched(44, "<H", 65535), ElfTooLarge, "65535 segments; at most 128", id="many segments"),
        pytest.param(patched(48, "<H", 65535), ElfTooLarge, "65535 sections", id="many sections"),
        pytest.param(patched(28, "<I", 0xFFFF_FFF0), TruncatedElf, "segment headers end", id="far headers"),
        pytest.param(patched(32, "<I", 0xFFFF_FFF0), TruncatedElf, "section headers end", id="far sections"),
        pytest.param(patched(SEGMENT_AT + 4, "<I", 0xFFFF_0000), TruncatedElf, "segment 0 ends", id="far bytes"),
        pytest.param(patched(SECTIONS + 40 + 16, "<I", 0xFFFF_0000), TruncatedElf, "symbols end", id="far symbols"),
        pytest.param(patched(SECTIONS + 40 + 24, "<I", 77), TruncatedElf, "in section 77", id="far names"),
        pytest.param(patched(SECTIONS + 80 + 20, "<I", 0xFFFF_0000), TruncatedElf, "names end", id="long names"),
    ],
)
def test_defect_is_named(data: bytes, kind: type[ElfError], message: str) -> None:
    with pytest.raises(kind, match=message) as caught:
        parse_executable(data)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize("address", [0x1000, RAM - 2, RAM + 0x800_0000 - 2])
def test_segment_outside_the_memories_stores_nothing(address: int) -> None:
    program = parse_executable(ElfFile(((RAM + 0x100, b"abcd", 4), (address, b"abcd", 4))).build())
    with (
        pytest.raises(BadSegment, match=r"lies in no memory; memories: ram 0x80000000\.\.0x88000000"),
        StandaloneRun(program, default_board(), lambda _data: None),
    ):
        pass


def test_headers_below_a_memory_are_left_out() -> None:
    headers = Segment(RAM - 0x1000, bytes(0x1000) + b"code", 0x1008, holds_headers=True)
    program = Executable(RAM, (headers,), Symbols())
    with StandaloneRun(program, default_board(), lambda _data: None) as run:
        assert run.machine.read_memory(RAM, 8) == b"code\0\0\0\0"


def test_huge_segment_costs_nothing_to_refuse() -> None:
    program = parse_executable(ElfFile(((0x1000, b"", 0xF000_0000),)).build())
    with pytest.raises(BadSegment), StandaloneRun(program, default_board(), lambda _data: None):
        pass


def test_file_that_is_too_long(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "long.elf"
    path.write_bytes(GOOD.build())
    monkeypatch.setattr(programs, "ELF_BYTES_MAX", 100)
    with pytest.raises(ElfTooLarge, match=r"long\.elf: the file is longer than 100 bytes"):
        programs.read_executable(path)


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_mutated_files_are_read_or_refused(data: st.DataObject) -> None:
    mutated = bytearray(GOOD.build())
    for _ in range(data.draw(st.integers(1, 6))):
        offset = data.draw(st.integers(0, len(mutated) - 4))
        if data.draw(st.booleans()):
            mutated[offset] = data.draw(st.integers(0, 255))
        else:
            interesting = st.sampled_from([0, 1, 2, 52, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, len(mutated)])
            struct.pack_into("<I", mutated, offset, data.draw(interesting))
    cut = data.draw(st.integers(0, len(mutated)))
    for candidate in (bytes(mutated), bytes(mutated[:cut])):
        try:
            program = parse_executable(candidate)
        except ElfError:
            continue
        assert program.segments
        program.symbols.place(RAM)


@settings(deadline=None, max_examples=100)
@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(tail: bytes) -> None:
    for data in (tail, b"\x7fELF\x01\x01\x01" + tail, GOOD.build()[:52] + tail):
        try:
            parse_executable(data)
        except ElfError:
            pass


def test_csr_of_the_hart_id_is_what_a0_says() -> None:
    data = ElfFile(((RAM, code(csrr(5, 0xF14), WFI), 8),)).build()
    with StandaloneRun(parse_executable(data), default_board(), lambda _data: None) as run:
        run.step()
        assert run.machine.hart.read_register(5) == run.machine.hart.read_register(10) == 0
