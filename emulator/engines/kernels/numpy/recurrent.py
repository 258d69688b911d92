"""RECURRENT with its weights packed once, and all of a sequence's inputs multiplied at once.

The usual cells are computed here, over sequences of one length; rarer ones the way golden does.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from driver_shim.protocol.program_commands import Cell, CellActivation, CommandKind
from emulator.engines.kernels.numpy.elementwise import sigmoid
from emulator.engines.kernels.provider import Kernel, KernelRequest
from emulator.model.operators import OPERATORS
from emulator.model.operators.arrays import Array, optional, required, widen
from emulator.model.operators.recurrent import (
    LENGTHS,
    State,
    backwards_of,
    direction_count,
    initial_state,
    weights_of,
)

_WEIGHTS = (1, 2, 3)
"""Positions of the operands that are packed."""
_PEEPHOLES = 7
_USUAL = {
    Cell.RNN: [CellActivation.TANH],
    Cell.GRU: [CellActivation.SIGMOID, CellActivation.TANH],
    Cell.LSTM: [CellActivation.SIGMOID, CellActivation.TANH, CellActivation.TANH],
}


class _Packed(NamedTuple):
    """Weights of one direction: [inputs, G·H], [H, G·H], [G·H]."""

    w: Array
    r: Array
    bias: Array
    """What is added to all steps' inputs."""
    late_bias: Array
    """What a gated unit adds to the product of its state before it resets it: [H]."""


def prepare(request: KernelRequest) -> Kernel:
    """A kernel with its weights packed, if they are known."""
    golden = functools.partial(OPERATORS[CommandKind.RECURRENT].run, request.attributes)
    if not _is_usual(request):
        return golden
    attributes, directions = request.attributes, direction_count(request.attributes.direction)
    known = all(request.constant(i) is not None for i in _WEIGHTS if i < len(request.inputs) and request.inputs[i])
    packed = [_pack(attributes, request.constants, i) for i in range(directions)] if known else None

    def run(inputs: Sequence[Array | None], outputs: Sequence[Array]) -> None:
        lengths = optional(inputs, LENGTHS)
        if lengths is not None and np.any(lengths != len(required(inputs, 0))):
            golden(inputs, outputs)
            return
        weights = packed or [_pack(attributes, inputs, i) for i in range(directions)]
        for index, backwards in enumerate(backwards_of(attributes.direction)):
            _run_direction(attributes, weights[index], index, inputs, outputs, backwards=backwards)

    return run


def _is_usual(request: KernelRequest) -> bool:
    """Whether activations are the default ones, and nothing clips, couples or peeps."""
    attributes = request.attributes
    usual = _USUAL[Cell(attributes.cell)] * direction_count(attributes.direction)
    plain = attributes.clip == 0 and not attributes.input_forget
    holes = len(request.inputs) > _PEEPHOLES and request.inputs[_PEEPHOLES] is not None
    return (
        plain and not holes and list(attributes.activations[: len(usual)]) == usual and request.outputs[0].elements > 0
    )


def _pack(attributes: Any, inputs: Sequence[Array | None], index: int) -> _Packed:
    weights = weights_of(attributes, inputs, index)
    hidden = weights.r.shape[1]
    bias, late = weights.w_bias + weights.r_bias, weights.r_bias[-hidden:]
    if attributes.cell == Cell.GRU and attributes.linear_before_reset:
        bias[-hidden:] -= late
    return _Packed(np.ascontiguousarray(weights.w.T), np.ascontiguousarray(weights.r.T), bias, late)


def _run_direction(
    attributes: Any,
    weights: _Packed,
    index: int,
    inputs: Sequence[Array | None],
    outputs: Sequence[Array],
    *,
    backwards: bool,
) -> None:
    x = widen(required(inputs, 0))
    steps, batch, features = x.shape
    y, *lasts = outputs
    gates = (x.reshape(steps * batch, features) @ weights.w).reshape(steps, batch, -1)
    gates += weights.bias
    state = initial_state(inputs, index, (batch, y.shape[-1]))
    step = _STEPS[Cell(attributes.cell)]
    for time in range(steps - 1, -1, -1) if backwards else range(steps):
        state = step(attributes, weights, gates[time], state)
        y[time, index] = state.h
    for last, values in zip(lasts, state, strict=False):
        last[index] = values


def _rnn(_attributes: Any, weights: _Packed, gates: Array, state: State) -> State:
    gates += state.h @ weights.r
    return State(np.tanh(gates, out=gates), state.c)


def _gru(attributes: Any, weights: _Packed, gates: Array, state: State) -> State:
    hidden = state.h.shape[1]
    both = 2 * hidden
    if attributes.linear_before_reset:
        products = state.h @ weights.r
        gates[:, :both] += products[:, :both]
        sigmoid(gates[:, :both], gates[:, :both])
        linear = products[:, both:]
        linear += weights.late_bias
        linear *= gates[:, hidden:both]
    else:
        gates[:, :both] += state.h @ weights.r[:, :both]
        sigmoid(gates[:, :both], gates[:, :both])
        linear = (gates[:, hidden:both] * state.h) @ weights.r[:, both:]
    update, new = gates[:, :hidden], gates[:, both:]
    new += linear
    np.tanh(new, out=new)
    return State(new + update * (state.h - new), state.c)


def _lstm(_attributes: Any, weights: _Packed, gates: Array, state: State) -> State:
    hidden = state.h.shape[1]
    gates += state.h @ weights.r
    sigmoid(gates[:, : 3 * hidden], gates[:, : 3 * hidden])
    new = np.tanh(gates[:, 3 * hidden :])
    new *= gates[:, :hidden]
    c = gates[:, 2 * hidden : 3 * hidden] * state.c
    c += new
    return State(gates[:, hidden : 2 * hidden] * np.tanh(c), c)


_STEPS: dict[Cell, Callable[[Any, _Packed, Array, State], State]] = {
    Cell.RNN: _rnn,
    Cell.GRU: _gru,
    Cell.LSTM: _lstm,
}
