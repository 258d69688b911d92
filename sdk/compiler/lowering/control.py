"""Control flow, which a program does not have: branches are chosen or both computed, loops are unrolled."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from driver_shim.protocol.program_commands import BinaryFunction, CommandKind
from driver_shim.protocol.types import WireType
from sdk.compiler.context import Lowering, NodeContext
from sdk.compiler.ir import Operation, Refused, Value

MAX_ITERATIONS = 1024
"""Iterations of a loop that are unrolled."""
MAX_UNROLLED_COMMANDS = 32768
_SCAN_HAS_NO_BATCH_SINCE = 9
_FAILING = frozenset(
    {
        CommandKind.GATHER,
        CommandKind.GATHER_ELEMENTS,
        CommandKind.GATHER_ND,
        CommandKind.SCATTER_ELEMENTS,
        CommandKind.SCATTER_ND,
        CommandKind.RECURRENT,
        CommandKind.ROTARY,
    }
)
"""Commands that fail for what their operands hold, whatever their element type."""
_DIVISIONS = frozenset({BinaryFunction.DIV, BinaryFunction.MOD, BinaryFunction.FMOD, BinaryFunction.POW})
"""Functions that fail for zeros among integers."""
_COMPUTING = frozenset(
    {
        CommandKind.BINARY,
        CommandKind.UNARY,
        CommandKind.CAST,
        CommandKind.REDUCE,
        CommandKind.MATMUL,
        CommandKind.CUMULATE,
        CommandKind.BITCAST,
    }
)
"""Commands that can make an int64 of values which do not fit 32 bits."""


def _if(node: NodeContext) -> Sequence[Value]:
    """If: the branch that a constant condition chooses; else both, and of each output the one that it chooses."""
    condition = node.value(0)
    if condition.type.elements != 1:
        raise Refused(f"its condition is {condition.type}, not one bool")
    then, otherwise = node.graph("then_branch"), node.graph("else_branch")
    if condition.constant is not None:
        return node.run_graph(then if condition.constant.reshape(())[()] else otherwise, [])
    began = len(node.builder.operations)
    chosen, other = node.run_branch(then, condition), node.run_branch(otherwise, condition)
    failing = next(filter(_may_fail, node.builder.operations[began:]), None)
    if failing is not None:
        raise node.not_constant(0, f"condition is not constant, and {failing.node!r} in a branch may fail")
    if any(a.type != b.type for a, b in zip(chosen, other, strict=True)):
        raise node.not_constant(0, "condition is not constant, and its branches give different shapes")
    scalar = node.builder.reshape(condition, ())
    return [value for a, b in zip(chosen, other, strict=True) for value in node.apply("Where", [scalar, a, b])]


def _may_fail(operation: Operation) -> bool:
    """Whether a command can fail for what its operands hold: it must not be run where the model would not."""
    if operation.kind in _FAILING:
        return True
    if operation.kind is CommandKind.BINARY and operation.attributes.function in _DIVISIONS:
        return any(value is not None and not value.dtype.is_float for value in operation.inputs)
    return operation.kind in _COMPUTING and any(output.dtype is WireType.INT64 for output in operation.outputs)


def _loop(node: NodeContext) -> Sequence[Value]:
    """Loop, unrolled; when it goes on must be known while compiling."""
    body = node.graph("body")
    limit = node.constant_ints(0, "trip count")
    most = MAX_ITERATIONS + 1 if limit is None else limit[0]
    condition = node.optional(1)
    carried = [node.value(i) for i in range(2, len(node.inputs))]
    rows: list[list[Value]] = []
    while len(rows) < most and _goes_on(node, condition):
        _check_bound(node, len(rows))
        given = [node.builder.constant(np.array(len(rows), np.int64)), condition or _true(node), *carried]
        condition, *results = node.run_graph(body, given)
        carried, row = results[: len(carried)], results[len(carried) :]
        rows.append(row)
    return [*carried, *_stacked(node, rows, [0] * (len(body.outputs) - 1 - len(carried)))]


def _goes_on(node: NodeContext, condition: Value | None) -> bool:
    if condition is None:
        return True
    if condition.constant is None:
        raise node.depends(condition, "its condition must be known while compiling")
    return bool(condition.constant.reshape(())[()])


def _true(node: NodeContext) -> Value:
    return node.builder.constant(np.array(True))


def _check_bound(node: NodeContext, iterations: int) -> None:
    if iterations >= MAX_ITERATIONS:
        raise Refused(f"it has more than {MAX_ITERATIONS} iterations, and a program has no loops")
    if len(node.builder.operations) > MAX_UNROLLED_COMMANDS:
        raise Refused(f"unrolled it makes more than {MAX_UNROLLED_COMMANDS} commands")


def _scan(node: NodeContext) -> Sequence[Value]:
    """Scan, unrolled: the body once for each place along the scanned axes; at opset 8 for each sample of a batch."""
    if node.since < _SCAN_HAS_NO_BATCH_SINCE:
        return _scan_of_batch(node)
    body = node.graph("body")
    scanned = node.attribute("num_scan_inputs")
    operands = [node.value(i) for i in range(len(node.inputs))]
    states, inputs = operands[: len(operands) - scanned], operands[len(operands) - scanned :]
    axes = node.attribute("scan_input_axes") or [0] * scanned
    axes = [node.axis(axis, len(x.shape)) for axis, x in zip(axes, inputs, strict=True)]
    states, rows = _scanned(node, states, inputs, axes, node.attribute("scan_input_directions") or [0] * scanned)
    count = len(body.outputs) - len(states)
    backwards = node.attribute("scan_output_directions") or [0] * count
    return [*states, *_stacked(node, rows, node.attribute("scan_output_axes") or [0] * count, backwards)]


def _scan_of_batch(node: NodeContext) -> Sequence[Value]:
    """Scan of opset 8: every operand and result has the batch as its first dimension, scanned ones time as the next."""
    if node.optional(0) is not None:
        raise Refused("lengths of its sequences are not supported")
    body = node.graph("body")
    scanned = node.attribute("num_scan_inputs")
    operands = [node.value(i) for i in range(1, len(node.inputs))]
    directions = node.attribute("directions") or [0] * scanned
    samples = []
    for sample in range(operands[0].shape[0] if operands[0].shape else 0):
        own = [_item(node, operand, 0, sample) for operand in operands]
        states, inputs = own[: len(own) - scanned], own[len(own) - scanned :]
        states, rows = _scanned(node, states, inputs, [0] * scanned, directions)
        samples.append([*states, *_stacked(node, rows, [0] * (len(body.outputs) - len(states)))])
    return _stacked(node, samples, [0] * len(body.outputs))


def _scanned(
    node: NodeContext, states: list[Value], inputs: list[Value], axes: Sequence[int], directions: Sequence[int]
) -> tuple[list[Value], list[list[Value]]]:
    """(the states in the end, what the body gave in each step beside them)"""
    lengths = {x.shape[axis] for x, axis in zip(inputs, axes, strict=True)}
    if len(lengths) != 1:
        raise Refused(f"its scanned inputs have different lengths: {sorted(lengths)}")
    length = lengths.pop()
    rows: list[list[Value]] = []
    for step in range(length):
        _check_bound(node, step)
        places = [length - 1 - step if backwards else step for backwards in directions]
        items = [_item(node, x, axis, place) for x, axis, place in zip(inputs, axes, places, strict=True)]
        results = node.run_graph(node.graph("body"), [*states, *items])
        states, row = list(results[: len(states)]), list(results[len(states) :])
        rows.append(row)
    return states, rows


def _item(node: NodeContext, x: Value, axis: int, place: int) -> Value:
    """What `x` has at one place along an axis."""
    bounds = [node.builder.constant(np.array([number], np.int64)) for number in (place, place + 1, axis)]
    (part,) = node.apply("Slice", [x, *bounds])
    return node.builder.reshape(part, [extent for i, extent in enumerate(x.shape) if i != axis])


def _stacked(
    node: NodeContext, rows: list[list[Value]], axes: Sequence[int], backwards: Sequence[int] = ()
) -> list[Value]:
    """Each column of `rows` as one tensor, along a new axis."""
    if axes and not rows:
        raise Refused("it has no iteration that would tell the shapes of its outputs")
    stacks: list[Value] = []
    for column, axis in enumerate(axes):
        items = [row[column] for row in rows]
        place = node.axis(axis, len(items[0].shape) + 1)
        if len({item.shape for item in items}) != 1:
            raise Refused("its iterations give outputs of different shapes")
        shape = [*items[0].shape[:place], 1, *items[0].shape[place:]]
        wide = [node.builder.reshape(item, shape) for item in items]
        if column < len(backwards) and backwards[column]:
            wide.reverse()
        stacks += node.apply("Concat", wide, axis=place)
    return stacks


LOWERINGS: dict[str, Lowering] = {"If": _if, "Loop": _loop, "Scan": _scan}
