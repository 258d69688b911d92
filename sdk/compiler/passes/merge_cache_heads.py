"""Commands over caches read and write heads side by side, where transpositions put them apart and together again."""

from __future__ import annotations

from driver_shim.protocol.program_commands import CommandKind
from sdk.compiler.ir import Operation, Value, fields_of, shape_fields
from sdk.compiler.passes.merge_heads import is_by_head
from sdk.compiler.passes.patterns import made_by
from sdk.compiler.passes.rewriting import Rewriting


def merge_cache_heads(program: Rewriting) -> None:
    """Have appends and attention do what reshapes and transpositions around them do."""
    position = 0
    while position < len(program.operations):
        operation = program.operations[position]
        if operation.kind is CommandKind.CACHE_APPEND and not operation.attributes.heads:
            position = _merge_update(program, position)
        elif operation.kind is CommandKind.COPY and program.is_used(operation):
            position = _merge_attention(program, position)
        position += 1


def _merge_update(program: Rewriting, position: int) -> int:
    """Append new tokens as they were before their heads were put apart; returns the append's place."""
    operation = program.operations[position]
    update = operation.inputs[1]
    if update is None or not _is_turned(update):
        return position
    heads = update.shape[1]
    update, position = _beside(program, position, update)
    inputs = [operation.inputs[0], update, *operation.inputs[2:]]
    program.replace(position, CommandKind.CACHE_APPEND, inputs, {**fields_of(operation), "heads": heads})
    return position


def _merge_attention(program: Rewriting, position: int) -> int:
    """Merge what ends at a reshape, if that puts an attention's heads together; returns the place of what is there."""
    joined = program.operations[position]
    turned = program.sole(joined.inputs[0])
    attention = program.sole(turned.inputs[0]) if turned is not None and is_by_head(turned) else None
    if turned is None or attention is None or attention.kind is not CommandKind.CACHE_ATTENTION:
        return position
    query = attention.inputs[0]
    rows, tokens, heads, size = turned.outputs[0].shape
    if attention.attributes.query_heads or query is None or not _is_turned(query):
        return position
    if joined.outputs[0].shape != (rows, tokens, heads * size):
        return position
    query, position = _beside(program, position, query)
    fields = {**fields_of(attention), "query_heads": heads}
    inputs = [query, *attention.inputs[1:]]
    program.replace(position, CommandKind.CACHE_ATTENTION, inputs, fields, [turned, attention])
    return position


def _is_turned(value: Value) -> bool:
    """Whether heads were put apart by a transposition, before or after their places turned them."""
    made = value.producer
    rotary = made_by(value, CommandKind.ROTARY, heads=0)
    if rotary is not None:
        return rotary.inputs[0] is not None and _is_turned(rotary.inputs[0])
    return made is not None and is_by_head(made)


def _beside(program: Rewriting, position: int, value: Value) -> tuple[Value, int]:
    """(the same with heads side by side, where the operation at `position` is afterwards)."""
    made = value.producer
    rows, heads, tokens, size = value.shape
    flat = (rows, tokens, heads * size)
    nodes = () if made is None else made.nodes
    if made is not None and made.kind is CommandKind.ROTARY and made.inputs[0] is not None:
        source, position = _beside(program, position, made.inputs[0])
        fields = {**fields_of(made), "heads": heads}
        return program.insert(position, CommandKind.ROTARY, [source, *made.inputs[1:]], fields, nodes), position + 1
    apart = _read_by(made)
    split = made_by(apart, CommandKind.COPY)
    if split is not None and split.inputs[0] is not None and split.inputs[0].shape == flat:
        return split.inputs[0], position
    return program.insert(position, CommandKind.COPY, [apart], shape_fields(flat), nodes), position + 1


def _read_by(operation: Operation | None) -> Value | None:
    return None if operation is None else operation.inputs[0]
