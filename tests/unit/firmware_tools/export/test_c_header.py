"""The C header: compiled by what is there, every value equal to the declarations, every name pinned."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from driver_shim.protocol.management_registers import FLASH, MANAGEMENT_BLOCKS
from driver_shim.protocol.register_kinds import Access, Field, Register, RegisterMap
from driver_shim.protocol.registers import CONTRACT_MAJOR, CONTRACT_MINOR, REGISTERS, Post
from firmware_tools.export.c_header import c_header
from firmware_tools.export.errors import NameClash
from firmware_tools.export.maps import MAPS, ExportedBlock, ExportedMap
from tests.support.needs import needs_program, require_program
from tests.support.paths import DATA
from tests.support.waiting import PATIENCE_S

GOLDEN = DATA / "register_names.txt"
ALL = list(MAPS.values())
STRICT = ("-Wall", "-Wextra", "-Werror", "-pedantic")
FREESTANDING = ("-ffreestanding", "-nostdlib", "-march=rv32imac", "-mabi=ilp32")
HOST_COMPILER = next((name for name in ("gcc", "cc", "clang") if shutil.which(name)), "gcc")
COMPILERS = {
    "c99": (HOST_COMPILER, "-xc", "-std=c99", *STRICT),
    "c++11": ("g++", "-xc++", "-std=c++11", *STRICT),
    "firmware": ("riscv64-unknown-elf-gcc", "-xc", "-std=c99", *STRICT, *FREESTANDING),
}
needs_compiler = needs_program(HOST_COMPILER)


def macros(header: str) -> dict[str, str]:
    """Name → text of every macro that has a value."""
    return dict(re.findall(r"^#define (NPU_\w+) (\S+)$", header, re.MULTILINE))


def values(header: str) -> dict[str, int]:
    return {name: int(text.rstrip("ul"), 0) for name, text in macros(header).items()}


def compile_source(command: Sequence[str], source: str, folder: Path, *arguments: str) -> None:
    done = subprocess.run(
        [*command, "-I", str(folder), *arguments, "-"],
        input=source,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, done.stderr


def lines(table: dict[str, int]) -> str:
    return "".join(f"{name} {value:#x}\n" for name, value in table.items())


@needs_compiler
def test_what_a_compiled_program_prints_equals_the_declarations(tmp_path: Path) -> None:
    header = c_header(ALL)
    (tmp_path / "registers.h").write_text(header, "utf-8")
    prints = "".join(f'    printf("%s %llx\\n", "{name}", (unsigned long long){name});\n' for name in macros(header))
    source = f'#include <stdio.h>\n#include "registers.h"\nint main(void) {{\n{prints}    return 0;\n}}\n'
    program = tmp_path / "program"
    compile_source(COMPILERS["c99"], source, tmp_path, "-o", str(program))
    output = subprocess.run([str(program)], capture_output=True, text=True, check=True, timeout=PATIENCE_S).stdout
    printed = {name: int(value, 16) for name, value in (line.split() for line in output.splitlines())}
    declared = declared_values()
    assert {name: printed[name] for name in declared} == declared
    assert printed == values(header)


def declared_values() -> dict[str, int]:
    """What the header must say of the registers, put together here without its help."""
    found = {"NPU_CONTRACT_MAJOR": CONTRACT_MAJOR, "NPU_CONTRACT_MINOR": CONTRACT_MINOR}
    found.update({f"NPU_POST_{post.name}": int(post) for post in Post})
    for block in MANAGEMENT_BLOCKS:
        found[f"NPU_{block.name}_BASE".upper()] = block.base
        if block.interrupt:
            found[f"NPU_{block.name}_INTERRUPT".upper()] = block.interrupt
    for name, registers in [("bar0", REGISTERS), *((block.name, block.registers) for block in MANAGEMENT_BLOCKS)]:
        for register in registers:
            stem, _, number = register.name.rpartition("_")
            if number.isdigit() and number != "0":
                continue
            start = f"NPU_{name}_{stem if number == '0' else register.name}".upper()
            found[f"{start}_OFFSET"] = register.offset
            found[f"{start}_RESET"] = register.reset_value
            for field in register.fields.values():
                found[f"{start}_{field.name}_LSB".upper()] = field.lsb
                found[f"{start}_{field.name}_WIDTH".upper()] = field.width
                found[f"{start}_{field.name}_MASK".upper()] = field.mask
    return found


@pytest.mark.parametrize("maps", [ALL, *([each] for each in ALL)], ids=["all", *MAPS])
@pytest.mark.parametrize("dialect", COMPILERS)
def test_it_compiles_without_a_warning_and_holds_at_compile_time(
    dialect: str, maps: list[ExportedMap], tmp_path: Path
) -> None:
    command = COMPILERS[dialect]
    require_program(command[0])
    header = c_header(maps)
    (tmp_path / "registers.h").write_text(header, "utf-8")
    checks = "".join(
        f"extern char check_{index}[{name} == {value:#x}ull ? 1 : -1];\n"
        for index, (name, value) in enumerate(values(header).items())
    )
    twice = '#include "registers.h"\n#include "registers.h"\n'
    compile_source(command, f"{twice}{checks}", tmp_path, "-Wno-long-long", "-c", "-o", str(tmp_path / "unit.o"))


def test_names_and_values_are_those_that_others_compile_against() -> None:
    renew = f"if that is meant: python -m {__name__}"
    assert GOLDEN.read_text("utf-8").splitlines() == lines(values(c_header(ALL))).splitlines(), renew


def test_a_rename_is_found() -> None:
    renamed = c_header(ALL).replace("NPU_FLASH_COMMAND_OFFSET", "NPU_FLASH_ORDER_OFFSET")
    assert lines(values(renamed)) != GOLDEN.read_text("utf-8")


def test_each_declaration_is_explained() -> None:
    header = " ".join(re.sub(r"\n \*", "", c_header([MAPS["management"]])).split())
    for register in FLASH.registers:
        assert register.doc in header
        assert all(field.doc in header for field in register.fields.values())
    assert "command.operation (WO): See FlashCommand. Values: NPU_FLASH_COMMAND_*." in header
    assert "page (64 × 32 bits, cold reset, valid from power-on): What PROGRAM_PAGE writes" in header


def test_headers_of_different_maps_can_be_included_together() -> None:
    guards = {re.findall(r"#ifndef (\w+)", c_header([each]))[0] for each in ALL}
    assert guards == {"NPU_HOST_REGISTERS_H", "NPU_MANAGEMENT_REGISTERS_H"}


def one_map(*registers: Register) -> ExportedMap:
    block = ExportedBlock("x", 0, RegisterMap(0x100, *registers), "A block.", None, {})
    return ExportedMap("tiny", "A map", (block,), {})


def test_joined_names_that_meet_are_refused() -> None:
    field = Field("c", 0, 1, Access.RW, "A field.")
    with pytest.raises(NameClash, match="NPU_X_A_B_C_LSB: two declarations"):
        c_header([one_map(Register("a_b", 0, 4, "A.", field), Register("a", 4, 4, "B.", field._replace(name="b_c")))])


@needs_compiler
def test_no_text_can_end_a_comment(tmp_path: Path) -> None:
    header = c_header([one_map(Register("a", 0, 4, "Nasty: */ int x; /* and more."))])
    compile_source(COMPILERS["c99"], header + "typedef int used;\n", tmp_path, "-fsyntax-only")


if __name__ == "__main__":
    GOLDEN.write_text(lines(values(c_header(ALL))), "utf-8")
