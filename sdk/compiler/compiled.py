"""A compiled program: its bytes and what a caller needs to know of it."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

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
class Plan:
    """What a program takes."""

    commands: int
    constants_bytes: int
    workspace_bytes: int
    unshared_workspace_bytes: int
    """What the workspace would be without reuse."""
    macs: int
    moved_bytes: int
    """Read and written by all commands together."""


@dataclasses.dataclass(frozen=True, slots=True)
class CompiledProgram:
    """A program for one set of input shapes."""

    image: bytes
    """The container that a device loads."""
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    plan: Plan

    @property
    def constants_bytes(self) -> int:
        """Device memory for weights."""
        return self.plan.constants_bytes

    @property
    def workspace_bytes(self) -> int:
        """Device memory for intermediates."""
        return self.plan.workspace_bytes
