"""RNN, GRU and LSTM: one command each, whatever their directions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from driver_shim.protocol.program_commands import (
    MAX_CELL_ACTIVATIONS,
    Cell,
    CellActivation,
    CellDirection,
    CommandKind,
)
from sdk.compiler.context import Lowering, NodeContext
from sdk.compiler.ir import Builder, Refused, Value
from sdk.compiler.lowering.movement import transposed


class _Activation(NamedTuple):
    function: CellActivation
    alpha: float | None = None
    """The default; None where the function has no such parameter."""
    beta: float | None = None


_ACTIVATIONS = {
    "relu": _Activation(CellActivation.RELU),
    "tanh": _Activation(CellActivation.TANH),
    "sigmoid": _Activation(CellActivation.SIGMOID),
    "affine": _Activation(CellActivation.AFFINE, 1.0, 0.0),
    "leakyrelu": _Activation(CellActivation.LEAKY_RELU, 0.01),
    "thresholdedrelu": _Activation(CellActivation.THRESHOLDED_RELU, 1.0),
    "scaledtanh": _Activation(CellActivation.SCALED_TANH, 1.0, 1.0),
    "hardsigmoid": _Activation(CellActivation.HARD_SIGMOID, 0.2, 0.5),
    "elu": _Activation(CellActivation.ELU, 1.0),
    "softsign": _Activation(CellActivation.SOFTSIGN),
    "softplus": _Activation(CellActivation.SOFTPLUS),
}
"""By their names in the ONNX specification, which are compared without case; defaults of the like-named operators."""

_DEFAULTS = {Cell.RNN: ("Tanh",), Cell.GRU: ("Sigmoid", "Tanh"), Cell.LSTM: ("Sigmoid", "Tanh", "Tanh")}
"""Activations of each direction where the node names none."""
_DIRECTIONS = {direction.name.lower(): direction for direction in CellDirection}
_X, _INITIAL_H, _INITIAL_C = 0, 5, 6


def _recurrent(cell: Cell) -> Lowering:
    def lower(node: NodeContext) -> Sequence[Value]:
        builder = node.builder
        batch_first = bool(node.attribute("layout", 0))
        operands = [node.value(i) if i < 3 else node.optional(i) for i in range(len(node.inputs))]
        if batch_first:
            for position in (_X, _INITIAL_H, _INITIAL_C):
                if position < len(operands):
                    operands[position] = _transposed(builder, operands[position], (1, 0, 2))
        _check_hidden_size(node, operands[2])
        results = builder.emit_all(CommandKind.RECURRENT, operands, max(1, node.output_count), **_fields(node, cell))
        if not batch_first:
            return results
        orders = ((2, 0, 1, 3), (1, 0, 2), (1, 0, 2))
        return [transposed(builder, value, order) for value, order in zip(results, orders, strict=False)]

    return lower


def _transposed(builder: Builder, value: Value | None, order: Sequence[int]) -> Value | None:
    return value if value is None else transposed(builder, value, order)


def _check_hidden_size(node: NodeContext, weights: Value | None) -> None:
    named = node.attribute("hidden_size")
    if named is not None and weights is not None and weights.shape[-1:] != (named,):
        raise Refused(f"hidden_size {named} with recurrent weights {weights.type}")


def _fields(node: NodeContext, cell: Cell) -> dict[str, Any]:
    """The command's attributes. Raises Refused."""
    direction = _DIRECTIONS.get(node.attribute("direction", "forward").lower())
    if direction is None:
        raise Refused(f"direction {node.attribute('direction')!r}")
    directions = 2 if direction is CellDirection.BIDIRECTIONAL else 1
    return {
        "cell": cell,
        "direction": direction,
        "input_forget": int(bool(node.attribute("input_forget", 0))),
        "linear_before_reset": int(bool(node.attribute("linear_before_reset", 0))),
        "clip": node.attribute("clip", 0.0),
        **_activation_fields(node, _DEFAULTS[cell], directions),
    }


def _activation_fields(node: NodeContext, defaults: Sequence[str], directions: int) -> dict[str, Any]:
    """Activations with their parameters, which the node lists only for functions that have them."""
    count = len(defaults) * directions
    names = [_text(name) for name in node.attribute("activations", [*defaults, *defaults][:count])]
    if len(names) != count:
        raise Refused(f"{len(names)} activations; it has {count}")
    unknown = [name for name in names if name.lower() not in _ACTIVATIONS]
    if unknown:
        raise Refused(f"the activation {unknown[0]!r} is unknown; there are {', '.join(_ACTIVATIONS)}")
    chosen = [_ACTIVATIONS[name.lower()] for name in names]
    return {
        "activations": _filled([int(entry.function) for entry in chosen]),
        "alphas": _filled(_parameters(node, "activation_alpha", [entry.alpha for entry in chosen])),
        "betas": _filled(_parameters(node, "activation_beta", [entry.beta for entry in chosen])),
    }


def _text(name: str | bytes) -> str:
    return name.decode() if isinstance(name, bytes) else name


def _parameters(node: NodeContext, attribute: str, defaults: Sequence[float | None]) -> list[float]:
    """One parameter of each activation: listed ones in turn for the functions that have it, then defaults."""
    listed = list(node.attribute(attribute, []))
    return [0.0 if default is None else listed.pop(0) if listed else default for default in defaults]


def _filled(values: Sequence[Any]) -> list[Any]:
    return [*values, *[0] * (MAX_CELL_ACTIVATIONS - len(values))]


LOWERINGS: dict[str, Lowering] = {cell.name: _recurrent(cell) for cell in Cell}
