"""The ways in which passes go through a program."""

from __future__ import annotations

from collections.abc import Callable, Collection

from driver_shim.protocol.program_commands import BinaryFunction, CommandKind
from sdk.compiler.ir import Value
from sdk.compiler.passes.rewriting import Rewriting


def rewrite_each(program: Rewriting, kind: CommandKind, rewrite: Callable[[Rewriting, int], int]) -> None:
    """Have every operation of a kind that is used rewritten, where that may insert operations.

    `rewrite` is given the place of one, and returns the place of what is there then.
    """
    position = 0
    while position < len(program.operations):
        operation = program.operations[position]
        if operation.kind is kind and program.is_used(operation):
            position = rewrite(program, position)
        position += 1


def absorb_each(
    program: Rewriting,
    functions: Collection[BinaryFunction],
    absorb: Callable[[Rewriting, int, Value | None, Value | None], bool],
) -> None:
    """Have every operation of these functions become part of what gives one of its operands.

    `absorb` is given its place, the operand and the other one; False has it asked with both exchanged.
    """
    for position, operation in enumerate(program.operations):
        if operation.kind is CommandKind.BINARY and operation.attributes.function in functions:
            a, b = operation.inputs
            if not absorb(program, position, a, b):
                absorb(program, position, b, a)
