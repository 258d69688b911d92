"""What every layer computes anew of the states' lengths is computed once."""

from __future__ import annotations

from collections.abc import Hashable

from sdk.compiler.ir import Operation, Value, fields_of
from sdk.compiler.passes.rewriting import Rewriting
from sdk.compiler.states.binding import States

_SMALL = 4096
"""Elements of a constant that is worth comparing."""


def share_derived(program: Rewriting, states: States) -> None:
    """Have equal operations on what follows from the rows alone be one."""
    names: dict[int, Hashable] = {id(states.rows): "rows"}
    first: dict[Hashable, Value] = {}
    instead: dict[int, Value] = {}
    for position, operation in enumerate(program.operations):
        kept = [instead.get(id(value), value) if value is not None else None for value in operation.inputs]
        if kept != list(operation.inputs):
            operation = program.replace(position, operation.kind, kept, fields_of(operation))
        name = _name(operation, names)
        if name is None or any(map(program.is_given, operation.outputs)):
            continue
        for index, value in enumerate(operation.outputs):
            names[id(value)] = (name, index)
            instead[id(value)] = first.setdefault((name, index), value)
    program.keep(program.is_used)


def _name(operation: Operation, names: dict[int, Hashable]) -> Hashable | None:
    """What an operation computes, as long as it follows from the rows and small constants."""
    parts: list[Hashable] = []
    for value in operation.inputs:
        if value is None or id(value) in names:
            parts.append(None if value is None else names[id(value)])
        elif value.constant is not None and value.constant.size <= _SMALL:
            parts.append((value.type, value.constant.tobytes()))
        else:
            return None
    if not any(id(value) in names for value in operation.inputs):
        return None
    return operation.kind, repr(fields_of(operation)), tuple(parts)
