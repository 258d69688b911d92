"""The program container: a compiled model as bytes, without its weights.

    HEADER · SECTION × 5 · tensors · commands · entries · bindings · names

A program is one table of tensors and any number of entry points over it. A tensor lives in one of the regions that
`Storage` names: constants are bound when the program is loaded, inputs, outputs, states and workspace at each
execution. So weights go to the device once, by ordinary copies, and any number of programs name them.

Sections follow each other in that order, each on a multiple of `ALIGNMENT`, zero-filled between. `build` writes a
container; `program_parsing.parse` reads one and refuses whatever is not exactly of this form. What the commands mean
is checked by the device when it loads a program. Numbers are little-endian.
"""

from __future__ import annotations

import dataclasses
import enum
import math
import zlib
from typing import Any, NamedTuple

from driver_shim.protocol.layout import FieldError, Layout, array, raw, reserved, u8, u16, u32, u64
from driver_shim.protocol.program_commands import ATTRIBUTES, MAX_RANK, CommandKind
from driver_shim.protocol.registers import CONTRACT_MAJOR, CONTRACT_MINOR
from driver_shim.protocol.types import WireType

MAGIC = b"NPUPROG\x1a"
CONTAINER_MAJOR = 2
"""Grows when older readers would misunderstand; a reader refuses another major."""
CONTAINER_MINOR = 1
"""Grows with additions; a reader refuses a newer minor."""

ALIGNMENT = 64
"""Sections, and tensors within the workspace, begin on multiples of this many bytes."""
MAX_CONTAINER_BYTES = 1 << 25
"""As many tensors and commands as there may be take half of it."""
MAX_TENSORS = 1 << 16
MAX_COMMANDS = 1 << 16
MAX_OPERANDS = 255
MAX_ENTRIES = 64
MAX_BINDINGS = 256
"""Of one entry point."""
MAX_NAME_BYTES = 1024
MAX_DIMENSION = (1 << 31) - 1
MAX_TENSOR_BYTES = 1 << 36
MAX_REGION_BYTES = 1 << 40
"""Of a workspace; what a device really has is checked when a program is loaded."""

NO_TENSOR = 0xFFFF_FFFF
"""Operand id of an optional operand that is not there."""

HEADER = Layout(
    "program_header",
    64,
    "magic" / raw(8),
    "container_major" / u16,
    "container_minor" / u16,
    "contract_major" / u16,
    "contract_minor" / u16,
    "total_bytes" / u64,
    "checksum" / u32,
    "section_count" / u32,
    reserved(32),
)
"""`checksum`: CRC-32 (ISO 3309, as zlib's) of the whole container with this field zero."""
SECTION = Layout("program_section", 32, "kind" / u32, "count" / u32, "offset" / u64, "size" / u64, reserved(8))
TENSOR = Layout(
    "program_tensor",
    64,
    "dtype" / u16,
    "storage" / u8,
    "rank" / u8,
    reserved(4),
    "offset" / u64,
    "size" / u64,
    "shape" / array(MAX_RANK, u32),
    reserved(8),
)
"""`offset`: within the workspace; 0 for tensors of other regions, whose places are bound. `size` in bytes: dense,
row-major, unused dimensions zero; 0 where an extent is."""
COMMAND = Layout(
    "program_command", 8, "kind" / u16, "input_count" / u8, "output_count" / u8, "attribute_bytes" / u16, reserved(2)
)
"""Followed by the attributes of its kind, then the u32 tensor ids of inputs and outputs, zero-filled to 8 bytes."""
COMMAND_ALIGNMENT = 8
ENTRY = Layout(
    "program_entry",
    64,
    "first_command" / u32,
    "command_count" / u32,
    "first_binding" / u32,
    "binding_count" / u32,
    "name" / u32,
    "name_bytes" / u32,
    "workspace_bytes" / u64,
    reserved(32),
)
"""An entry point: which commands it runs, in order, and what is bound for them. The entry points of a program take its
commands and its bindings one after the other, all of them."""
BINDING = Layout("program_binding", 16, "tensor" / u32, "direction" / u8, reserved(3), "name" / u32, "name_bytes" / u32)
"""One input, output or state of an entry point, in that order; `name` is an offset into the names section (UTF-8)."""


class Section(enum.IntEnum):
    """Sections of a container, in the order they must have."""

    TENSORS = 1
    COMMANDS = 2
    ENTRIES = 3
    BINDINGS = 4
    NAMES = 5


class Storage(enum.IntEnum):
    """The region that a tensor lives in."""

    CONSTANT = 1
    """Bound when the program is loaded: the i-th constant of the tensor table by the i-th entry of the host's table."""
    WORKSPACE = 2
    """Within the one piece of device memory that each execution brings along; undefined before and after."""
    INPUT = 3
    OUTPUT = 4
    STATE = 5
    """Device memory bound at each execution that commands read and update in place."""


class Direction(enum.IntEnum):
    """What a binding is for."""

    INPUT = 0
    OUTPUT = 1
    STATE = 2


STORAGE_OF = {
    Direction.INPUT: Storage.INPUT,
    Direction.OUTPUT: Storage.OUTPUT,
    Direction.STATE: Storage.STATE,
}
"""Where the tensors of a binding live."""


class ProgramError(ValueError):
    """A container is malformed; the message says what was found where."""


class TensorType(NamedTuple):
    """Element type and shape: all that a command's meaning depends on."""

    dtype: WireType
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        """Number of elements (1 for a scalar)."""
        return math.prod(self.shape)

    @property
    def size_bytes(self) -> int:
        """Bytes of the dense tensor."""
        return self.dtype.stored_bytes(self.elements)

    def __str__(self) -> str:
        return f"{self.dtype.text}[{', '.join(map(str, self.shape))}]"


@dataclasses.dataclass(frozen=True, slots=True)
class Tensor:
    """An entry of the tensor table."""

    type: TensorType
    storage: Storage
    offset: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Command:
    """An entry of the command list."""

    kind: CommandKind
    attributes: Any
    """The fields of `ATTRIBUTES[kind]` by name, as `make_attributes` gives them."""
    inputs: tuple[int | None, ...]
    """Tensor ids in the order of `OPERANDS[kind]`; None for an optional operand that is not there."""
    outputs: tuple[int, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Binding:
    """A named input, output or state."""

    name: str
    tensor: int


@dataclasses.dataclass(frozen=True, slots=True)
class EntryPoint:
    """What one execution runs."""

    commands: tuple[Command, ...]
    inputs: tuple[Binding, ...]
    outputs: tuple[Binding, ...]
    workspace_bytes: int = 0
    states: tuple[Binding, ...] = ()
    name: str = "main"

    def bindings(self) -> dict[Direction, tuple[Binding, ...]]:
        """Inputs, outputs and states, in the order in which they are bound."""
        return {Direction.INPUT: self.inputs, Direction.OUTPUT: self.outputs, Direction.STATE: self.states}


@dataclasses.dataclass(frozen=True, slots=True)
class Program:
    """A container taken apart. Parsing guarantees its form, not yet that its commands make sense."""

    tensors: tuple[Tensor, ...]
    entries: tuple[EntryPoint, ...]

    @property
    def commands(self) -> tuple[Command, ...]:
        """Those of all entry points, one after the other."""
        return tuple(command for entry in self.entries for command in entry.commands)

    @property
    def constants(self) -> tuple[int, ...]:
        """Ids of the constant tensors, in the order in which a load binds them."""
        return tuple(i for i, tensor in enumerate(self.tensors) if tensor.storage is Storage.CONSTANT)


def make_attributes(kind: CommandKind, **values: Any) -> Any:
    """Attributes of a command as a device reads them (so floats have float32's precision).

    Raises FieldError for an unknown field or a value that does not fit.
    """
    layout = ATTRIBUTES[kind]
    return layout.parse(layout.build(**values))


def align_up(size: int, alignment: int = ALIGNMENT) -> int:
    """The next multiple of `alignment`."""
    return -(-size // alignment) * alignment


def seal(container: bytearray) -> None:
    """Write the checksum over a container whose other bytes are final."""
    at = HEADER.offset_of("checksum")
    container[at : at + 4] = bytes(4)
    container[at : at + 4] = zlib.crc32(container).to_bytes(4, "little")


def build(program: Program) -> bytes:
    """Encode a program; equal programs give equal bytes. Raises FieldError for what does not fit."""
    names, bindings, entries = bytearray(), bytearray(), bytearray()
    first_command = first_binding = 0
    for entry in program.entries:
        bound = [(direction, each) for direction, group in entry.bindings().items() for each in group]
        for direction, each in bound:
            at, size = _add_name(names, each.name)
            bindings += BINDING.build(tensor=each.tensor, direction=direction, name=at, name_bytes=size)
        at, size = _add_name(names, entry.name)
        entries += ENTRY.build(
            first_command=first_command,
            command_count=len(entry.commands),
            first_binding=first_binding,
            binding_count=len(bound),
            name=at,
            name_bytes=size,
            workspace_bytes=entry.workspace_bytes,
        )
        first_command += len(entry.commands)
        first_binding += len(bound)
    sections = (
        (Section.TENSORS, len(program.tensors), b"".join(map(_build_tensor, program.tensors))),
        (Section.COMMANDS, first_command, b"".join(map(_build_command, program.commands))),
        (Section.ENTRIES, len(program.entries), entries),
        (Section.BINDINGS, first_binding, bindings),
        (Section.NAMES, len(names), names),
    )
    table = bytearray()
    body = bytearray()
    body_offset = HEADER.size + align_up(SECTION.size * len(sections))
    for kind, count, data in sections:
        table += SECTION.build(kind=kind, count=count, offset=body_offset + len(body), size=len(data))
        body += data
        body += bytes(align_up(len(body)) - len(body))
    header = HEADER.build(
        magic=MAGIC,
        container_major=CONTAINER_MAJOR,
        container_minor=CONTAINER_MINOR,
        contract_major=CONTRACT_MAJOR,
        contract_minor=CONTRACT_MINOR,
        total_bytes=body_offset + len(body),
        section_count=len(sections),
    )
    container = bytearray(header + table.ljust(body_offset - HEADER.size, b"\0") + body)
    seal(container)
    return bytes(container)


def _add_name(names: bytearray, text: str) -> tuple[int, int]:
    """Append a name; returns its place and size."""
    encoded = text.encode()
    names += encoded
    return len(names) - len(encoded), len(encoded)


def _build_tensor(tensor: Tensor) -> bytes:
    shape = tensor.type.shape
    if len(shape) > MAX_RANK:
        raise FieldError(f"tensor {tensor.type}: rank {len(shape)} exceeds {MAX_RANK}")
    return TENSOR.build(
        dtype=tensor.type.dtype,
        storage=tensor.storage,
        rank=len(shape),
        offset=tensor.offset,
        size=tensor.type.size_bytes,
        shape=[*shape, *[0] * (MAX_RANK - len(shape))],
    )


def _build_command(command: Command) -> bytes:
    layout = ATTRIBUTES[command.kind]
    head = COMMAND.build(
        kind=command.kind,
        input_count=len(command.inputs),
        output_count=len(command.outputs),
        attribute_bytes=layout.size,
    )
    fields = {name: command.attributes[name] for name in layout.fields}
    ids = [NO_TENSOR if tensor is None else tensor for tensor in (*command.inputs, *command.outputs)]
    operands = b"".join(tensor.to_bytes(4, "little") for tensor in ids)
    return head + layout.build(**fields) + operands.ljust(align_up(len(operands), COMMAND_ALIGNMENT), b"\0")
