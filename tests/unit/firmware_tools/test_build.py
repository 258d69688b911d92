"""From ELF files and flat binaries to images: what is loaded where, and why some programs cannot be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from driver_shim.protocol.image import ImageVersion, parse_image
from firmware_tools.build import DEFAULT_LOAD_ADDRESS, MAX_PROGRAM_BYTES, place, read_program
from firmware_tools.errors import BuildError
from firmware_tools.files import write_whole
from firmware_tools.image import DEFAULT_HEADER_SIZE, ImageContents, build_image
from tests.support.images import TINY
from tests.support.small_elf import Segment, elf32

EXAMPLES = 500
RAM = 0x8000_0000
START = RAM + DEFAULT_HEADER_SIZE
CODE = Segment(START, b"\x13\0\0\0" * 4)


def written(folder: Path, data: bytes, name: str = "program.elf") -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def test_an_elf_file_is_flattened_by_physical_address(tmp_path: Path) -> None:
    data = Segment(0x9000_0000, b"DATA", physical=START + 0x18, memory_size=64)
    program = read_program(written(tmp_path, elf32([data, CODE], START)))
    assert program.base_address == START
    assert program.payload == CODE.data + bytes(8) + b"DATA"


def test_a_segment_without_bytes_is_left_to_the_program(tmp_path: Path) -> None:
    program = read_program(written(tmp_path, elf32([CODE, Segment(RAM + 0x4000, b"", memory_size=4096)], START)))
    assert program.payload == CODE.data


def test_what_a_segment_has_in_memory_alone_may_overlap_the_next_one(tmp_path: Path) -> None:
    """Where .bss is behind .data in RAM, other code may be behind the copy of .data that is loaded."""
    with_bss = CODE._replace(memory_size=4096)
    program = read_program(written(tmp_path, elf32([with_bss, Segment(START + len(CODE.data), b"DATA")], START)))
    assert program.payload == CODE.data + b"DATA"


def test_headers_that_the_linker_let_in_are_left_out(tmp_path: Path) -> None:
    program = read_program(written(tmp_path, elf32([CODE._replace(with_headers=True)], START)))
    assert (program.base_address, program.payload) == (START, CODE.data)


def test_an_elf_file_says_where_it_is_loaded(tmp_path: Path) -> None:
    path = written(tmp_path, elf32([CODE], START))
    program = read_program(path)
    assert place(program, DEFAULT_HEADER_SIZE, None, path) == RAM
    assert place(program, DEFAULT_HEADER_SIZE, RAM, path) == RAM
    assert place(program, 0x100, None, path) == RAM + 0x100


def test_an_address_that_the_elf_file_contradicts_is_refused_with_what_would_do(tmp_path: Path) -> None:
    path = written(tmp_path, elf32([CODE], START))
    with pytest.raises(BuildError, match=r"linked at 0x80000200.*lie at 0x80000100.*--header-size 0x200"):
        place(read_program(path), 0x100, RAM, path)
    with pytest.raises(BuildError, match="link it there"):
        place(read_program(path), 0x100, RAM + 0x1000, path)


def test_an_elf_file_at_the_bottom_leaves_no_room_for_a_header(tmp_path: Path) -> None:
    path = written(tmp_path, elf32([Segment(0x100, b"code")], 0x100))
    with pytest.raises(BuildError, match="no room for a header of 0x200 below"):
        place(read_program(path), DEFAULT_HEADER_SIZE, None, path)


def test_a_flat_binary_goes_where_it_is_told_to(tmp_path: Path) -> None:
    path = written(tmp_path, b"anything", "program.bin")
    program = read_program(path)
    assert (program.payload, program.base_address) == (b"anything", None)
    assert place(program, DEFAULT_HEADER_SIZE, None, path) == DEFAULT_LOAD_ADDRESS
    assert place(program, DEFAULT_HEADER_SIZE, 0x9000_0000, path) == 0x9000_0000


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "is empty"),
        (TINY, "is a firmware image already.*fw sign"),
        (elf32([CODE], START + 4), "begins to run at 0x80000204.*0x80000200.*entry point first"),
        (elf32([CODE, CODE], START), "two load segments at 0x80000200"),
        (elf32([CODE, Segment(START + MAX_PROGRAM_BYTES, b"far")], START), "64 MiB are the most"),
        (elf32([], START), "nothing to load"),
        (elf32([CODE], START, machine=62), "machine EM_X86_64; the core is EM_RISCV"),
        (elf32([CODE], START, order=2), "big-endian; the core is little-endian"),
        (elf32([CODE], START, kind=1), "type is ET_REL; only ET_EXEC"),
        (elf32([CODE], START)[:60], "segment headers end at 0x54, the file at 0x3c"),
        (elf32([CODE], START)[: 52 + 32 + 3], "headers end at|segment 0 ends at"),
        (b"\x7fELF", "the file has 4 bytes"),
    ],
)
def test_other_files_are_refused_with_the_reason(tmp_path: Path, data: bytes, reason: str) -> None:
    with pytest.raises(BuildError, match=f"(?s){reason}"):
        read_program(written(tmp_path, data))


def test_intel_hex_is_refused_with_what_to_give_instead(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="is Intel HEX"):
        read_program(written(tmp_path, b":00000001FF\n", "program.hex"))


SMALL_ELF = elf32([CODE, Segment(START + 0x20, b"DATA")], START)


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.integers(4, len(SMALL_ELF) - 1), st.integers(0, 255)), max_size=6),
    st.integers(4, len(SMALL_ELF)),
)
def test_a_damaged_elf_file_is_read_or_refused(tmp_path: Path, changes: list[tuple[int, int]], length: int) -> None:
    data = bytearray(SMALL_ELF)
    for at, value in changes:
        data[at] = value
    path = written(tmp_path, bytes(data[:length]))
    try:
        assert read_program(path).payload
    except BuildError as error:
        assert str(path) in error.message


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"payload": b""}, "program is empty"),
        ({"header_size": 31}, "32 to 65535"),
        ({"header_size": 65536}, "32 to 65535"),
        ({"header_size": 34}, "multiple of 4"),
        ({"hardware_ids": (1, 1)}, "named twice"),
        ({"hardware_ids": (1 << 32,)}, "hardware id 4294967296 does not fit"),
        ({"hardware_ids": tuple(range(20000))}, "65535 are the most"),
        ({"security_counter": 1 << 32}, "does not fit"),
        ({"load_address": 0xFFFF_FFFF}, "32 bits"),
    ],
)
def test_contents_that_no_image_can_hold_are_refused(changes: dict[str, Any], reason: str) -> None:
    contents = {"payload": b"code", "version": ImageVersion(1), **changes}
    with pytest.raises(BuildError, match=reason):
        build_image(ImageContents(**contents))


def test_everything_optional_can_be_left_out() -> None:
    image = parse_image(
        build_image(ImageContents(b"code", ImageVersion(1), security_counter=None, with_chunk_hashes=False))
    )
    assert (image.protected, image.security_counter, image.ram_load) == ((), None, False)
    assert image.header_size == DEFAULT_HEADER_SIZE


def test_a_large_program_has_at_most_1024_chunk_hashes() -> None:
    image = parse_image(build_image(ImageContents(bytes((4 << 20) + 1), ImageVersion(1))))
    assert len(image.chunk_hashes) == 513


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = written(tmp_path, b"before")
    path.chmod(0o640)
    write_whole(path, b"after")
    assert (path.read_bytes(), path.stat().st_mode & 0o777) == (b"after", 0o640)
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(OSError, match="folder"):
        write_whole(folder, b"after")
    assert {entry.name for entry in tmp_path.iterdir()} == {"program.elf", "folder"}
