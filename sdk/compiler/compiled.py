"""A compiled program: its bytes and what a caller needs to know of it."""

from __future__ import annotations

import dataclasses
import enum
from typing import Any, NamedTuple

from numpy.typing import NDArray

from driver_shim.protocol.program import TensorType
from sdk.compiler.derived import Source, array_of

ANY_SHAPE = ("...",)
"""The shape of a tensor of which the model does not even say the rank."""


@dataclasses.dataclass(frozen=True, slots=True)
class TensorInfo:
    """A model's input or output."""

    name: str
    shape: tuple[int | str, ...]
    """Numbers in a compiled program; in a model that is not compiled yet, unknown dimensions are names.

    `ANY_SHAPE` where the rank is unknown, too.
    """
    dtype: str
    """numpy's name, "bfloat16", or "unknown" for an output that only compiling tells the type of."""

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype}[{', '.join(map(str, self.shape))}]"


class Signature(NamedTuple):
    """What a model takes and gives, as declared."""

    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    optional: tuple[TensorInfo, ...] = ()
    """Inputs that have a default, and need not be given."""


@dataclasses.dataclass(frozen=True, slots=True)
class Constant:
    """An array that a program's commands read: weights, or what was computed of them."""

    key: str
    """What is in it: constants of one model with equal keys have equal bytes, whatever shapes it was compiled for."""
    type: TensorType
    source: Source = dataclasses.field(compare=False)
    """A view of the model's own memory, where it is an initialiser as it stands; 4-bit integers are bytes."""

    @property
    def array(self) -> NDArray[Any]:
        """What is in it; made for this call where it was derived from initialisers."""
        return array_of(self.source)


class LiveRange(NamedTuple):
    """An intermediate result in the workspace."""

    node: str
    """The node or nodes that give it."""
    offset: int
    size_bytes: int
    """With what fills its last cache line."""
    first: int
    """The command that writes it."""
    last: int
    """The last command that reads it."""


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """What a program takes."""

    commands: int
    constants_bytes: int
    """Device memory for weights, each on a cache line of its own."""
    operands_bytes: int
    """Device memory for inputs and outputs, each on a cache line of its own."""
    workspace_bytes: int
    """Device memory for intermediates: as far as their placement reaches at its peak."""
    peak_live_bytes: int
    """What intermediates take at most at one time; the workspace is larger where it has holes then."""
    largest_hole_bytes: int
    """The largest piece of the workspace that is free when it reaches its full size."""
    unshared_workspace_bytes: int
    """What the workspace would be without reuse."""
    macs: int
    moved_bytes: int
    """Read and written by all commands together."""
    live: tuple[LiveRange, ...]
    """Every intermediate, in the order of their making."""
    states_bytes: int = 0
    """Device memory of all states of the model, with the tables that say which part is whose."""
    state_capacity_tokens: int = 0
    """Tokens that fit there, of all states together."""

    @property
    def peak_bytes(self) -> int:
        """Device memory for one run at a time."""
        return self.constants_bytes + self.operands_bytes + self.workspace_bytes + self.states_bytes


class StateKind(enum.StrEnum):
    """How a state changes in a step."""

    APPEND = "append"
    """New tokens come after those that it holds."""
    RING = "ring"
    """The same, and the oldest give way."""
    REPLACE = "replace"
    """Another value of the same shape."""


class StateInfo(NamedTuple):
    """A state as users see it."""

    name: str
    """Of the input."""
    present: str
    """Of the output."""
    shape: tuple[int, ...]
    """Of one token: heads and the size of each; of one that is replaced, the whole."""
    dtype: str
    kind: StateKind
    bytes_per_token: int
    """0 for one that is replaced."""
    found: str = ""
    """How the pair was found."""


@dataclasses.dataclass(frozen=True, slots=True)
class CompiledProgram:
    """A program for one set of input shapes."""

    image: bytes
    """The container that a device loads."""
    constants: tuple[Constant, ...]
    """In the order in which a load binds them."""
    nodes: tuple[str, ...]
    """The node of the model that each command comes from."""
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    plan: Plan
    caches: tuple[TensorInfo, ...] = ()
    """What it binds as states: keys and values of all sequences, by planes and blocks."""
    states: tuple[StateInfo, ...] = ()
    """What lies in the caches, and pairs of inputs and outputs that are states."""

    @property
    def constants_bytes(self) -> int:
        """Device memory for weights."""
        return self.plan.constants_bytes

    @property
    def workspace_bytes(self) -> int:
        """Device memory for intermediates."""
        return self.plan.workspace_bytes
