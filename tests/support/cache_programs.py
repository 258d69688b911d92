"""A program by hand that appends keys and values of a step to a cache, then attends them."""

from __future__ import annotations

import dataclasses

from driver_shim.protocol.program import (
    Binding,
    Command,
    EntryPoint,
    Program,
    Storage,
    Tensor,
    TensorType,
    build,
    make_attributes,
)
from driver_shim.protocol.program_commands import CommandKind
from driver_shim.protocol.types import WireType
from sdk.compiler.compiled import CompiledProgram, Plan

_PLACES = {
    "query": Storage.INPUT,
    "key": Storage.INPUT,
    "value": Storage.INPUT,
    "tables": Storage.INPUT,
    "rows": Storage.INPUT,
    "y": Storage.OUTPUT,
    "cache": Storage.STATE,
}
_SPARE = {
    "other": Storage.STATE,
    "copy": Storage.INPUT,
    "fixed_tables": Storage.CONSTANT,
    "fixed_rows": Storage.CONSTANT,
    "scratch": Storage.WORKSPACE,
}
"""What a program that is refused might name instead."""


@dataclasses.dataclass(frozen=True)
class CacheProgram:
    """Its shapes and attributes."""

    batch: int = 2
    tokens: int = 2
    heads: int = 4
    key_heads: int = 2
    size: int = 8
    planes: int = 2
    blocks: int = 6
    block_tokens: int = 4
    slots: int = 3
    entries: int = 2
    dtype: WireType = WireType.FLOAT32
    key_plane: int = 0
    value_plane: int = 1
    left_window: int = -1
    ring: int = 0
    causal: int = 1
    spare: bool = False
    """Whether it has tensors that nothing names, too."""

    @property
    def cache(self) -> TensorType:
        """The type of the cache."""
        return TensorType(self.dtype, (self.planes, self.blocks, self.block_tokens, self.key_heads, self.size))

    def type_of(self, name: str) -> TensorType:
        """The type of an operand."""
        shapes = {
            "query": (self.batch, self.heads, self.tokens, self.size),
            "key": (self.batch, self.key_heads, self.tokens, self.size),
            "value": (self.batch, self.key_heads, self.tokens, self.size),
            "y": (self.batch, self.heads, self.tokens, self.size),
        }
        if name in shapes:
            return TensorType(self.dtype, shapes[name])
        if name.endswith("tables"):
            return TensorType(WireType.INT32, (self.slots, self.entries))
        return TensorType(WireType.INT32, (self.batch, 3)) if name.endswith("rows") else self.cache

    def tensor(self, name: str) -> int:
        """The number of a tensor."""
        return list(self._places()).index(name)

    def program(self) -> Program:
        """Two appends and one attention."""
        places = self._places()
        tensors = tuple(Tensor(self.type_of(name), place) for name, place in places.items())
        bound = {
            wanted: tuple(Binding(name, self.tensor(name)) for name, place in places.items() if place is wanted)
            for wanted in (Storage.INPUT, Storage.OUTPUT, Storage.STATE)
        }
        commands = (
            self._append("key", self.key_plane),
            self._append("value", self.value_plane),
            self._command(
                CommandKind.CACHE_ATTENTION,
                ("query", "cache", "cache", "tables", "rows"),
                "y",
                scale=self.size**-0.5,
                key_plane=self.key_plane,
                value_plane=self.value_plane,
                left_window=self.left_window,
                ring=self.ring,
                causal=self.causal,
            ),
        )
        workspace = self.cache.size_bytes if self.spare else 0
        entry = EntryPoint(commands, bound[Storage.INPUT], bound[Storage.OUTPUT], workspace, bound[Storage.STATE])
        return Program(tensors, (entry,))

    def image(self) -> bytes:
        """The container."""
        return build(self.program())

    def compiled(self) -> CompiledProgram:
        """What a compiler would have made."""
        nodes = ("keys", "values", "attention")
        return CompiledProgram(self.image(), (), nodes, (), (), Plan(3, 0, 0, 0, 0, 0, 0, 0, 0, ()))

    def _places(self) -> dict[str, Storage]:
        return _PLACES | (_SPARE if self.spare else {})

    def _append(self, update: str, plane: int) -> Command:
        operands = ("cache", update, "tables", "rows")
        return self._command(CommandKind.CACHE_APPEND, operands, "cache", plane=plane, ring=self.ring)

    def _command(self, kind: CommandKind, operands: tuple[str, ...], output: str, **fields: float) -> Command:
        inputs = tuple(map(self.tensor, operands))
        return Command(kind, make_attributes(kind, **fields), inputs, (self.tensor(output),))
