"""What compilation gives: a program's bytes and what a caller needs to know of it."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True)
class TensorInfo:
    """A model's input or output."""

    name: str
    shape: tuple[int | str, ...]
    """Numbers in a compiled program; in a model that is not compiled yet, unknown dimensions are names (maybe empty)."""
    dtype: str
    """numpy's name, or "bfloat16"."""


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
