"""ATTENTION reads and writes heads side by side, where transpositions put them apart before and together after it."""

from __future__ import annotations

import math

from driver_shim.protocol.program_commands import CommandKind
from sdk.compiler.ir import Operation, Value, fields_of, shape_fields
from sdk.compiler.passes.patterns import made_by
from sdk.compiler.passes.rewriting import Rewriting
from sdk.compiler.passes.scanning import rewrite_each

_BY_HEAD = (0, 2, 1, 3)
"""[batch, length, heads, size] to [batch, heads, length, size] and back."""


def merge_heads(program: Rewriting) -> None:
    """Have ATTENTION do what reshapes and transpositions around it do."""
    rewrite_each(program, CommandKind.COPY, _merge)


def _merge(program: Rewriting, position: int) -> int:
    """Merge what ends at a reshape, if it puts heads together; returns the place of what is there now."""
    joined = program.operations[position]
    turned = program.sole(joined.inputs[0])
    if turned is None or not is_by_head(turned):
        return position
    attention, between = _behind_copies(program, turned.inputs[0])
    if attention is None or attention.kind is not CommandKind.ATTENTION or attention.attributes.query_heads:
        return position
    batch, length, heads, size = turned.outputs[0].shape
    if attention.outputs[0].shape != (batch, heads, length, size):
        return position
    sources = [source for source in map(_split, attention.inputs[:3]) if source is not None]
    if len(attention.inputs) > 4 or len(sources) < 3:
        return position
    operands: list[Value | None] = []
    for flat, operations in sources:
        apart = operations[-1].outputs[0].shape
        wanted = (*apart[:2], math.prod(apart[2:]))
        if flat.shape != wanted:
            flat = program.insert(position, CommandKind.COPY, [flat], shape_fields(wanted), operations[-1].nodes)
            position += 1
        operands.append(flat)
    key_heads = attention.inputs[1].shape[1] if attention.inputs[1] is not None else 0
    fields = {**fields_of(attention), "query_heads": heads, "key_heads": key_heads}
    operands += attention.inputs[3:]
    parts = [turned, *between, attention, *(made for _, operations in sources for made in operations)]
    if joined.outputs[0].shape == (batch, length, heads * size):
        inner = program.inner(joined, list(dict.fromkeys(parts)))
        program.replace(position, CommandKind.ATTENTION, operands, fields, inner)
        return position
    nodes = tuple(dict.fromkeys(node for part in (attention, turned) for node in part.nodes))
    result = program.insert(position, CommandKind.ATTENTION, operands, fields, nodes)
    program.replace(position + 1, CommandKind.COPY, [result], fields_of(joined), [turned, *between, attention])
    return position + 1


def _behind_copies(program: Rewriting, value: Value | None) -> tuple[Operation | None, list[Operation]]:
    """(what gives a value that nothing else reads, the reshapes between)."""
    made, between = program.sole(value), []
    while made is not None and made.kind is CommandKind.COPY:
        between.append(made)
        made = program.sole(made.inputs[0])
    return made, between


def is_by_head(operation: Operation) -> bool:
    """Whether it is a transposition that puts heads apart, or together again."""
    return (
        operation.kind is CommandKind.TRANSPOSE
        and tuple(operation.attributes.permutation[:4]) == _BY_HEAD
        and (len(operation.outputs[0].shape) == 4)
    )


def _split(value: Value | None) -> tuple[Value, list[Operation]] | None:
    """(what is [batch, length, heads · size] in any shape, the operations that put its heads apart)."""
    turned = made_by(value, CommandKind.TRANSPOSE)
    if turned is None or not is_by_head(turned):
        return None
    copied = made_by(turned.inputs[0], CommandKind.COPY)
    if copied is None or copied.inputs[0] is None:
        return None
    return copied.inputs[0], [turned, copied]
