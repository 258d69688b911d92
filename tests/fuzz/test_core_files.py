"""What the management core is started from, damaged: flash and one-time values, ELF files, board files.

The chip boots an image that verifies or waits in recovery; a file is taken or refused with a reason.
"""

from __future__ import annotations

import functools
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import strategies as st

from driver_shim.protocol.elf import ElfError
from driver_shim.protocol.firmware_slots import (
    BOOT_STATE,
    BOOT_STATE_OFFSETS,
    FLASH_BYTES,
    SECTOR_BYTES,
    SLOT_BYTES,
    SLOT_OFFSETS,
    BootState,
    Slot,
)
from driver_shim.protocol.registers import CoreReset, Post
from emulator.chip.state import StateFolder
from emulator.management.npu.core import MODEL_BYTES
from emulator.management.npu.one_time import ONE_TIME
from emulator.management.npu.storage import (
    ONE_TIME_OFFSET,
    STORAGE_BYTES,
    STORAGE_FILE,
    WEAR_BYTES,
    WEAR_OFFSET,
    fresh_storage,
    open_storage,
)
from emulator.management.riscv.board import BoardError, parse_board
from emulator.management.riscv.executable import parse_executable
from emulator.management.riscv.machine import Machine
from emulator.management.riscv.memory import Memories, Memory
from emulator.state_error import StateError
from tests.fuzz.device import fuzzed
from tests.support.core_bench import REFERENCE_IMAGE, core_bench
from tests.support.riscv import HERE, RAM, WFI, code
from tests.support.small_elf import HEADER_BYTES, Segment, elf32

EXAMPLES = 20
BOOTS = 3
MEMORY_BYTES = 0x4000

# --- flash and one-time values


@functools.cache
def healthy() -> bytes:
    """A chip with an image in both slots."""
    contents = bytearray(fresh_storage(REFERENCE_IMAGE))
    at = SLOT_OFFSETS[Slot.B]
    contents[at : at + len(REFERENCE_IMAGE)] = REFERENCE_IMAGE
    return bytes(contents)


def _places() -> st.SearchStrategy[int]:
    regions = [
        *((offset, BOOT_STATE.size) for offset in BOOT_STATE_OFFSETS),
        *((SLOT_OFFSETS[slot], 64) for slot in (Slot.A, Slot.B)),
        *((SLOT_OFFSETS[slot], len(REFERENCE_IMAGE)) for slot in (Slot.A, Slot.B)),
        (WEAR_OFFSET, WEAR_BYTES),
        (ONE_TIME_OFFSET, ONE_TIME.size),
        (0, STORAGE_BYTES),
    ]
    return st.one_of([st.integers(start, start + size - 1) for start, size in regions])


STATES = st.builds(
    lambda sequence, confirmed, trial, trial_boots, failed: BootState(sequence, confirmed, trial, trial_boots, failed),
    st.one_of(st.integers(0, 5), st.integers((1 << 32) - 4, (1 << 32) - 1)),
    st.sampled_from(Slot),
    st.sampled_from(Slot),
    st.one_of(st.integers(0, 2), st.just(0xFF)),
    st.sampled_from(Slot),
).map(lambda state: state.build())
DAMAGE = st.one_of(
    st.tuples(_places(), st.binary(min_size=1, max_size=8)),
    st.tuples(_places(), st.sampled_from((b"\xff" * SECTOR_BYTES, bytes(SECTOR_BYTES), b"\xff\xff\xff\xff"))),
    st.tuples(st.sampled_from(BOOT_STATE_OFFSETS), STATES),
    st.tuples(st.sampled_from(tuple(SLOT_OFFSETS.values())), st.binary(min_size=32, max_size=512)),
)


def damaged(places: list[tuple[int, bytes]]) -> bytes:
    contents = bytearray(healthy())
    for at, data in places:
        data = data[: STORAGE_BYTES - at]
        contents[at : at + len(data)] = data
    return bytes(contents)


@fuzzed(EXAMPLES, places=st.lists(DAMAGE, min_size=1, max_size=6), reason=st.sampled_from(CoreReset))
def test_a_damaged_chip_boots_what_verifies_or_waits_in_recovery(
    places: list[tuple[int, bytes]], reason: CoreReset
) -> None:
    contents = damaged(places)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / STORAGE_FILE
        path.write_bytes(contents)
        try:
            os.close(open_storage(Path(folder), REFERENCE_IMAGE))
        except StateError as error:
            assert str(path) in str(error)
            assert contents[ONE_TIME_OFFSET:] != healthy()[ONE_TIME_OFFSET:]
            return
        assert path.read_bytes() == contents, "looking changes nothing"
    with core_bench(contents) as bench:
        for _ in range(BOOTS):
            bench.boot(reason)
            if not bench.runs:
                assert bench.progress()["post_code"] == Post.RECOVERY
            else:
                slot = Slot(bench.progress()["slot"])
                bench.core.rom.verify(bench.core.rom.slot_image(slot))
                assert bench.ready()
            reason = CoreReset.HOST
        intact = contents[ONE_TIME_OFFSET:] == healthy()[ONE_TIME_OFFSET:]
        if intact and any(
            contents[at : at + SLOT_BYTES] == healthy()[at : at + SLOT_BYTES] for at in SLOT_OFFSETS.values()
        ):
            assert bench.runs, "there is an image that is whole"


@fuzzed(EXAMPLES, size=st.one_of(st.integers(0, 64), st.integers(STORAGE_BYTES - 2, STORAGE_BYTES + 2)))
def test_storage_of_another_length_is_refused_and_left_alone(size: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / STORAGE_FILE
        path.touch()
        os.truncate(path, size)
        try:
            os.close(open_storage(Path(folder), REFERENCE_IMAGE))
            raise AssertionError("zeros are no one-time values")
        except StateError:
            assert path.stat().st_size == size
    assert FLASH_BYTES < STORAGE_BYTES


JSON_PIECES = st.one_of(
    st.sampled_from(('{"version": 1', '"serial": "EMU1"', '"counters": {', "}", ",", "[", '"', "\0", "NaN")),
    st.sampled_from(('"x": 1', '"x": Infinity', '"x": -1', '"x": 1e999', '"x": null')),
    st.sampled_from(("[" * 200_000, '{"a":' * 200_000, "9" * 5000)),
)
SUMMARIES = st.one_of(
    st.binary(max_size=100),
    st.lists(JSON_PIECES, max_size=8).map(lambda pieces: "".join(pieces).encode()),
    st.sampled_from(("Infinity", "-1", "1e400", "[]", "{}", "null", '"x"', str(1 << 70), "0.5")).map(
        lambda value: f'{{"version": 1, "serial": "EMU1", "counters": {{"resets": {value}}}}}'.encode()
    ),
)


@fuzzed(EXAMPLES, summary=SUMMARIES, errors=st.binary(max_size=64), black_box=st.binary(max_size=64))
def test_a_state_folder_of_anything_is_taken_or_refused(summary: bytes, errors: bytes, black_box: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name, data in (("device.json", summary), ("errors.bin", errors), ("black_box.bin", black_box)):
            if data:
                (Path(folder) / name).write_bytes(data)
        state = StateFolder(Path(folder))
        try:
            state.load()
        except StateError:
            pass
        finally:
            state.close()


def test_a_new_device_keeps_its_serial_number_though_it_was_killed(tmp_path: Path) -> None:
    serials = set()
    for _ in range(2):
        state = StateFolder(tmp_path)
        serials.add(state.load().serial)
        state.close()
    assert len(serials) == 1


@pytest.mark.parametrize(
    "counters", ['{"resets": Infinity}', '{"resets": NaN}', '{"resets": 1e400}', "[" * 200_000, '{"a":' * 200_000]
)
def test_counters_that_are_no_numbers_are_refused(counters: str, tmp_path: Path) -> None:
    (tmp_path / "device.json").write_text(f'{{"version": 1, "serial": "EMU1", "counters": {counters}}}')
    state = StateFolder(tmp_path)
    with pytest.raises(StateError, match=r"device\.json is damaged"):
        state.load()
    state.close()


# --- ELF and board files

SEED = elf32([Segment(RAM, code(WFI, HERE)), Segment(RAM + 0x1000, b"data", memory_size=64)], RAM)
SPOTS = st.one_of(st.integers(0, 51), st.integers(52, 52 + 63), st.integers(0, len(SEED) - 1))
VALUES = st.one_of(st.binary(min_size=1, max_size=4), st.sampled_from((b"\xff\xff\xff\xff", bytes(4), b"\x02\0\0\0")))


@fuzzed(10 * EXAMPLES, changes=st.lists(st.tuples(SPOTS, VALUES), max_size=6), cut=st.integers(0, len(SEED)))
def test_elf_files_are_taken_or_refused(changes: list[tuple[int, bytes]], cut: int) -> None:
    data = bytearray(SEED)
    for at, value in changes:
        data[at : at + len(value)] = value
    memory = Memory("ram", RAM, True, memoryview(bytearray(MEMORY_BYTES)))

    def store(address: int, piece: bytes) -> None:
        assert RAM <= address <= address + len(piece) <= RAM + MEMORY_BYTES

    for text in (bytes(data), bytes(data[:cut])):
        try:
            parse_executable(text).load(Memories([memory]), store)
        except ElfError as error:
            assert str(error)


@pytest.mark.parametrize("kind", [2, 3, 4, 0x7000_0003, 0xFFFF_FFFF])
def test_segments_that_are_not_loaded_are_not_looked_into(kind: int) -> None:
    """A dynamic segment, an interpreter, notes: what they say of themselves may be anything."""
    data = bytearray(elf32([Segment(RAM, b"code"), Segment(RAM + 0x1000, b"\xff\xff\xff\x7f")], RAM))
    data[HEADER_BYTES + 32 : HEADER_BYTES + 36] = kind.to_bytes(4, "little")
    assert [segment.address for segment in parse_executable(bytes(data)).segments] == [RAM]


KEYS = st.sampled_from(
    ("base", "size", "writable", "file", "present", "model", "interrupt", "reset_vector", "unmapped", "other")
)
TOML_VALUES = st.one_of(
    st.integers(-(1 << 63), (1 << 63) - 1).map(str),
    st.sampled_from(
        ("0", "1", "0x1000", "0x8000_0000", "0xffff_f000", "true", "false", '"ram"', '""', '"../x"', '"/dev"')
    ),
    st.sampled_from([f'"{model}"' for model in (*MODEL_BYTES, "clint", "plic", "uart16550", "power-off")]),
    st.sampled_from(("[]", "{}", "1.5", "inf", "1979-05-27", '"fault"', '"zero"', '"stop"', '"\\u0000"', "[" * 300)),
)
SECTIONS = st.sampled_from(
    (
        "[memory.ram]",
        "[memory.rom]",
        "[peripheral.serial]",
        "[peripheral.clint]",
        "[peripheral.more]",
        "[memory]",
        "[x]",
    )
)
LINES = st.one_of(SECTIONS, st.builds(lambda key, value: f"{key} = {value}", KEYS, TOML_VALUES))


@fuzzed(10 * EXAMPLES, lines=st.lists(LINES, max_size=12))
def test_board_files_are_taken_or_refused(lines: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        try:
            board = parse_board("\n".join(lines).encode(), "fuzz.toml", Path(folder), MODEL_BYTES)
            if all(entry.model not in MODEL_BYTES for entry in board.peripherals):
                Machine(board).close()
        except BoardError as error:
            assert "fuzz.toml" in str(error)
