"""Configuration space, byte by byte: what lspci, a kernel and a hypervisor rest on."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from driver_shim.protocol import config_space as facts
from driver_shim.protocol.layout import FieldError
from emulator.function.blocks.config_space import ConfigSpace

BAR_SIZES = {0: 0x1_0000, 2: 0x2_0000, 4: 0x4_0000_0000}
SERIAL = 0x1122334455667788
VECTORS = 32

HEADER = bytes.fromhex(
    "c4b7 504e 0000 1000  00 000012 00 00 00 00"  # ids; command; status: capabilities; class 0x120000
    "00000000 00000000 00000000 00000000"  # BAR0; none; BAR2 (32 bits, not prefetchable); none
    "0c000000 00000000 00000000 c4b7 0100"  # BAR4/5: 64 bits, prefetchable; no CIS; subsystem
    "00000000 40000000 00000000 00 00 00 00"  # no ROM; capabilities at 0x40; no interrupt pin
)
CAPABILITIES = {
    0x40: "01 50 0300 0800 00 00",  # power management 3, next 0x50; no soft reset
    0x50: "11 60 1f00 00800000 00c00000",  # MSI-X: 32 vectors, table BAR0 + 0x8000, pending bits BAR0 + 0xC000
    0x60: "10 00 0200"  # PCI Express v2 endpoint, last
    "21800010 1028 0000"  # payload 256, extended tags, role-based errors, FLR; control; status
    "02014000 0000 0211"  # 5 GT/s x16; slot clock
    "00000000000000000000000000000000"
    "10000000 0000 0000"  # completion time-out can be disabled
    "06000000 0200 0100"  # 2.5 and 5 GT/s
    "0000000000000000",
    0x100: "01000215 00000000 00000000 10200600"  # AER v2, next 0x150; severity: data link, flow, overflow, malformed
    "00000000 00200000 00000000" + "00" * (0x48 - 0x1C),  # advisory non-fatal masked
    0x150: "03000100 8877665544332211",  # serial number, last
}


@pytest.fixture
def config() -> ConfigSpace:
    return ConfigSpace(BAR_SIZES, SERIAL, VECTORS)


def word(config: ConfigSpace, offset: int, size: int = 2) -> int:
    return int.from_bytes(config.read(offset, size), "little")


def test_power_on_bytes(config: ConfigSpace) -> None:
    expected = bytearray(4096)
    expected[:64] = HEADER
    for offset, text in CAPABILITIES.items():
        octets = bytes.fromhex(text)
        expected[offset : offset + len(octets)] = octets
    assert config.read(0, 4096) == bytes(expected)


@pytest.mark.parametrize(
    ("bar", "size_mask"),
    [(0, 0xFFFF_0000), (1, 0), (2, 0xFFFE_0000), (3, 0), (4, 0x0000_000C), (5, 0xFFFF_FFFC)],
)
def test_bars_answer_all_ones_with_their_size(config: ConfigSpace, bar: int, size_mask: int) -> None:
    offset = 0x10 + 4 * bar
    config.write(offset, b"\xff\xff\xff\xff")
    assert word(config, offset, 4) == size_mask
    config.write(offset, (0xDEAD_BEEF).to_bytes(4, "little"))
    assert word(config, offset, 4) == 0xDEAD_BEEF & size_mask | (0xC if bar == 4 else 0)


def test_expansion_rom_is_absent(config: ConfigSpace) -> None:
    config.write(0x30, b"\xff\xff\xff\xff")
    assert word(config, 0x30, 4) == 0


def test_command_has_only_the_bits_of_a_memory_bus_master(config: ConfigSpace) -> None:
    config.write(0x04, b"\xff\xff")
    assert word(config, 0x04) == 0x0546
    assert config.memory_enable
    assert config.bus_master
    config.write(0x04, b"\x02")
    assert (config.memory_enable, config.bus_master) == (True, False)


def test_status_errors_clear_by_writing_ones_and_are_not_set_by_it(config: ConfigSpace) -> None:
    config._bytes[0x07] = 0xF9
    config.write(0x06, b"\x00\x01")
    assert word(config, 0x06) == 0xF810
    config.write(0x06, b"\xff\xff")
    assert word(config, 0x06) == 0x0010


def test_power_state_takes_d0_and_d3hot_only(config: ConfigSpace) -> None:
    config.write(0x04, b"\x06\x00")
    config.write(0x44, b"\x03")
    assert (config.power_state, config.bus_master, config.memory_enable) == (3, False, True)
    config.write(0x44, b"\x01")
    assert config.power_state == 3
    config.write(0x44, b"\x00\xff")
    assert word(config, 0x44) == 0x0008
    config.write(0x44, b"\x02")
    assert config.power_state == 0
    assert config.bus_master


def test_msix_control(config: ConfigSpace) -> None:
    config.write(0x52, b"\xff\xff")
    assert word(config, 0x52) == 0xC01F


@pytest.mark.parametrize(
    ("offset", "data"), [(0x68, b"\x00\x80"), (0x69, b"\x80"), (0x60, b"\xff" * 12), (0x69, b"\xff" * 4000)]
)
def test_initiate_flr_is_reported_and_reads_zero(config: ConfigSpace, offset: int, data: bytes) -> None:
    assert config.write(offset, data) is True
    assert word(config, 0x68) & 0x8000 == 0


@pytest.mark.parametrize(
    ("offset", "data"), [(0x68, b"\xff\x7f"), (0x68, b"\x80"), (0x6A, b"\xff\xff"), (0x04, b"\xff")]
)
def test_other_writes_ask_for_no_reset(config: ConfigSpace, offset: int, data: bytes) -> None:
    assert config.write(offset, data) is False


def write_everything(config: ConfigSpace) -> None:
    config.write(0, b"\xff" * 0x68)
    config.write(0x68, b"\xff\x7f")
    config.write(0x6A, b"\xff" * (4096 - 0x6A))


def test_function_level_reset_keeps_what_the_specification_exempts(config: ConfigSpace) -> None:
    """PCI Express Base 4.0, 6.6.2: sticky bits, Max_Payload_Size and the listed link controls stay."""
    write_everything(config)
    config.reset()
    assert word(config, 0x04) == 0
    assert config.read(0x10, 24) == HEADER[0x10:0x28]
    assert word(config, 0x3C, 1) == 0
    assert word(config, 0x44) == 0x0008
    assert word(config, 0x52) == 0x001F
    assert word(config, 0x68) == 0x28F0
    assert word(config, 0x70) == 0x02CB
    assert word(config, 0x88) == 0
    assert word(config, 0x90) == 0x003F
    assert word(config, 0x108, 4) == 0x001F_F010
    assert word(config, 0x10C, 4) == 0x001F_F010
    assert word(config, 0x114, 4) == 0x31C1


def test_sticky_errors_survive_a_function_level_reset(config: ConfigSpace) -> None:
    config._bytes[0x106] = 0x10
    config.reset()
    assert word(config, 0x104, 4) == 0x0010_0000
    config.write(0x106, b"\x10")
    assert word(config, 0x104, 4) == 0


def test_outside_configuration_space_nothing_happens(config: ConfigSpace) -> None:
    before = config.read(0, 4096)
    assert config.read(4096, 4) == bytes(4)
    assert config.read(4094, 4) == bytes(4)
    assert config.read(-4, 4) == bytes(4)
    config.write(4096, b"\xff")
    config.write(-1, b"\xff\xff")
    assert config.read(0, 4096) == before


WRITES = st.lists(st.tuples(st.integers(-8, 4100), st.binary(max_size=70)), max_size=30)


@given(WRITES)
def test_random_writes_never_raise_and_never_change_what_is_read_only(writes: list[tuple[int, bytes]]) -> None:
    config = ConfigSpace(BAR_SIZES, SERIAL, VECTORS)
    image = facts.config_image(BAR_SIZES, SERIAL, VECTORS)
    for offset, data in writes:
        config.write(offset, data)
        now = config.read(0, 4096)
        assert len(now) == 4096
        for at in range(0x160):
            fixed = ~image.rw[at] & 0xFF
            assert now[at] & fixed == image.reset[at] & fixed
        assert now[0x160:] == bytes(4096 - 0x160)
        assert config.power_state in (0, 3)


@given(st.integers(0, 4095), st.integers(0, 64))
def test_reads_of_any_shape_agree_with_the_whole(offset: int, size: int) -> None:
    config = ConfigSpace(BAR_SIZES, SERIAL, VECTORS)
    whole = config.read(0, 4096) + bytes(64)
    assert config.read(offset, size) == whole[offset : offset + size]


def test_masks_never_overlap() -> None:
    image = facts.config_image(BAR_SIZES, SERIAL, VECTORS)
    assert all(rw & rw1c == 0 for rw, rw1c in zip(image.rw, image.rw1c, strict=True))


def test_structures_never_overlap() -> None:
    areas = sorted((block.offset, block.offset + block.layout.size) for block in facts.BLOCKS)
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(areas))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({0: 0x1_0001}, "BAR0"),
        ({0: 8}, "BAR0"),
        ({2: 1 << 32}, "BAR2"),
        ({1: 4096}, "BAR1"),
        ({4: 3 << 30}, "BAR4"),
    ],
)
def test_impossible_bars_are_refused(sizes: dict[int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ConfigSpace(sizes, SERIAL, VECTORS)


@pytest.mark.parametrize("vectors", [0, 2049])
def test_impossible_vector_counts_are_refused(vectors: int) -> None:
    with pytest.raises(ValueError, match="MSI-X vectors"):
        ConfigSpace(BAR_SIZES, SERIAL, vectors)


def test_a_serial_number_has_64_bits() -> None:
    with pytest.raises(FieldError, match="serial"):
        ConfigSpace(BAR_SIZES, 1 << 64, VECTORS)
