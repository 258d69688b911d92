"""Reading a program container: everything about its form is checked, nothing about its meaning."""

from __future__ import annotations

import enum
import zlib
from collections.abc import Sequence
from typing import Any, TypeVar

from driver_shim.protocol.layout import Layout
from driver_shim.protocol.program import (
    ALIGNMENT,
    BINDING,
    COMMAND,
    COMMAND_ALIGNMENT,
    CONTAINER_MAJOR,
    CONTAINER_MINOR,
    ENTRY,
    HEADER,
    MAGIC,
    MAX_BINDINGS,
    MAX_COMMANDS,
    MAX_CONTAINER_BYTES,
    MAX_DIMENSION,
    MAX_ENTRIES,
    MAX_NAME_BYTES,
    MAX_OPERANDS,
    MAX_REGION_BYTES,
    MAX_TENSOR_BYTES,
    MAX_TENSORS,
    NO_TENSOR,
    SECTION,
    STORAGE_OF,
    TENSOR,
    Binding,
    Command,
    Direction,
    EntryPoint,
    Program,
    ProgramError,
    Section,
    Storage,
    Tensor,
    TensorType,
    align_up,
)
from driver_shim.protocol.program_commands import ATTRIBUTES, MAX_RANK, OPERANDS, CommandKind
from driver_shim.protocol.registers import CONTRACT_MAJOR, CONTRACT_MINOR
from driver_shim.protocol.types import PACKED, WireType

_E = TypeVar("_E", bound=enum.IntEnum)


def parse(image: bytes | bytearray | memoryview) -> Program:
    """Take a container apart. Raises ProgramError for anything malformed, nothing else.

    Time and memory are bounded by the size of the container and the limits of `program.py`.
    """
    data = memoryview(image).cast("B")
    header = _parse_header(data)
    sections = _parse_sections(data, header)
    tensors = _parse_tensors(*sections[Section.TENSORS])
    commands = _parse_commands(*sections[Section.COMMANDS], len(tensors))
    names = sections[Section.NAMES][0]
    bindings = _parse_bindings(*sections[Section.BINDINGS], names, tensors)
    entries = _parse_entries(*sections[Section.ENTRIES], names, commands, bindings, tensors)
    return Program(tensors, entries)


def _entry(layout: Layout, data: memoryview, offset: int, where: str) -> Any:
    """One structure, its reserved bytes checked."""
    record = data[offset : offset + layout.size]
    if len(record) != layout.size:
        raise ProgramError(f"{where}: truncated, {len(record)} of {layout.size} bytes")
    if not layout.reserved_clear(bytes(record)):
        raise ProgramError(f"{where}: reserved bytes are not zero")
    return layout.parse(record)


def _parse_header(data: memoryview) -> Any:
    header = _entry(HEADER, data, 0, "header")
    if header.magic != MAGIC:
        raise ProgramError(f"header: magic is {header.magic!r}, expected {MAGIC!r}")
    version = (header.container_major, header.container_minor)
    if version[0] != CONTAINER_MAJOR or version[1] > CONTAINER_MINOR:
        raise ProgramError(f"header: container version {version}, this device reads {CONTAINER_MAJOR, CONTAINER_MINOR}")
    contract = (header.contract_major, header.contract_minor)
    if contract[0] != CONTRACT_MAJOR or contract[1] > CONTRACT_MINOR:
        raise ProgramError(f"header: contract version {contract}, this device has {CONTRACT_MAJOR, CONTRACT_MINOR}")
    if header.total_bytes != len(data) or len(data) > MAX_CONTAINER_BYTES:
        raise ProgramError(
            f"header: total_bytes {header.total_bytes}, container has {len(data)}; at most {MAX_CONTAINER_BYTES}"
        )
    at = HEADER.offset_of("checksum")
    found = zlib.crc32(data[at + 4 :], zlib.crc32(bytes(4), zlib.crc32(data[:at])))
    if found != header.checksum:
        raise ProgramError(f"header: checksum {header.checksum:#010x}, contents have {found:#010x}")
    return header


def _parse_sections(data: memoryview, header: Any) -> dict[Section, tuple[memoryview, int]]:
    """(bytes, entry count) of every section."""
    if header.section_count != len(Section):
        raise ProgramError(f"header: {header.section_count} sections, expected {len(Section)}")
    sections: dict[Section, tuple[memoryview, int]] = {}
    end = HEADER.size + SECTION.size * len(Section)
    for index, kind in enumerate(Section):
        entry = _entry(SECTION, data, HEADER.size + SECTION.size * index, f"section {index}")
        if entry.kind != kind:
            raise ProgramError(f"section {index}: kind {entry.kind}, expected {kind.name}")
        start = align_up(end)
        if entry.offset != start or entry.size > len(data) - start:
            raise ProgramError(
                f"section {kind.name}: {entry.size} bytes at {entry.offset}; expected at {start} within {len(data)}"
            )
        if any(data[end:start]):
            raise ProgramError(f"section {kind.name}: padding before it is not zero")
        end = entry.offset + entry.size
        sections[kind] = (data[entry.offset : end], entry.count)
    if align_up(end) != len(data) or any(data[end:]):
        raise ProgramError(f"container: {len(data) - end} bytes after the last section, expected zero padding")
    size, count = len(sections[Section.NAMES][0]), sections[Section.NAMES][1]
    if count != size:
        raise ProgramError(f"section NAMES: count {count}, expected its size {size}")
    return sections


def _table(data: memoryview, count: int, entry_bytes: int, limit: int, what: str) -> range:
    """Indices of a table of fixed-size entries."""
    if count > limit or count * entry_bytes != len(data):
        raise ProgramError(f"{what}: {count} entries of {entry_bytes} bytes in {len(data)} bytes; at most {limit}")
    return range(count)


def _parse_tensors(data: memoryview, count: int) -> tuple[Tensor, ...]:
    tensors = []
    for index in _table(data, count, TENSOR.size, MAX_TENSORS, "tensors"):
        where = f"tensor {index}"
        entry = _entry(TENSOR, data, index * TENSOR.size, where)
        if entry.rank > MAX_RANK:
            raise ProgramError(f"{where}: rank {entry.rank} exceeds {MAX_RANK}")
        shape = tuple(entry.shape[: entry.rank])
        if not all(extent <= MAX_DIMENSION for extent in shape) or any(entry.shape[entry.rank :]):
            raise ProgramError(f"{where}: shape {tuple(entry.shape)} at rank {entry.rank}")
        tensor_type = TensorType(_member(WireType, entry.dtype, where), shape)
        if tensor_type.size_bytes != entry.size or entry.size > MAX_TENSOR_BYTES:
            raise ProgramError(f"{where}: {tensor_type} is {tensor_type.size_bytes} bytes, the entry says {entry.size}")
        storage = _member(Storage, entry.storage, where)
        if tensor_type.dtype in PACKED and storage is not Storage.CONSTANT:
            raise ProgramError(f"{where}: {tensor_type} in storage {storage.name.lower()}; only constants can be that")
        if storage is not Storage.WORKSPACE and entry.offset:
            raise ProgramError(f"{where}: {storage.name.lower()} tensors have offset 0, found {entry.offset}")
        if entry.offset % ALIGNMENT or entry.offset > MAX_REGION_BYTES:
            raise ProgramError(f"{where}: offset {entry.offset} is no multiple of {ALIGNMENT} up to {MAX_REGION_BYTES}")
        tensors.append(Tensor(tensor_type, storage, entry.offset))
    return tuple(tensors)


def _member(kind: type[_E], value: int, where: str) -> _E:
    try:
        return kind(value)
    except ValueError:
        raise ProgramError(f"{where}: {value} is no {kind.__name__}") from None


def _parse_commands(data: memoryview, count: int, tensor_count: int) -> tuple[Command, ...]:
    if count > MAX_COMMANDS:
        raise ProgramError(f"commands: {count} entries; at most {MAX_COMMANDS}")
    commands = []
    offset = 0
    for index in range(count):
        command, offset = _parse_command(data, offset, tensor_count, f"command {index}")
        commands.append(command)
    if offset != len(data):
        raise ProgramError(f"commands: {count} entries take {offset} bytes, the section has {len(data)}")
    return tuple(commands)


def _parse_command(data: memoryview, offset: int, tensor_count: int, where: str) -> tuple[Command, int]:
    head = _entry(COMMAND, data, offset, where)
    kind = _member(CommandKind, head.kind, where)
    layout = ATTRIBUTES[kind]
    if head.attribute_bytes != layout.size:
        raise ProgramError(f"{where}: {head.attribute_bytes} attribute bytes, {kind.name} has {layout.size}")
    offset += COMMAND.size
    attributes = _entry(layout, data, offset, f"{where} ({kind.name})")
    offset += layout.size
    ids_bytes = 4 * (head.input_count + head.output_count)
    padded = data[offset : offset + align_up(ids_bytes, COMMAND_ALIGNMENT)]
    if len(padded) < align_up(ids_bytes, COMMAND_ALIGNMENT) or any(padded[ids_bytes:]):
        raise ProgramError(f"{where}: operand ids truncated or padded with other than zeros")
    ids = padded[:ids_bytes].cast("I").tolist() if ids_bytes else []
    operands = OPERANDS[kind]
    most = MAX_OPERANDS if operands.repeats else len(operands.required) + len(operands.optional)
    inputs_fit = len(operands.required) <= head.input_count <= most
    if not inputs_fit or not 0 < head.output_count <= operands.outputs:
        raise ProgramError(f"{where}: {kind.name} with {head.input_count} inputs and {head.output_count} outputs")
    inputs: list[int | None] = []
    for position, tensor in enumerate(ids[: head.input_count]):
        absent = tensor == NO_TENSOR and not operands.repeats and position >= len(operands.required)
        if not absent and tensor >= tensor_count:
            raise ProgramError(f"{where}: operand {position} is tensor {tensor} of {tensor_count}")
        inputs.append(None if absent else tensor)
    outputs = tuple(ids[head.input_count :])
    if any(tensor >= tensor_count for tensor in outputs):
        raise ProgramError(f"{where}: outputs {outputs} of {tensor_count} tensors")
    return Command(kind, attributes, tuple(inputs), outputs), offset + len(padded)


def _parse_bindings(
    data: memoryview, count: int, names: memoryview, tensors: Sequence[Tensor]
) -> tuple[tuple[Direction, Binding], ...]:
    bindings: list[tuple[Direction, Binding]] = []
    for index in _table(data, count, BINDING.size, MAX_ENTRIES * MAX_BINDINGS, "bindings"):
        where = f"binding {index}"
        entry = _entry(BINDING, data, index * BINDING.size, where)
        direction = _member(Direction, entry.direction, where)
        wanted = STORAGE_OF[direction]
        if entry.tensor >= len(tensors) or tensors[entry.tensor].storage is not wanted:
            raise ProgramError(f"{where}: tensor {entry.tensor} is no {wanted.name.lower()} tensor")
        bindings.append((direction, Binding(_name(entry, names, where), entry.tensor)))
    bound = {binding.tensor for _, binding in bindings}
    for index, tensor in enumerate(tensors):
        if tensor.storage in STORAGE_OF.values() and index not in bound:
            raise ProgramError(f"bindings: tensor {index} is not bound")
    return tuple(bindings)


def _name(entry: Any, names: memoryview, where: str) -> str:
    """The name of a binding or an entry point."""
    if not 0 < entry.name_bytes <= MAX_NAME_BYTES or entry.name + entry.name_bytes > len(names):
        raise ProgramError(f"{where}: name of {entry.name_bytes} bytes at {entry.name} of {len(names)}")
    try:
        return str(names[entry.name : entry.name + entry.name_bytes], "utf-8")
    except UnicodeDecodeError as error:
        raise ProgramError(f"{where}: its name is no UTF-8 ({error.reason})") from None


def _parse_entries(
    data: memoryview,
    count: int,
    names: memoryview,
    commands: Sequence[Command],
    bindings: Sequence[tuple[Direction, Binding]],
    tensors: Sequence[Tensor],
) -> tuple[EntryPoint, ...]:
    entries: list[EntryPoint] = []
    command, binding = 0, 0
    for index in _table(data, count, ENTRY.size, MAX_ENTRIES, "entries"):
        where = f"entry {index}"
        entry = _entry(ENTRY, data, index * ENTRY.size, where)
        if (entry.first_command, entry.first_binding) != (command, binding):
            raise ProgramError(
                f"{where}: begins with command {entry.first_command} and binding {entry.first_binding}; expected"
                f" {command} and {binding}"
            )
        command, binding = command + entry.command_count, binding + entry.binding_count
        if command > len(commands) or binding > len(bindings) or entry.binding_count > MAX_BINDINGS:
            raise ProgramError(
                f"{where}: ends with command {command} of {len(commands)} and binding {binding} of {len(bindings)};"
                f" at most {MAX_BINDINGS} bindings"
            )
        if entry.workspace_bytes > MAX_REGION_BYTES:
            raise ProgramError(f"{where}: workspace_bytes {entry.workspace_bytes} exceeds {MAX_REGION_BYTES}")
        groups = _groups(bindings[entry.first_binding : binding], where)
        name = _name(entry, names, where)
        if any(name == other.name for other in entries):
            raise ProgramError(f"{where}: the name {name!r} occurs twice")
        point = EntryPoint(
            tuple(commands[entry.first_command : command]),
            groups[Direction.INPUT],
            groups[Direction.OUTPUT],
            entry.workspace_bytes,
            groups[Direction.STATE],
            name,
        )
        _check_reach(point, tensors, where)
        entries.append(point)
    if not entries or command != len(commands) or binding != len(bindings):
        raise ProgramError(
            f"entries: {len(entries)} take {command} of {len(commands)} commands, {binding} of {len(bindings)} bindings"
        )
    return tuple(entries)


def _groups(bindings: Sequence[tuple[Direction, Binding]], where: str) -> dict[Direction, tuple[Binding, ...]]:
    """The bindings of one entry point by what they are for."""
    directions = [direction for direction, _ in bindings]
    if directions != sorted(directions):
        raise ProgramError(f"{where}: bindings are not in the order inputs, outputs, states")
    if not {Direction.OUTPUT, Direction.STATE} & set(directions):
        raise ProgramError(f"{where}: no output and no state")
    groups: dict[Direction, list[Binding]] = {direction: [] for direction in Direction}
    names: set[tuple[Direction, str]] = set()
    bound: set[int] = set()
    for direction, binding in bindings:
        if binding.tensor in bound:
            raise ProgramError(f"{where}: tensor {binding.tensor} is bound twice")
        if (direction, binding.name) in names:
            raise ProgramError(f"{where}: the name {binding.name!r} occurs twice")
        bound.add(binding.tensor)
        names.add((direction, binding.name))
        groups[direction].append(binding)
    return {direction: tuple(group) for direction, group in groups.items()}


def _check_reach(entry: EntryPoint, tensors: Sequence[Tensor], where: str) -> None:
    """Raise ProgramError unless every tensor of its commands is there when the entry point runs."""
    bound = {binding.tensor for group in entry.bindings().values() for binding in group}
    named = {tensor for command in entry.commands for tensor in (*command.inputs, *command.outputs)} - {None}
    for index in sorted(tensor for tensor in named if tensor is not None):
        tensor = tensors[index]
        if tensor.storage in STORAGE_OF.values() and index not in bound:
            raise ProgramError(f"{where}: tensor {index} is not bound")
        end = tensor.offset + tensor.type.size_bytes
        if tensor.storage is Storage.WORKSPACE and end > entry.workspace_bytes:
            raise ProgramError(
                f"{where}: tensor {index} of {tensor.type.size_bytes} bytes at {tensor.offset}; must lie within"
                f" {entry.workspace_bytes}"
            )
