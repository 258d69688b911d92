"""Recurrent networks: RNN, GRU and LSTM, one or both directions in one command."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from driver_shim.protocol.commands import Status
from driver_shim.protocol.program import TensorType
from driver_shim.protocol.program_commands import MAX_CELL_ACTIVATIONS, Cell, CellActivation, CellDirection, CommandKind
from driver_shim.protocol.types import FLOATS, WireType
from emulator.model.operators.arrays import Array, KernelFault, optional, required, sigmoid, widen
from emulator.model.operators.operator import Operator, Types, function, given, one_type
from emulator.model.operators.products import bits_of
from emulator.model.operators.shapes import need
from emulator.model.timing import Product

LENGTHS = 4
"""Position of the operand that holds the sequences' lengths."""
_STATES = (5, 6)
"""Positions of the initial hidden and cell state."""
_PEEPHOLES = 7
_GATE_ACTIVATIONS = 2
"""Of a direction, f and g; an LSTM's h works on its state. onnxruntime clips likewise."""
_STEP_PASSES = 32
"""Array operations of one step of one direction, each at a host's fixed cost."""

_F32 = np.float32


class CellTraits(NamedTuple):
    """What a kind of cell has."""

    gates: int
    activations: int
    """Of one direction."""


TRAITS = {Cell.RNN: CellTraits(1, 1), Cell.GRU: CellTraits(3, 2), Cell.LSTM: CellTraits(4, 3)}

Activate = Callable[[Array], Array]
_Activate = Callable[[Array, Any, Any], Array]

_ACTIVATIONS: dict[CellActivation, _Activate] = {
    CellActivation.RELU: lambda x, _a, _b: np.maximum(x, _F32(0)),
    CellActivation.TANH: lambda x, _a, _b: np.tanh(x),
    CellActivation.SIGMOID: lambda x, _a, _b: sigmoid(x),
    CellActivation.AFFINE: lambda x, a, b: a * x + b,
    CellActivation.LEAKY_RELU: lambda x, a, _b: np.where(x < 0, a * x, x),
    CellActivation.THRESHOLDED_RELU: lambda x, a, _b: np.where(x >= a, x, _F32(0)),
    CellActivation.SCALED_TANH: lambda x, a, b: a * np.tanh(b * x),
    CellActivation.HARD_SIGMOID: lambda x, a, b: np.clip(a * x + b, _F32(0), _F32(1)),
    CellActivation.ELU: lambda x, a, _b: np.where(x < 0, a * np.expm1(np.minimum(x, _F32(0))), x),
    CellActivation.SOFTSIGN: lambda x, _a, _b: x / (1 + np.abs(x)),
    CellActivation.SOFTPLUS: lambda x, _a, _b: np.logaddexp(x, _F32(0)),
}


class Weights(NamedTuple):
    """Of one direction, in float32; H is the hidden size, G the number of gates."""

    w: Array
    """[G·H, inputs]"""
    r: Array
    """[G·H, H]"""
    w_bias: Array
    """[G·H]"""
    r_bias: Array
    peepholes: Array
    """[3·H], for the gates i, o and f."""


class State(NamedTuple):
    """Of some sequences between two steps: [sequences, H] each."""

    h: Array
    c: Array


class Recurrent(Operator):
    """RECURRENT."""

    kind = CommandKind.RECURRENT
    flags = ("input_forget", "linear_before_reset")

    def infer(self, attributes: Any, inputs: Types) -> Sequence[TensorType]:
        cell, direction = function(Cell, attributes.cell), function(CellDirection, attributes.direction)
        dtype = one_type([tensor for i, tensor in enumerate(inputs) if i != LENGTHS], FLOATS)
        x, r, directions = given(inputs, 0), given(inputs, 2), direction_count(direction)
        need(len(x.shape) == 3 and len(r.shape) == 3, f"data {x} and recurrent weights {r}; both of rank 3")
        steps, batch, features = x.shape
        hidden, gates = r.shape[-1], TRAITS[cell].gates
        states = (directions, batch, hidden)
        wanted = {
            1: (directions, gates * hidden, features),
            2: (directions, gates * hidden, hidden),
            3: (directions, 2 * gates * hidden),
            LENGTHS: (batch,),
            5: states,
            6: states,
            _PEEPHOLES: (directions, 3 * hidden),
        }
        for position, shape in wanted.items():
            found = optional(inputs, position)
            need(found is None or found.shape == shape, f"operand {position} is {found}; its shape must be {shape}")
        lengths = optional(inputs, LENGTHS)
        need(lengths is None or lengths.dtype is WireType.INT32, f"lengths {lengths}; they are int32")
        plain = optional(inputs, 6) is None and optional(inputs, _PEEPHOLES) is None
        need(cell is Cell.LSTM or plain, f"a {cell.name} has no cell state and no peepholes")
        _check_activations(attributes, TRAITS[cell].activations * directions)
        output = TensorType(dtype, (steps, directions, batch, hidden))
        return [output, *[TensorType(dtype, states)] * (2 if cell is Cell.LSTM else 1)]

    def macs(self, attributes: Any, inputs: Types, outputs: Sequence[TensorType]) -> int:
        w, r = given(inputs, 1), given(inputs, 2)
        return outputs[0].elements * TRAITS[Cell(attributes.cell)].gates * (w.shape[-1] + r.shape[-1])

    def products(self, attributes: Any, inputs: Types, outputs: Sequence[TensorType]) -> tuple[Product, ...]:
        """All steps' inputs at once, and the states of one step after the other; directions side by side."""
        w, r = given(inputs, 1), given(inputs, 2)
        steps, directions, batch, _ = outputs[0].shape
        bits = bits_of(w)
        return (
            Product(steps * batch, w.shape[-1], w.shape[-2], directions, 1, bits, bits),
            Product(batch, r.shape[-1], r.shape[-2], directions, steps, bits, bits),
        )

    def passes(self, attributes: Any, inputs: Types, outputs: Sequence[TensorType]) -> int:
        steps, directions = outputs[0].shape[:2]
        return 1 + steps * directions * _STEP_PASSES

    def run(self, attributes: Any, inputs: Sequence[Array | None], outputs: Sequence[Array]) -> None:
        """RNN, GRU, LSTM (opset 14) with layout 0; Y is 0 beyond a sequence's length.

        x [steps, batch, inputs], w [directions, G·H, inputs], r [directions, G·H, H], bias [directions, 2·G·H],
        initial states [directions, batch, H]; gates in the order of the specification: iofc, zrh. The last states of a
        sequence of no steps, which it leaves open, are 0.
        """
        x = widen(required(inputs, 0))
        y, *lasts = outputs
        lengths = checked_lengths(optional(inputs, LENGTHS), x.shape[0], x.shape[1])
        y[...] = 0
        for index, backwards in enumerate(backwards_of(attributes.direction)):
            weights = weights_of(attributes, inputs, index)
            activations = activations_of(attributes, index)
            state = initial_state(inputs, index, (x.shape[1], y.shape[-1]))
            for step in range(int(lengths.max(initial=0))):
                going = np.flatnonzero(step < lengths)
                times = lengths[going] - 1 - step if backwards else np.full(len(going), step)
                before = State(state.h[going], state.c[going])
                after = _STEPS[Cell(attributes.cell)](attributes, weights, activations, x[times, going], before)
                state.h[going], state.c[going] = after
                y[times, index, going] = after.h
            for last, values in zip(lasts, state, strict=False):
                last[index] = np.where(lengths[:, None] > 0, values, _F32(0))


def direction_count(direction: int) -> int:
    """How many directions a command computes."""
    return 2 if direction == CellDirection.BIDIRECTIONAL else 1


def backwards_of(direction: int) -> Sequence[bool]:
    """For each direction of a command whether it goes backwards."""
    return (False, True) if direction == CellDirection.BIDIRECTIONAL else (direction == CellDirection.REVERSE,)


def checked_lengths(lengths: Array | None, steps: int, batch: int) -> Array:
    """The sequences' lengths; all steps where there are none. Raises KernelFault."""
    if lengths is None:
        return np.full(batch, steps, np.int64)
    if np.any((lengths < 0) | (lengths > steps)):
        raise KernelFault(Status.VALUE_OUT_OF_RANGE, f"a sequence's length is outside 0 to {steps}")
    return lengths.astype(np.int64)


def weights_of(attributes: Any, inputs: Sequence[Array | None], index: int) -> Weights:
    """The weights of one direction; those that are absent are 0."""
    w, r = (widen(required(inputs, position)[index]) for position in (1, 2))
    bias, peepholes = optional(inputs, 3), optional(inputs, _PEEPHOLES)
    width = len(r)
    both = np.zeros(2 * width, _F32) if bias is None else widen(bias[index])
    holes = np.zeros(3 * r.shape[-1], _F32) if peepholes is None else widen(peepholes[index])
    return Weights(w, r, both[:width], both[width:], holes)


def initial_state(inputs: Sequence[Array | None], index: int, shape: tuple[int, int]) -> State:
    """The state that one direction begins with: what is given, or zeros."""
    given_states = [optional(inputs, position) for position in _STATES]
    return State(*(np.zeros(shape, _F32) if s is None else s[index].astype(_F32) for s in given_states))


def activations_of(attributes: Any, index: int) -> list[Activate]:
    """The activations of one direction; those of gates clip what they are given, that of a cell's state does not."""
    count = TRAITS[Cell(attributes.cell)].activations
    return [_activation(attributes, index * count + i, clips=i < _GATE_ACTIVATIONS) for i in range(count)]


def _activation(attributes: Any, place: int, *, clips: bool) -> Activate:
    activate = _ACTIVATIONS[CellActivation(attributes.activations[place])]
    alpha, beta, clip = (_F32(v) for v in (attributes.alphas[place], attributes.betas[place], attributes.clip))
    if clip == 0 or not clips:
        return lambda x: activate(x, alpha, beta)
    return lambda x: activate(np.clip(x, -clip, clip), alpha, beta)


def _check_activations(attributes: Any, count: int) -> None:
    for place in range(MAX_CELL_ACTIVATIONS):
        if place < count:
            function(CellActivation, attributes.activations[place])
        else:
            need(attributes.activations[place] == 0, f"more than {count} activations")
    need(attributes.clip >= 0, f"clip is {attributes.clip}; it must not be negative")


# --- one step of each cell, after the equations of the ONNX specification -------------------------------------------


def _rnn(_attributes: Any, weights: Weights, activations: Sequence[Activate], x: Array, state: State) -> State:
    (f,) = activations
    return State(f(x @ weights.w.T + state.h @ weights.r.T + weights.w_bias + weights.r_bias), state.c)


def _gru(attributes: Any, weights: Weights, activations: Sequence[Activate], x: Array, state: State) -> State:
    f, g = activations
    wz, wr, wh = np.split(x @ weights.w.T + weights.w_bias, 3, axis=1)
    rz, rr, rh = np.split(weights.r, 3)
    bz, br, bh = np.split(weights.r_bias, 3)
    h = state.h
    update = f(wz + h @ rz.T + bz)
    reset = f(wr + h @ rr.T + br)
    linear = reset * (h @ rh.T + bh) if attributes.linear_before_reset else (reset * h) @ rh.T + bh
    return State((1 - update) * g(wh + linear) + update * h, state.c)


def _lstm(attributes: Any, weights: Weights, activations: Sequence[Activate], x: Array, state: State) -> State:
    f, g, h = activations
    sums = x @ weights.w.T + state.h @ weights.r.T + weights.w_bias + weights.r_bias
    enter, leave, forget, new = np.split(sums, 4, axis=1)
    by_enter, by_leave, by_forget = np.split(weights.peepholes, 3)
    entered = f(enter + by_enter * state.c)
    kept = 1 - entered if attributes.input_forget else f(forget + by_forget * state.c)
    c = kept * state.c + entered * g(new)
    return State(f(leave + by_leave * c) * h(c), c)


_STEPS = {Cell.RNN: _rnn, Cell.GRU: _gru, Cell.LSTM: _lstm}

OPERATORS: tuple[Operator, ...] = (Recurrent(),)
