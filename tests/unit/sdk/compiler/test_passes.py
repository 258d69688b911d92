"""Passes fuse what goes together, and remember which nodes a command came from."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from driver_shim.protocol.program import TensorType
from driver_shim.protocol.program_commands import (
    Activation,
    BinaryFunction,
    CommandKind,
    ReduceFunction,
    UnaryFunction,
)
from driver_shim.protocol.types import WireType
from sdk.compiler.ir import Builder, Operation, Value
from sdk.compiler.passes import finished, fused
from tests.support.programs import window

F32 = np.float32


class Net:
    """Operations on an input, each from a node of the name given."""

    def __init__(self, *shape: int) -> None:
        self.builder = Builder()
        self.x = Value(TensorType(WireType.FLOAT32, shape))

    def constant(self, *shape: int) -> Value:
        return self.builder.constant(np.random.default_rng(len(shape)).normal(size=shape).astype(F32))

    def emit(self, node: str, kind: CommandKind, *inputs: Value, **attributes: Any) -> Value:
        self.builder.node = node
        return self.builder.emit(kind, inputs, **attributes)

    def convolution(self, node: str, x: Value, *more: Value) -> Value:
        return self.emit(node, CommandKind.CONV, x, self.constant(5, x.shape[1], 3, 3), *more, **window(), group=1)

    def binary(self, node: str, function: BinaryFunction, *operands: Value) -> Value:
        return self.emit(node, CommandKind.BINARY, *operands, function=function)

    def relu(self, node: str, x: Value) -> Value:
        return self.emit(node, CommandKind.UNARY, x, function=UnaryFunction.RELU)

    def optimised(self, *outputs: Value) -> list[Operation]:
        return finished(fused(self.builder.operations, outputs))


def test_a_fused_command_keeps_the_names_of_the_nodes_it_came_from() -> None:
    net = Net(1, 4, 6, 6)
    scaled = net.binary("scale", BinaryFunction.MUL, net.convolution("conv", net.x), net.constant(5, 1, 1))
    moved = net.binary("offset", BinaryFunction.ADD, net.constant(5, 1, 1), scaled)
    (command,) = net.optimised(net.relu("relu", moved))
    assert command.nodes == ("conv", "scale", "offset", "relu")
    assert (command.node, command.kind) == ("conv + scale + offset + relu", CommandKind.CONV)
    assert command.attributes.activation == Activation.RELU


def test_a_factor_and_an_offset_go_into_weights_and_bias() -> None:
    net = Net(1, 4, 6, 6)
    bias, factor, offset = net.constant(5), net.constant(5, 1, 1), net.constant(1, 5, 1, 1)
    product = net.convolution("conv", net.x, bias)
    weights = np.asarray(net.builder.operations[0].inputs[1].constant)  # type: ignore[union-attr]
    scaled = net.binary("scale", BinaryFunction.MUL, product, factor)
    (command,) = net.optimised(net.binary("offset", BinaryFunction.ADD, scaled, offset))
    _, new_weights, new_bias = command.inputs
    assert new_weights is not None and new_bias is not None
    by, at = np.asarray(factor.constant).reshape(5), np.asarray(offset.constant).reshape(5)
    np.testing.assert_allclose(np.asarray(new_weights.constant), weights * by.reshape(5, 1, 1, 1))
    np.testing.assert_allclose(np.asarray(new_bias.constant), np.asarray(bias.constant) * by + at, rtol=1e-6)


@pytest.mark.parametrize("shape", [(5, 6, 1), (1,), (6,)])
def test_what_is_no_element_for_each_channel_stays_a_command(shape: tuple[int, ...]) -> None:
    net = Net(1, 4, 8, 8)
    net.optimised()
    total = net.binary("add", BinaryFunction.ADD, net.convolution("conv", net.x), net.constant(*shape))
    assert [command.kind for command in net.optimised(total)] == [CommandKind.CONV, CommandKind.BINARY]


def test_a_product_that_is_read_twice_or_given_is_not_absorbed() -> None:
    net = Net(1, 4, 6, 6)
    product = net.convolution("conv", net.x)
    first, second = net.relu("a", product), net.relu("b", product)
    assert len(net.optimised(first, second)) == 3
    net = Net(1, 4, 6, 6)
    product = net.convolution("conv", net.x)
    assert len(net.optimised(product, net.relu("a", product))) == 2


def test_a_chain_of_products_is_fused_link_by_link() -> None:
    net = Net(1, 4, 9, 9)
    x = net.x
    for layer in range(3):
        moved = net.binary(f"add{layer}", BinaryFunction.ADD, net.convolution(f"conv{layer}", x), net.constant(5, 1, 1))
        x = net.relu(f"relu{layer}", moved)
    commands = net.optimised(x)
    assert [command.nodes for command in commands] == [(f"conv{i}", f"add{i}", f"relu{i}") for i in range(3)]


def test_what_nothing_reads_goes() -> None:
    net = Net(1, 4, 6, 6)
    net.relu("unread", net.convolution("conv", net.x))
    kept = net.relu("kept", net.x)
    assert [command.node for command in net.optimised(kept)] == ["kept"]


def test_dequantised_constants_are_folded_when_nothing_fused_them() -> None:
    net = Net(2, 3)
    whole = net.builder.constant(np.array([1, 2, 3], np.int8))
    scale, zero = net.builder.constant(np.array(0.5, F32)), net.builder.constant(np.array(1, np.int8))
    real = net.emit("dequantise", CommandKind.DEQUANTIZE, whole, scale, zero, axis=0)
    (command,) = net.optimised(net.binary("add", BinaryFunction.ADD, net.x, real))
    assert command.inputs[1] is real
    np.testing.assert_array_equal(real.constant, np.array([0, 0.5, 1], F32))


def test_a_sum_of_a_convolution_and_another_result_is_part_of_it_and_so_is_what_follows() -> None:
    net = Net(1, 4, 6, 6)
    shortcut = net.relu("shortcut", net.convolution("first", net.x))
    total = net.binary("add", BinaryFunction.ADD, shortcut, net.convolution("second", net.x))
    first, second = net.optimised(net.relu("relu", total))
    assert [command.kind for command in (first, second)] == [CommandKind.CONV] * 2
    assert second.nodes == ("second", "add", "relu") and second.inputs[2:] == (None, first.outputs[0])
    assert second.attributes.activation == Activation.RELU


def test_only_one_tensor_of_the_same_shape_is_added_within_a_convolution() -> None:
    net = Net(1, 4, 6, 6)
    other = net.relu("other", net.convolution("first", net.x))
    once = net.binary("once", BinaryFunction.ADD, net.convolution("second", net.x), other)
    twice = net.binary("twice", BinaryFunction.ADD, once, other)
    kinds = [command.kind for command in net.optimised(twice)]
    assert kinds == [CommandKind.CONV, CommandKind.CONV, CommandKind.BINARY]

    net = Net(1, 5, 4, 4)
    channels = net.emit("sum", CommandKind.REDUCE, net.x, function=ReduceFunction.SUM, axes=0b1100, keep=1)
    wide = net.binary("add", BinaryFunction.ADD, net.convolution("conv", net.x), channels)
    assert [command.kind for command in net.optimised(wide)] == [
        CommandKind.REDUCE,
        CommandKind.CONV,
        CommandKind.BINARY,
    ]
