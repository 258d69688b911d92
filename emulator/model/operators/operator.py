"""What every kind of command states of itself: the types of its outputs, its work, its limits, its golden kernel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from driver_shim.protocol.program import TensorType
from driver_shim.protocol.program_commands import CommandKind
from driver_shim.protocol.types import PACKED, WireType
from emulator.model.operators.arrays import Array, optional
from emulator.model.operators.shapes import SemanticError, need
from emulator.model.timing import Precision, Product, Work

Types = Sequence[TensorType | None]
"""Of a command's operands; None for an optional one that is absent."""

_HALVES = {WireType.FLOAT16: Precision.FP16, WireType.BFLOAT16: Precision.BF16}

STEP_EFFORT = 1 << 15
"""Fixed host cost of one pass over a command's elements, in bytes moved."""


class Operator:
    """One kind of command. Its instances hold nothing: `OPERATORS` has one of each.

    `infer` is what the compiler asks before it emits a command and the device before it accepts one, so `run` never
    meets types it does not expect. Data-dependent trouble is the kernel's business: it raises KernelFault.
    """

    kind: ClassVar[CommandKind]
    flags: ClassVar[tuple[str, ...]] = ()
    """Attributes that are 0 or 1."""
    takes_packed: ClassVar[bool] = False
    """Whether operands may be of 4-bit integers."""

    def infer(self, attributes: Any, inputs: Types) -> Sequence[TensorType]:
        """The types of all outputs. Raises SemanticError unless the command is defined for these operands."""
        raise NotImplementedError

    def run(self, attributes: Any, inputs: Sequence[Array | None], outputs: Sequence[Array]) -> None:
        """The golden kernel: fills the outputs; `inputs` are read-only. Raises KernelFault."""
        raise NotImplementedError

    def macs(self, attributes: Any, inputs: Types, outputs: Sequence[TensorType]) -> int:
        """Multiply-accumulates; 0 for what only moves or transforms elements."""
        return 0

    def precision(self, inputs: Types, outputs: Sequence[TensorType]) -> Precision:
        """The rate at which it multiplies."""
        return _HALVES.get(outputs[0].dtype, Precision.FP32)

    def products(self, attributes: Any, inputs: Types, outputs: Sequence[TensorType]) -> tuple[Product, ...]:
        """The products of matrices that it is; none where engines can share its work in any way."""
        return ()

    def passes(self, attributes: Any, inputs: Types, outputs: Sequence[TensorType]) -> int:
        """How often a host kernel goes over the outputs, each time at a fixed cost."""
        return 1

    # --- what follows from these -------------------------------------------------------------------------------

    def check(self, attributes: Any, inputs: Types, outputs: Sequence[TensorType]) -> None:
        """Raise SemanticError unless the command is defined for these operands and gives exactly these outputs."""
        if any(attributes[flag] > 1 for flag in self.flags):
            raise SemanticError("a flag is neither 0 nor 1")
        given = self.infer(attributes, inputs)
        self.check_packed(inputs, given)
        for wanted, found in zip(given, outputs, strict=False):
            need(wanted == found, f"the output is {found}, must be {wanted}")
        need(len(outputs) <= len(given), f"{len(outputs)} outputs; it gives {len(given)}")

    def check_packed(self, inputs: Types, outputs: Sequence[TensorType]) -> None:
        """Raise SemanticError where 4-bit integers are no operands of this kind; nothing computes them."""
        packed = [t for t in (*([] if self.takes_packed else inputs), *outputs) if t is not None and t.dtype in PACKED]
        need(not packed, f"{packed[0] if packed else ''}: 4-bit integers can be constants of DequantizeLinear only")

    def work(self, attributes: Any, inputs: Types, outputs: Sequence[TensorType]) -> Work:
        """Its demand on the chip: each operand is read once, each output written once."""
        moved = sum(operand.size_bytes for operand in (*inputs, *outputs) if operand is not None)
        macs, products = self.macs(attributes, inputs, outputs), self.products(attributes, inputs, outputs)
        return Work(macs, moved, self.precision(inputs, outputs), products)

    def effort(self, attributes: Any, inputs: Types, outputs: Sequence[TensorType]) -> int:
        """What it costs the host that emulates it, to bound what one program may ask for: roughly bytes moved."""
        work = self.work(attributes, inputs, outputs)
        return work.macs + work.bytes + self.passes(attributes, inputs, outputs) * STEP_EFFORT


def given(inputs: Types, position: int) -> TensorType:
    """A required operand's type. Raises SemanticError."""
    operand = optional(inputs, position)
    if operand is None:
        raise SemanticError(f"operand {position} is missing")
    return operand


def function(kind: type[Any], value: int) -> Any:
    """A member of an enumeration of functions. Raises SemanticError."""
    try:
        return kind(value)
    except ValueError:
        raise SemanticError(f"{value} is no {kind.__name__}") from None


def one_type(inputs: Types, allowed: frozenset[WireType] | None = None) -> WireType:
    """The one element type of all operands, out of `allowed`. Raises SemanticError."""
    found = {operand.dtype for operand in inputs if operand is not None}
    need(len(found) == 1, f"operands of different types: {', '.join(sorted(t.text for t in found))}")
    (dtype,) = found
    need(allowed is None or dtype in allowed, f"{dtype.text} operands are not possible here")
    return dtype


def checked_axis(axis: int, rank: int) -> int:
    """An axis, counted from 0. Raises SemanticError."""
    need(axis < rank, f"axis {axis} of rank {rank}")
    return axis
