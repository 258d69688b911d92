"""A sum of a convolution and another result, as residual networks are full of, becomes part of the convolution."""

from __future__ import annotations

from driver_shim.protocol.program_commands import BinaryFunction, CommandKind
from sdk.compiler.ir import Value, fields_of
from sdk.compiler.passes.products import is_plain
from sdk.compiler.passes.rewriting import Rewriting
from sdk.compiler.passes.scanning import absorb_each

_OPERANDS = 3
"""Of a convolution, before the one to add: data, weights, bias."""


def fuse_addend(program: Rewriting) -> None:
    """Give convolutions the tensor of their result's shape that is added to it."""
    absorb_each(program, {BinaryFunction.ADD}, _fuse)


def _fuse(program: Rewriting, position: int, addend: Value | None, result: Value | None) -> bool:
    convolution = program.sole(result)
    if convolution is None or convolution.kind is not CommandKind.CONV or not is_plain(convolution):
        return False
    if addend is None or result is None or addend.type != result.type or len(convolution.inputs) > _OPERANDS:
        return False
    missing = [None] * (_OPERANDS - len(convolution.inputs))
    operands = [*convolution.inputs, *missing, addend]
    program.replace(position, CommandKind.CONV, operands, fields_of(convolution), [convolution])
    return True
