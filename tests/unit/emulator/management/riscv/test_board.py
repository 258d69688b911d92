"""Board files: what they change, and how they are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emulator.management.riscv.board import (
    Board,
    BoardError,
    MemoryEntry,
    PeripheralEntry,
    Unmapped,
    default_board,
    load_board,
    parse_board,
)
from emulator.management.riscv.machine import Machine
from emulator.management.riscv.memory import zeroed_buffer
from emulator.management.riscv.peripheral import Peripheral


class Light(Peripheral):
    """A peripheral of somebody's own board."""

    size_bytes = 0x2000

    def __init__(self, machine: Machine, interrupt: int) -> None:
        self.interrupt = interrupt

    def read(self, offset: int, size: int) -> int:
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        pass

    def reset(self) -> None:
        pass


def board_of(text: str, folder: Path = Path()) -> Board:
    """A board with the light among its models."""
    return parse_board(text.encode(), "my.toml", folder, models=["light"])


def test_default_board_is_qemus_virt() -> None:
    board = default_board()
    assert board.reset_vector == 0x8000_0000
    assert board.unmapped is Unmapped.FAULT
    assert board.memories == (MemoryEntry("ram", 0x8000_0000, 128 << 20),)
    assert {(p.model, p.base, p.interrupt) for p in board.peripherals} == {
        ("clint", 0x0200_0000, 0),
        ("plic", 0x0C00_0000, 0),
        ("uart16550", 0x1000_0000, 10),
        ("power-off", 0x0010_0000, 0),
    }


def test_overlay_changes_adds_and_removes(tmp_path: Path) -> None:
    (tmp_path / "flash.bin").write_bytes(b"flashed")
    path = tmp_path / "my.toml"
    path.write_text(
        """
        reset_vector = 0x2000_0000
        unmapped = "stop"
        memory.ram.size = 0x1000
        memory.flash = { base = 0x2000_0000, size = 0x2000, writable = false, file = "flash.bin" }
        peripheral.light = { model = "light", base = 0x3000_0000, interrupt = 7 }
        peripheral.power-off.present = false
        """
    )
    board = load_board(path, models=["light"])
    with Machine(board, models={"light": Light}) as machine:
        assert machine.hart.pc == 0x2000_0000
        assert machine.read_memory(0x2000_0000, 8) == b"flashed\0"
        with pytest.raises(ValueError, match="memory flash at 0x20000000 cannot be written by the core"):
            machine.write_memory(0x2000_0000, b"x")
        assert [m.size for m in machine.memories] == [0x1000, 0x2000]
        assert sorted(machine.peripherals) == ["clint", "light", "plic", "serial"]
        light = machine.peripherals["light"]
        assert isinstance(light, Light)
        assert light.interrupt == 7


def test_memory_is_the_callers_buffer() -> None:
    buffer = zeroed_buffer(0x1000)
    board = default_board().with_memory(MemoryEntry("flash", 0x2000_0000, 0x1000, writable=False))
    with Machine(board, buffers={"flash": buffer}) as machine:
        buffer[4:8] = b"host"
        assert machine.read_memory(0x2000_0004, 4) == b"host"
        machine.load_memory(0x2000_0000, b"core")
        assert bytes(buffer[:8]) == b"corehost"


@pytest.mark.parametrize("buffer", [memoryview(bytes(0x1000)), memoryview(bytearray(0x800))])
def test_buffer_that_does_not_fit(buffer: memoryview) -> None:
    board = default_board().with_memory(MemoryEntry("flash", 0x2000_0000, 0x1000))
    with pytest.raises(BoardError, match=r"memory\.flash: .*; allowed: a writable buffer of 4096 bytes"):
        Machine(board, buffers={"flash": buffer})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("reset_vector = ", "my.toml: file: is not TOML"),
        ("colour = 1", "my.toml: file.colour: no such key; allowed: reset_vector, unmapped, memory, peripheral"),
        ("reset_vector = 3", "my.toml: reset_vector: 0x3; allowed: an even 32-bit address"),
        ("reset_vector = -2", "my.toml: reset_vector: -0x2"),
        ('reset_vector = "top"', "my.toml: reset_vector: is 'top'; allowed: an even address"),
        ("reset_vector = true", "my.toml: reset_vector: is True"),
        ('unmapped = "ignore"', "my.toml: unmapped: 'ignore'; allowed: fault, stop, zero"),
        ("memory = 5", "my.toml: memory: is 0x5; allowed: tables"),
        ("memory.ram = 5", r"my.toml: memory.ram: is 0x5; allowed: a table \[memory.NAME\]"),
        ("memory.ram.speed = 5", "my.toml: memory.ram.speed: no such key; allowed: present, base, size, writable"),
        ("memory.rom.size = 0x1000", "my.toml: memory.rom.base: is missing; allowed: an address"),
        ("memory.ram.base = 0x80000010", "my.toml: memory.ram.base: 0x80000010; allowed: a multiple of 0x1000"),
        ("memory.ram.size = 0", "my.toml: memory.ram.size: 0x0; allowed"),
        ("memory.ram.size = 0xFFFF_F000", "my.toml: memory.ram.size: 0xfffff000; allowed: .* at most 0x40000000"),
        ("memory.ram.base = 0xFFFF_F000", "ends at 0x107fff000; allowed: 32-bit addresses"),
        ("memory.ram.base = 0xC00_0000", r"my.toml: peripheral.plic.base: 0xc000000 lies in memory.ram|memory.ram"),
        ("memory.ram.writable = 1", "my.toml: memory.ram.writable: is 0x1; allowed: true or false"),
        ("peripheral.serial.interrupt = 128", "interrupt: 0x80; allowed: a number from 1 to 127, or 0 for none"),
        (
            'peripheral.serial.model = "lamp"',
            "my.toml: peripheral.serial.model: no model 'lamp'; allowed: clint, light",
        ),
        ('peripheral.x = { model = "plic", base = 0x5000_0000 }', "peripheral.x.model: a second plic; allowed: one"),
        ("peripheral.serial.base = 0x200_0000", "lies in peripheral"),
        ("memory.ram.present = 1", "my.toml: memory.ram.present: is 0x1; allowed: true or false"),
    ],
)
def test_defect_is_named_with_file_and_key(text: str, message: str) -> None:
    with pytest.raises(BoardError, match=message) as caught:
        board_of(text)
    assert isinstance(caught.value, ValueError)


def test_numbers_of_any_length_are_shown_shortened() -> None:
    with pytest.raises(BoardError, match=r"reset_vector: 0xf{58}…; allowed") as caught:
        board_of("reset_vector = 0x" + "f" * 20_000)
    assert len(str(caught.value)) < 200
    with pytest.raises(BoardError, match="unmapped: is 0xf"):
        board_of("unmapped = 0x" + "f" * 20_000)


def test_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(BoardError, match=r"none\.toml: file: cannot be read: No such file"):
        load_board(tmp_path / "none.toml")
    for file in ("none.bin", "a\\u0000b"):
        board = board_of(f'memory.ram.file = "{file}"', tmp_path)
        with pytest.raises(BoardError, match=r"my.toml: memory.ram.file: .* cannot be read"):
            Machine(board)


def test_file_that_does_not_fit(tmp_path: Path) -> None:
    (tmp_path / "big.bin").write_bytes(bytes(0x1001))
    board = board_of('memory.ram = { size = 0x1000, file = "big.bin" }', tmp_path)
    with pytest.raises(BoardError, match=r"big\.bin is longer; allowed: a file of at most 4096 bytes"):
        Machine(board)


def test_board_file_that_is_too_long(tmp_path: Path) -> None:
    path = tmp_path / "long.toml"
    path.write_bytes(b"#" * ((1 << 20) + 1))
    with pytest.raises(BoardError, match="file: is longer"):
        load_board(path)


def test_model_that_turns_out_larger_than_its_place() -> None:
    text = """
    peripheral.light = { model = "light", base = 0x3000_0000 }
    memory.next = { base = 0x3000_1000, size = 0x1000 }
    """
    with pytest.raises(BoardError, match=r"memory.next.base: 0x30001000 lies in peripheral.light"):
        Machine(board_of(text), models={"light": Light})


def test_model_that_nobody_made() -> None:
    board = default_board().with_peripheral(PeripheralEntry("light", "light", 0x3000_0000))
    with pytest.raises(BoardError, match="no model 'light'"):
        Machine(board)


_KEYS = st.sampled_from(["base", "size", "writable", "file", "present", "model", "interrupt", "x"])
_VALUES = st.one_of(
    st.integers(-(1 << 70), 1 << 70).map(str),
    st.sampled_from(
        ["true", "false", "1.5", "[]", "{}", '"clint"', '"ram"', '""', "0x1000", "0x8000_0000", "2024-01-01"]
    ),
)
_NAMES = st.sampled_from(["ram", "serial", "plic", "other"])
_LINES = st.one_of(
    st.tuples(st.sampled_from(["memory", "peripheral"]), _NAMES, _KEYS, _VALUES).map(
        lambda parts: f"{parts[0]}.{parts[1]}.{parts[2]} = {parts[3]}"
    ),
    st.tuples(st.sampled_from(["reset_vector", "unmapped", "memory"]), _VALUES).map(" = ".join),
)


@settings(deadline=None, max_examples=300)
@given(st.lists(_LINES, max_size=6).map("\n".join) | st.text(max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        board = parse_board(text.encode("utf-8", "surrogatepass"), "my.toml", Path())
    except BoardError:
        return
    assert board.memories or board.peripherals is not None


@settings(deadline=None, max_examples=100)
@given(st.binary(max_size=100))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    try:
        parse_board(data, "my.toml", Path())
    except BoardError:
        return
