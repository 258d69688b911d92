"""The register maps as SystemRDL 2.0, from which other tools make UVM models, IP-XACT, headers and pages."""

from __future__ import annotations

import enum
from collections.abc import Iterator, Sequence

from driver_shim.protocol.register_kinds import Access, Field, Register
from driver_shim.protocol.register_runs import RegisterRun, runs
from firmware_tools.export.maps import CONTRACT, Enumeration, ExportedBlock, ExportedMap, enumerations
from firmware_tools.export.output import MARK

PROPERTIES = {
    "contract": ("string", "addrmap"),
    "interrupt_line": ("longint unsigned", "regfile"),
    "reset_domain": ("string", "reg"),
    "valid_from": ("string", "reg"),
}
"""Our own properties, for what the language has no word for: name → (type, component)."""

ACCESS = {
    Access.RO: "sw = r; hw = w;",
    Access.RW: "sw = rw; hw = r;",
    Access.RW1C: "sw = rw; onwrite = woclr; hw = w;",
    Access.W1S: "sw = rw; onwrite = woset; hw = rw;",
    Access.WO: "sw = w; hw = r;",
}
"""What software and hardware do to a field."""

_RESERVED = """
    abstract accesstype addressingtype addrmap alias all alternate bit boolean bothedge byte compact component
    componentwidth constraint default encode enum external false field fullalign hw inside int internal level longint
    mem na negedge nonsticky number onreadtype onwritetype posedge precedencetype property r rclr real ref reg regalign
    regfile rset ruser rw rw1 shortint shortreal signal signed string struct sw this true type unsigned w w1 wclr with
    within woclr woset wot wr wset wuser wzc wzs wzt
"""
KEYWORDS = frozenset(_RESERVED.split())
"""A name that is one of them is written with a backslash before it."""


def system_rdl(maps: Sequence[ExportedMap]) -> str:
    """The description of these maps, one top-level `addrmap` each."""
    return "\n".join(_lines(maps)) + "\n"


def _lines(maps: Sequence[ExportedMap]) -> Iterator[str]:
    names = ", ".join(each.name for each in maps)
    yield f"// NPU register map ({names}), contract {CONTRACT}."
    yield f"// {MARK}; edit the declarations instead."
    yield ""
    for name, (kind, component) in PROPERTIES.items():
        yield f"property {name} {{ type = {kind}; component = {component}; }};"
    for enumeration in enumerations(maps):
        if not _are_flags(enumeration):
            yield ""
            yield from _enumeration(enumeration)
    for each in maps:
        yield ""
        yield f"addrmap {_identifier(each.name)} {{"
        yield f"    name = {_string(each.title)};"
        yield f"    contract = {_string(CONTRACT)};"
        for block in each.blocks:
            yield from _block(block)
        yield "};"


def _enumeration(kind: Enumeration) -> Iterator[str]:
    yield f"enum {_identifier(kind.__name__)} {{"
    for member in kind:
        yield f"    {_identifier(member.name or '')} = {int(member)};"
    yield "};"


def _block(block: ExportedBlock) -> Iterator[str]:
    yield ""
    yield "    regfile {"
    yield f"        desc = {_string(block.title)};"
    if block.interrupt is not None:
        yield f"        interrupt_line = {block.interrupt};"
    for run in runs(block.registers):
        yield from _registers(block, run)
    yield f"    }} {_identifier(block.name)} @ {block.base:#x};"


def _registers(block: ExportedBlock, run: RegisterRun) -> Iterator[str]:
    register = run.first
    yield "        reg {"
    yield f"            desc = {_string(register.doc)};"
    yield f"            regwidth = {8 * register.size};"
    yield f"            reset_domain = {_string(register.domain.value)};"
    yield f"            valid_from = {_string(register.valid_from.value)};"
    for field in register.fields.values():
        encode = _encode(block.values_of(register.name, field.name))
        bits = f"{_identifier(field.name)}[{field.lsb + field.width - 1}:{field.lsb}]"
        yield f"            field {{ desc = {_string(_text(block, register, field))}; {ACCESS[field.access]}{encode} }}"
        yield f"                {bits} = {field.width}'h{field.reset:x};"
    place = (
        f"[{run.length}] @ {register.offset:#x} += {register.size:#x}" if run.length > 1 else f" @ {register.offset:#x}"
    )
    yield f"        }} {_identifier(run.name)}{place};"


def _encode(kind: Enumeration | None) -> str:
    return f" encode = {_identifier(kind.__name__)};" if kind and not _are_flags(kind) else ""


def _text(block: ExportedBlock, register: Register, field: Field) -> str:
    """A field's sentence; the names of flags join it, because `encode` is for whole values."""
    kind = block.values_of(register.name, field.name)
    if kind is None or not _are_flags(kind):
        return field.doc
    return f"{field.doc} Bits: {', '.join(f'{int(flag):#x} {flag.name}' for flag in kind)}."


def _are_flags(kind: Enumeration) -> bool:
    return issubclass(kind, enum.IntFlag)


def _identifier(name: str) -> str:
    return f"\\{name}" if name in KEYWORDS else name


def _string(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
