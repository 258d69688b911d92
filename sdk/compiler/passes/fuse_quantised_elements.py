"""What lies between DequantizeLinear and QuantizeLinear, other than products, is done to the integers themselves.

Sums and products of two become QBINARY, functions of one a table of their 256 results; what only moves elements, and
the largest of some, moves integers.
"""

from __future__ import annotations

from driver_shim.protocol.program_commands import ATTRIBUTES, BinaryFunction, CommandKind, PoolFunction, QBinaryFunction
from sdk.compiler.ir import Operation, Value, fields_of, is_repeated, shape_fields
from sdk.compiler.passes.quantisation import Quantised, Target, before, same, table_of, target
from sdk.compiler.passes.rewriting import Rewriting

_MOVEMENT = frozenset(
    {CommandKind.COPY, CommandKind.TRANSPOSE, CommandKind.SLICE, CommandKind.EXPAND, CommandKind.GATHER}
)
_QUANTISED_FUNCTION = {BinaryFunction.ADD: QBinaryFunction.ADD, BinaryFunction.MUL: QBinaryFunction.MUL}


def fuse_quantised_elements(program: Rewriting) -> None:
    """Compute in integers what is dequantised, treated element by element or moved, and quantised again."""
    for operation in list(program.operations):
        wanted = target(operation)
        if wanted is not None:
            any(rewrite(program, operation, wanted) for rewrite in (_of_two, _of_one, _moved, _joined, _averaged))


def _of_two(program: Rewriting, quantisation: Operation, wanted: Target) -> bool:
    """A sum or product, as onnxruntime's optimiser makes it QLinearAdd or QLinearMul."""
    made = program.sole(quantisation.inputs[0])
    if made is None or made.kind is not CommandKind.BINARY or made.attributes.function not in _QUANTISED_FUNCTION:
        return False
    a, b = map(before, made.inputs)
    if a is None or b is None or not (a.is_bytes and b.is_bytes):
        return False
    if not a.integer.dtype is b.integer.dtype is wanted.zero_point.dtype:
        return False
    if is_repeated(a.integer, b.integer):  # onnxruntime takes the operand that is repeated for the second
        a, b = b, a
    operands = [a.integer, b.integer, a.scale, a.zero_point, b.scale, b.zero_point, *wanted]
    function = _QUANTISED_FUNCTION[BinaryFunction(made.attributes.function)]
    position = program.operations.index(quantisation)
    program.replace(position, CommandKind.QBINARY, operands, {"function": function}, [made])
    return True


def _of_one(program: Rewriting, quantisation: Operation, wanted: Target) -> bool:
    """Functions of one operand, or none: a change of scale."""
    functions: list[Operation] = []
    value = quantisation.inputs[0]
    while (made := program.sole(value)) is not None and made.kind is CommandKind.UNARY:
        functions.insert(0, made)
        value = made.inputs[0]
    was = before(value)
    if was is None or not was.is_bytes:
        return False
    position = program.operations.index(quantisation)
    if not functions and same(was, wanted):
        program.replace(position, CommandKind.COPY, [was.integer], shape_fields(was.integer.shape))
        return True
    table = table_of(was, functions, quantisation)
    if table is not None:
        program.replace(position, CommandKind.LOOKUP, [was.integer, table], {}, functions)
    return table is not None


def _moved(program: Rewriting, quantisation: Operation, wanted: Target) -> bool:
    """Elements that are only moved, or of which the largest are taken: scales are positive, so that order stays."""
    made = program.sole(quantisation.inputs[0])
    if made is None or not _is_movement(made):
        return False
    was = before(made.inputs[0])
    if was is None or not was.is_bytes:
        return False
    operands, position = [was.integer, *made.inputs[1:]], program.operations.index(quantisation)
    if same(was, wanted):
        program.replace(position, made.kind, operands, fields_of(made), [made])
        return True
    table = table_of(was, [], quantisation)
    if table is None:
        return False
    moved = program.insert(position, made.kind, operands, fields_of(made), made.nodes)
    program.replace(position + 1, CommandKind.LOOKUP, [moved, table], {}, [made])
    return True


def _is_movement(operation: Operation) -> bool:
    if operation.kind is CommandKind.POOL:
        return bool(operation.attributes.function == PoolFunction.MAX)
    return operation.kind in _MOVEMENT


def _joined(program: Rewriting, quantisation: Operation, wanted: Target) -> bool:
    """Tensors one after the other, each brought to the scale of the whole."""
    made = program.sole(quantisation.inputs[0])
    if made is None or made.kind is not CommandKind.CONCAT:
        return False
    parts = [was for was in map(before, made.inputs) if was is not None and was.is_bytes]
    if len(parts) < len(made.inputs):
        return False
    operands = [_in_scale(program, quantisation, was, wanted) for was in parts]
    position = program.operations.index(quantisation)
    program.replace(position, CommandKind.CONCAT, operands, fields_of(made), [made])
    return True


def _averaged(program: Rewriting, quantisation: Operation, wanted: Target) -> bool:
    """Averages under a window, as onnxruntime's optimiser makes them QLinearAveragePool."""
    made = program.sole(quantisation.inputs[0])
    if made is None or made.kind is not CommandKind.POOL or made.attributes.function != PoolFunction.AVERAGE:
        return False
    was = before(made.inputs[0])
    if was is None or not was.is_bytes or was.integer.dtype is not wanted.zero_point.dtype:
        return False
    fields = {name: value for name, value in fields_of(made).items() if name in ATTRIBUTES[CommandKind.QPOOL].fields}
    operands = [was.integer, was.scale, was.zero_point, *wanted]
    program.replace(program.operations.index(quantisation), CommandKind.QPOOL, operands, fields, [made])
    return True


def _in_scale(program: Rewriting, quantisation: Operation, was: Quantised, wanted: Target) -> Value:
    if same(was, wanted):
        return was.integer
    table = table_of(was, [], quantisation)
    if table is None:
        raise ValueError("a table of 256 constants cannot be computed")
    return program.insert(
        program.operations.index(quantisation), CommandKind.LOOKUP, [was.integer, table], {}, quantisation.nodes
    )
