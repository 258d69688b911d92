"""Registers in a mapping: exact width, little-endian, checked."""

import mmap
from collections.abc import Iterator

import numpy as np
import pytest

from driver_shim.shared.mmio import MappedRegisters

WIDTHS = (1, 2, 4, 8)
SIZE = 64


@pytest.fixture
def memory() -> Iterator[mmap.mmap]:
    with mmap.mmap(-1, mmap.PAGESIZE) as mapping:
        yield mapping


@pytest.fixture
def registers(memory: mmap.mmap) -> Iterator[MappedRegisters]:
    view = memoryview(memory)
    part = view[:SIZE]
    registers = MappedRegisters(part)
    yield registers
    registers.release()
    part.release()
    view.release()


def test_each_width_lands_little_endian_at_its_offset(memory: mmap.mmap, registers: MappedRegisters) -> None:
    registers.write8(0x01, 0xA1)
    registers.write16(0x02, 0xB1B2)
    registers.write32(0x04, 0xC1C2C3C4)
    registers.write64(0x08, 0xD1D2D3D4D5D6D7D8)
    assert memory[:16] == bytes.fromhex("00a1b2b1c4c3c2c1d8d7d6d5d4d3d2d1")
    assert registers.read8(0x01) == 0xA1
    assert registers.read16(0x02) == 0xB1B2
    assert registers.read32(0x04) == 0xC1C2C3C4
    assert registers.read64(0x08) == 0xD1D2D3D4D5D6D7D8


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("offset", [-8, SIZE, SIZE + 8, 1 << 70])
def test_outside_the_mapping_is_refused(registers: MappedRegisters, width: int, offset: int) -> None:
    for access in (lambda: _read(registers, width, offset), lambda: _write(registers, width, offset, 0)):
        with pytest.raises(ValueError, match="outside the mapping of 0x40 bytes"):
            access()


@pytest.mark.parametrize("width", WIDTHS[1:])
def test_misaligned_is_refused(registers: MappedRegisters, width: int) -> None:
    for access in (lambda: _read(registers, width, 1), lambda: _write(registers, width, 1, 0)):
        with pytest.raises(ValueError, match=f"not a multiple of {width}"):
            access()


@pytest.mark.parametrize("width", WIDTHS)
def test_the_last_register_is_reachable(registers: MappedRegisters, width: int) -> None:
    biggest = (1 << 8 * width) - 1
    _write(registers, width, SIZE - width, biggest)
    assert _read(registers, width, SIZE - width) == biggest


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("excess", [0, 1 << 80])
def test_value_that_does_not_fit_is_refused_and_stores_nothing(
    memory: mmap.mmap, registers: MappedRegisters, width: int, excess: int
) -> None:
    for value in ((1 << 8 * width) + excess, -1):
        with pytest.raises(ValueError, match=f"does not fit {8 * width} bits"):
            _write(registers, width, 0, value)
    with pytest.raises(TypeError, match="not an integer"):
        _write(registers, width, 0, "1")  # type: ignore[arg-type]
    assert memory[:8] == bytes(8)


def test_read_only_mapping_reads_and_refuses_stores() -> None:
    view = memoryview(np.arange(8, dtype=np.uint64).tobytes()).cast("B")
    registers = MappedRegisters(view)
    assert registers.read64(8) == 1
    with pytest.raises(TypeError, match="read-only"):
        registers.write32(0, 1)


def test_a_size_that_is_no_multiple_of_eight_keeps_its_tail(memory: mmap.mmap) -> None:
    with memoryview(memory) as view, view[:7] as part:
        registers = MappedRegisters(part)
        registers.write8(6, 0x5A)
        assert registers.read8(6) == 0x5A
        with pytest.raises(ValueError, match="outside"):
            registers.read32(4)
        registers.release()


def test_misaligned_or_strided_memory_is_refused(memory: mmap.mmap) -> None:
    with memoryview(memory) as view, view[4:12] as shifted, view[:16:2] as strided:
        with pytest.raises(ValueError, match="aligned to 8"):
            MappedRegisters(shifted)
        with pytest.raises(ValueError, match="contiguous"):
            MappedRegisters(strided)


def test_release_lets_the_mapping_go_and_ends_access() -> None:
    mapping = mmap.mmap(-1, mmap.PAGESIZE)
    with memoryview(mapping) as view:
        registers = MappedRegisters(view)
    registers.release()
    registers.release()
    mapping.close()
    with pytest.raises(ValueError, match="released"):
        registers.read32(0)


def _read(registers: MappedRegisters, width: int, offset: int) -> int:
    return int(getattr(registers, f"read{8 * width}")(offset))


def _write(registers: MappedRegisters, width: int, offset: int, value: int) -> None:
    getattr(registers, f"write{8 * width}")(offset, value)
