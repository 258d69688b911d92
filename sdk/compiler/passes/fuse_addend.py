"""A sum of a convolution and another result, as residual networks are full of, becomes part of the convolution."""

from __future__ import annotations

from driver_shim.protocol.program_commands import BinaryFunction, CommandKind
from sdk.compiler.ir import Value, fields_of
from sdk.compiler.passes.products import is_plain
from sdk.compiler.passes.rewriting import Rewriting

_OPERANDS = 3
"""Of a convolution, before the one to add: data, weights, bias."""


def fuse_addend(program: Rewriting) -> None:
    """Give convolutions the tensor of their result's shape that is added to it."""
    for position, operation in enumerate(program.operations):
        if operation.kind is CommandKind.BINARY and operation.attributes.function == BinaryFunction.ADD:
            a, b = operation.inputs
            if not _fuse(program, position, b, a):
                _fuse(program, position, a, b)


def _fuse(program: Rewriting, position: int, result: Value | None, addend: Value | None) -> bool:
    convolution = program.sole(result)
    if convolution is None or convolution.kind is not CommandKind.CONV or not is_plain(convolution):
        return False
    if addend is None or result is None or addend.type != result.type or len(convolution.inputs) > _OPERANDS:
        return False
    missing = [None] * (_OPERANDS - len(convolution.inputs))
    operands = [*convolution.inputs, *missing, addend]
    program.replace(position, CommandKind.CONV, operands, fields_of(convolution), [convolution])
    return True
