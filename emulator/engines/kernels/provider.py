"""What a provider of kernels is asked, and what it answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from driver_shim.protocol.program import TensorType
from driver_shim.protocol.program_commands import CommandKind
from emulator.model.operators.arrays import Array

Kernel = Callable[[Sequence["Array | None"], Sequence[Array]], None]
"""(operands, outputs): fills the outputs. Raises KernelFault for data that the command cannot work on."""


class Blocks(NamedTuple):
    """Which of a command's tensors lie in blocks of channels (`blocks.py`)."""

    size: int
    """Channels of a block."""
    inputs: frozenset[int]
    """Operands, by their places."""
    output: bool
    """Whether the first output does."""


@dataclasses.dataclass(frozen=True, slots=True)
class KernelRequest:
    """One command of a program that is about to run."""

    kind: CommandKind
    attributes: Any
    inputs: tuple[TensorType | None, ...]
    outputs: tuple[TensorType, ...]
    constants: tuple[Array | None, ...]
    """Of each operand that is constant, its values: read-only, and in place as long as the program is loaded."""
    blocks: Blocks | None = None
    """None where all of its tensors lie in C order."""

    def constant(self, position: int) -> Array | None:
        """The values of an operand, None when they are not known yet or it is absent."""
        return self.constants[position] if position < len(self.constants) else None


class NamedKernel(NamedTuple):
    """A kernel and what reports call it: "golden.conv", "numpy.conv"."""

    name: str
    run: Kernel


class Provider(Protocol):
    """A module that prepares kernels."""

    def prepare(self, request: KernelRequest) -> Kernel | None:
        """A kernel for this very command; None when the provider has none for it."""

    def block_size(self) -> int:
        """Channels of the blocks that its convolutions are quickest with; 0 for none."""
