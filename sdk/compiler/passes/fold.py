"""Operations on constants alone are computed while compiling.

The builder folds as it emits, since lowerings have to know shapes that were computed; what it leaves for the passes
to look at first, and what they make of constants, is folded here.
"""

from __future__ import annotations

from sdk.compiler.ir import Refused, folded
from sdk.compiler.passes.rewriting import Rewriting


def fold(program: Rewriting) -> None:
    """Make constants of what depends on nothing else, unless they would be much larger than what they are made of."""
    for position, operation in enumerate(program.operations):
        if any(map(program.is_given, operation.outputs)) or not program.is_used(operation):
            continue
        types = [value.type for value in operation.outputs]
        try:
            constants = folded(operation.kind, operation.attributes, operation.inputs, types)
        except Refused:
            continue  # the device says so when it runs
        if constants is not None:
            program.fold_away(position, constants)
    program.keep(lambda operation: not all(value.is_constant for value in operation.outputs))
