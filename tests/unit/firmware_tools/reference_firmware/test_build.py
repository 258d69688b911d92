"""The reference firmware's build: reproducible, small, and complete for those who read its log."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

from driver_shim.protocol.firmware_slots import LOAD_ADDRESS, STAGING_ADDRESS
from firmware_tools.errors import BuildError
from firmware_tools.image import DEFAULT_HEADER_SIZE
from firmware_tools.reference_firmware import build as build_module
from firmware_tools.reference_firmware.build import CompilerMissing, build
from firmware_tools.reference_firmware.protocol_header import protocol_header
from tests.support.reference_firmware import firmware_elf, needs_compiler

PAYLOAD_BYTES_MAX = 32 << 10


@needs_compiler
def test_same_bytes_wherever_sources_and_output_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = tmp_path / "a longer path than before" / "src"
    shutil.copytree(build_module.SOURCES, elsewhere)
    first = build(tmp_path / "one").read_bytes()
    monkeypatch.setattr(build_module, "SOURCES", elsewhere)
    assert build(tmp_path / "two").read_bytes() == first
    assert str(tmp_path).encode() not in first


@needs_compiler
def test_fits_between_load_address_and_staging_memory() -> None:
    with firmware_elf().open("rb") as file:
        loads = [segment.header for segment in ELFFile(file).iter_segments() if segment.header.p_type == "PT_LOAD"]
    assert [load.p_vaddr for load in loads] == [LOAD_ADDRESS + DEFAULT_HEADER_SIZE]
    assert loads[0].p_filesz <= PAYLOAD_BYTES_MAX
    assert loads[0].p_vaddr + loads[0].p_memsz <= STAGING_ADDRESS


@needs_compiler
def test_log_texts_stay_in_the_file() -> None:
    with firmware_elf().open("rb") as file:
        elf = ELFFile(file)
        strings = elf.get_section_by_name(".log_strings")
        assert strings["sh_addr"] == 0
        assert not strings["sh_flags"] & 2, "SHF_ALLOC: they would be loaded"
        texts = strings.data().rstrip(b"\0").split(b"\0")
        loaded = elf.get_segment(0).data() if elf.get_segment(0).header.p_type == "PT_LOAD" else b""
    assert b"slot %c is confirmed" in texts
    assert b"is confirmed" not in loaded


@needs_compiler
def test_a_define_changes_the_build(tmp_path: Path) -> None:
    assert b"greetings from a test" in build(tmp_path, ['GREETING="greetings from a test"']).read_bytes()
    assert b"greetings from a test" not in firmware_elf().read_bytes()


@needs_compiler
def test_the_compilers_words_are_told(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="GREETING"):
        build(tmp_path, ["GREETING=nothing that compiles"])


def test_a_missing_compiler_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CompilerMissing, match="gcc-riscv64-unknown-elf"):
        build(tmp_path)


def test_reserved_bytes_have_a_place_in_the_header() -> None:
    assert "uint8_t reserved_15[13];" in protocol_header()
