"""SystemRDL: compiled by another project's compiler, it says what the declarations say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from systemrdl import RDLCompiler
from systemrdl.node import AddrmapNode, RegNode
from systemrdl.rdltypes import AccessType, OnWriteType

from driver_shim.protocol.register_kinds import Access, Field, Register, RegisterMap, ResetDomain, ValidFrom
from driver_shim.protocol.registers import CONTRACT_MAJOR, CONTRACT_MINOR, REGISTERS, Post
from firmware_tools.export.maps import MAPS, ExportedBlock, ExportedMap
from firmware_tools.export.system_rdl import KEYWORDS, system_rdl

ALL = list(MAPS.values())
ACCESS_OF = {
    (AccessType.r, None): Access.RO,
    (AccessType.rw, None): Access.RW,
    (AccessType.rw, OnWriteType.woclr): Access.RW1C,
    (AccessType.rw, OnWriteType.woset): Access.W1S,
    (AccessType.w, None): Access.WO,
}


class Strict:
    """Prints nothing: a warning is a failure."""

    def print_message(self, severity: Any, text: str, src_ref: Any) -> None:
        raise AssertionError(text)


def compiled(maps: list[ExportedMap], name: str, folder: Path) -> AddrmapNode:
    path = folder / "registers.rdl"
    path.write_text(system_rdl(maps), "utf-8")
    compiler = RDLCompiler(message_printer=Strict())
    compiler.compile_file(str(path))
    return compiler.elaborate(name).top


def flat_name(node: RegNode) -> str:
    """`data[3]` is the declaration's `data_3`."""
    return f"{node.inst_name}_{node.current_idx[0]}" if node.is_array else str(node.inst_name)


def found_registers(block: Any) -> dict[str, Register]:
    """The block's registers as declarations again."""
    found = {}
    for node in block.registers(unroll=True):
        fields = [
            Field(
                field.inst_name,
                field.lsb,
                field.width,
                ACCESS_OF[field.get_property("sw"), field.get_property("onwrite")],
                field.get_property("desc"),
                field.get_property("reset"),
            )
            for field in node.fields()
        ]
        assert all(field.msb == field.lsb + field.width - 1 for field in node.fields())
        name = flat_name(node)
        found[name] = Register(
            name,
            node.absolute_address - block.absolute_address,
            node.get_property("regwidth") // 8,
            node.get_property("desc"),
            *fields,
            domain=ResetDomain(node.get_property("reset_domain")),
            valid_from=ValidFrom(node.get_property("valid_from")),
        )
    return found


def facts(register: Register) -> tuple[Any, ...]:
    fields = [field._replace(doc=field.doc.partition(" Bits: ")[0]) for field in register.fields.values()]
    return (register.offset, register.size, register.doc, register.domain, register.valid_from, fields)


@pytest.mark.parametrize("name", MAPS)
def test_it_round_trips(name: str, tmp_path: Path) -> None:
    top = compiled(ALL, name, tmp_path)
    assert top.get_property("contract") == f"{CONTRACT_MAJOR}.{CONTRACT_MINOR}"
    blocks = {node.inst_name: node for node in top.children()}
    assert list(blocks) == [block.name for block in MAPS[name].blocks]
    for block in MAPS[name].blocks:
        node = blocks[block.name]
        assert (node.absolute_address, node.get_property("desc")) == (block.base, block.title)
        assert node.get_property("interrupt_line", default=None) == block.interrupt
        found = found_registers(node)
        assert list(found) == list(block.registers.by_name)
        for register in block.registers:
            assert facts(found[register.name]) == facts(register)


def test_values_of_fields_have_names(tmp_path: Path) -> None:
    top = compiled(ALL, "host", tmp_path)
    encode = top.find_by_path("bar0.boot_progress.post_code").get_property("encode")
    assert {member.name: member.value for member in encode} == {post.name: int(post) for post in Post}
    assert "0x1 SHADOW_DOORBELLS" in top.find_by_path("bar0.features.bits").get_property("desc")


def test_it_is_one_description_of_all_maps_or_of_one(tmp_path: Path) -> None:
    assert compiled([MAPS["host"]], "host", tmp_path).find_by_path("bar0.identity") is not None
    assert "addrmap management" not in system_rdl([MAPS["host"]])
    assert len(list(REGISTERS)) > 1


def test_names_that_are_reserved_words_and_texts_with_quotes_survive(tmp_path: Path) -> None:
    text = 'Says "no" to C:\\temp.'
    registers = [
        Register(word, 8 * index, 8, text, Field(word, 0, 1, Access.RW, text), Field(word + "_", 1, 1, Access.RW, text))
        for index, word in enumerate(sorted(KEYWORDS))
    ]
    block = ExportedBlock("reg", 0x100, RegisterMap(0x1000, *registers), text, None, {})
    top = compiled([ExportedMap("addrmap", text, (block,), {})], "addrmap", tmp_path)
    found = found_registers(next(iter(top.children())))
    assert {name: facts(each) for name, each in found.items()} == {each.name: facts(each) for each in registers}
