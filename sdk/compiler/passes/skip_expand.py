"""An Expand before a command that broadcasts anyway is skipped."""

from __future__ import annotations

from collections.abc import Sequence

from driver_shim.protocol.program_commands import CommandKind
from emulator.model.operators.shapes import SemanticError, broadcast
from sdk.compiler.ir import Value, fields_of
from sdk.compiler.passes.rewriting import Rewriting

_BROADCASTING = (CommandKind.BINARY, CommandKind.WHERE)


def skip_expand(program: Rewriting) -> None:
    """Read what an Expand reads, where the result has the same shape."""
    for position, operation in enumerate(program.operations):
        if operation.kind not in _BROADCASTING:
            continue
        operands = [value for value in operation.inputs if value is not None]
        direct = _direct(operands, operation.outputs[0].shape)
        if direct != operands:
            program.replace(position, operation.kind, direct, fields_of(operation))


def _direct(operands: Sequence[Value], wanted: tuple[int, ...]) -> list[Value]:
    result = list(operands)
    for i, value in enumerate(operands):
        if value.producer is not None and value.producer.kind is CommandKind.EXPAND:
            source = value.producer.inputs[0]
            if source is not None and _shape([*result[:i], source, *result[i + 1 :]]) == wanted:
                result[i] = source
    return result


def _shape(values: Sequence[Value]) -> tuple[int, ...] | None:
    try:
        return broadcast(*(value.shape for value in values))
    except SemanticError:
        return None
