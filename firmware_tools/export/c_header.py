"""The register maps as a C header: macros only, so that C99, C++ and freestanding firmware can include it."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Sequence

from driver_shim.protocol.register_kinds import Field
from driver_shim.protocol.register_runs import RegisterRun, runs
from driver_shim.protocol.registers import CONTRACT_MAJOR, CONTRACT_MINOR
from firmware_tools.export.errors import NameClash
from firmware_tools.export.maps import CONTRACT, Enumeration, ExportedBlock, ExportedMap, enumerations
from firmware_tools.export.output import MARK

_PREFIX = "NPU"
_COLUMNS = 100
_OFFSET_BITS = 16
_LONG_BITS = 32
"""Wider numbers are `unsigned long long`: `unsigned` holds no more on any core that compiles this."""


def c_header(maps: Sequence[ExportedMap]) -> str:
    """The header of these maps. Raises NameClash where two macros would have one name."""
    guard = "_".join([_PREFIX, *(each.name.upper() for each in maps), "REGISTERS_H"])
    names = ", ".join(each.name for each in maps)
    head = _comment(f"NPU register map ({names}), contract {CONTRACT}.", f"{MARK}; edit the declarations instead.")
    lines = [*head, f"#ifndef {guard}", f"#define {guard}", "", *_body(maps), "", f"#endif /* {guard} */"]
    _refuse_clashes(lines)
    return "\n".join(lines) + "\n"


def _body(maps: Sequence[ExportedMap]) -> Iterator[str]:
    yield _define(_name("contract", "major"), str(CONTRACT_MAJOR) + "u")
    yield _define(_name("contract", "minor"), str(CONTRACT_MINOR) + "u")
    for kind in enumerations(maps):
        yield from _enumeration(kind)
    for each in maps:
        yield ""
        yield from _comment(f"===== {each.name}: {each.title} =====")
        for name, value in each.constants.items():
            yield _define(_name(name), _number(value, _LONG_BITS))
        for block in each.blocks:
            yield from _block(block)


def _enumeration(kind: Enumeration) -> Iterator[str]:
    yield ""
    yield from _comment(f"{kind.__name__}: {_first_line(kind)}")
    for member in kind:
        yield _define(_name(_snake(kind), member.name or ""), _number(int(member), _LONG_BITS))


def _block(block: ExportedBlock) -> Iterator[str]:
    yield ""
    yield from _comment(f"--- {block.name}: {block.title}")
    yield _define(_name(block.name, "base"), _number(block.base, _LONG_BITS))
    if block.interrupt is not None:
        yield _define(_name(block.name, "interrupt"), f"{block.interrupt}u")
    for run in runs(block.registers):
        yield ""
        yield from _registers(block, run)


def _registers(block: ExportedBlock, run: RegisterRun) -> Iterator[str]:
    register, bits = run.first, 8 * run.first.size
    times = f"{run.length} × " if run.length > 1 else ""
    when = f"{times}{bits} bits, {register.domain.value} reset, valid from {register.valid_from.value}"
    yield from _comment(f"{run.name} ({when}): {register.doc}")
    yield _define(_name(block.name, run.name, "offset"), _number(register.offset, _OFFSET_BITS))
    if run.length > 1:
        yield _define(_name(block.name, run.name, "count"), f"{run.length}u")
        yield _define(_name(block.name, run.name, "stride"), f"{register.size}u")
    yield _define(_name(block.name, run.name, "reset"), _number(register.reset_value, bits))
    for field in register.fields.values():
        yield from _comment(_field_text(block, run, field))
        start = (block.name, run.name, field.name)
        yield _define(_name(*start, "lsb"), f"{field.lsb}u")
        yield _define(_name(*start, "width"), f"{field.width}u")
        yield _define(_name(*start, "mask"), _number(field.mask, bits))


def _field_text(block: ExportedBlock, run: RegisterRun, field: Field) -> str:
    kind = block.values_of(run.first.name, field.name)
    values = f" Values: {_name(_snake(kind), '*')}." if kind else ""
    return f"{run.name}.{field.name} ({field.access.value}): {field.doc}{values}"


def _comment(*paragraphs: str) -> Iterator[str]:
    # a comment must not end early, nor look as if another began in it (-Wcomment)
    texts = [text.replace("*/", "* /").replace("/*", "/ *") for text in paragraphs]
    lines = [line for text in texts for line in textwrap.wrap(text, _COLUMNS - len("/*  */"))]
    yield "/* " + "\n * ".join(lines) + " */"


def _define(name: str, value: str) -> str:
    return f"#define {name} {value}"


def _number(value: int, bits: int) -> str:
    digits = bits // 4
    suffix = "ull" if bits > _LONG_BITS or value >> _LONG_BITS else "u"
    return f"0x{value:0{digits}x}{suffix}"


def _name(*parts: str) -> str:
    return "_".join([_PREFIX, *parts]).upper()


def _snake(kind: Enumeration) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", kind.__name__)


def _first_line(kind: Enumeration) -> str:
    return (kind.__doc__ or "").partition("\n")[0]


def _refuse_clashes(lines: list[str]) -> None:
    """Joined names can meet: register `a_b`, field `c` and register `a`, field `b_c`."""
    seen: set[str] = set()
    for line in lines:
        if line.startswith("#define "):
            name = line.split()[1]
            if name in seen:
                raise NameClash(f"{name}: two declarations get this macro; rename one of them")
            seen.add(name)
