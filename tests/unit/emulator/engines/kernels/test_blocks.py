"""Convolutions that pass their results on in blocks of channels give what golden kernels give."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest

from driver_shim.protocol.program import Storage
from driver_shim.protocol.program_commands import CommandKind
from driver_shim.protocol.program_parsing import parse
from emulator.engines.kernels.blocks import PlacedRequest, with_blocks
from emulator.engines.kernels.choice import prepare_all
from emulator.engines.kernels.provider import KernelRequest
from emulator.model.work import types_of
from sdk.compiler import CompiledProgram, compile_model
from tests.support.models import model, node
from tests.support.needs import module_of_extra
from tests.support.programs import execute_compiled

F32 = np.float32
SIZE = 16
RANDOM = np.random.default_rng(7)
HALO: dict[str, Any] = {"pads": [1, 1, 1, 1]}


class Net:
    """A network of images as it grows, its weights random."""

    def __init__(self, channels: int, extent: int = 9) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, np.ndarray] = {}
        self.channels = {"x": channels}
        self.extent = extent

    def conv(self, x: str, channels: int, kernel: int = 1, *, bias: bool = True, **attributes: Any) -> str:
        """Append a convolution."""
        group = attributes.get("group", 1)
        name = f"c{len(self.nodes)}"
        shape = (channels, self.channels[x] // group, kernel, kernel)
        self.weights[f"{name}w"] = RANDOM.normal(0, 0.2, shape).astype(F32)
        operands = [x, f"{name}w"]
        if bias:
            self.weights[f"{name}b"] = RANDOM.normal(size=channels).astype(F32)
            operands.append(f"{name}b")
        return self._add("Conv", operands, name, channels, **attributes)

    def add(self, op: str, *inputs: str, **attributes: Any) -> str:
        """Append another node, which keeps the channels of its first input, or all of them."""
        channels = sum(self.channels[x] for x in inputs) if op == "Concat" else self.channels[inputs[0]]
        return self._add(op, list(inputs), f"n{len(self.nodes)}", channels, **attributes)

    def _add(self, op: str, inputs: list[str], name: str, channels: int, **attributes: Any) -> str:
        self.nodes.append(node(op, inputs, [name], **attributes))
        self.channels[name] = channels
        return name

    def compiled(self, *outputs: str) -> CompiledProgram:
        """It, compiled."""
        shape = (2, self.channels["x"], self.extent, self.extent)
        return compile_model(model(self.nodes, {"x": (F32, shape)}, dict.fromkeys(outputs, F32), self.weights))


def residual() -> CompiledProgram:
    """Few channels first, maxima, an addend in blocks, one that is not, activations with and without limits."""
    net = Net(3)
    stem = net.add("Relu", net.conv("x", 32, 3, strides=[2, 2], **HALO))
    pooled = net.add("MaxPool", stem, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    inner = net.add("Clip", net.conv(pooled, 16, 3, bias=False, dilations=[2, 2], pads=[2, 2, 2, 2]))
    net.nodes[-1].input.extend(["low", "high"])
    net.weights |= {"low": np.array(-0.5, F32), "high": np.array(0.75, F32)}
    joined = net.add("Relu", net.add("Add", net.conv(inner, 32), pooled))
    return net.compiled(joined, net.conv(joined, 16))


def branching() -> CompiledProgram:
    """Concatenation, element-wise functions, groups and depthwise, and a result that something else reads, too."""
    net = Net(16)
    squeezed = net.add("Relu", net.conv("x", 16))
    both = net.add("Concat", net.conv(squeezed, 32), net.conv(squeezed, 16, 3, **HALO), axis=1)
    deep = net.conv(both, 48, 3, group=48, **HALO)
    lively = net.add("Mul", deep, net.add("Sigmoid", deep))
    grouped = net.conv(net.conv(lively, 64), 32, group=2)
    return net.compiled(net.conv(grouped, 16), net.add("GlobalAveragePool", grouped))


def uneven() -> CompiledProgram:
    """Channels that fill no blocks, before, between and after those that do."""
    net = Net(20)
    first = net.conv(net.conv("x", 16), 24, 3, **HALO)
    return net.compiled(net.conv(net.conv(net.conv(net.conv(first, 32), 16), 16), 5))


NETS = {"residual": residual, "branching": branching, "uneven": uneven}


def image_for(compiled: CompiledProgram) -> np.ndarray:
    return RANDOM.normal(size=[int(extent) for extent in compiled.inputs[0].shape]).astype(F32)


def placed(compiled: CompiledProgram) -> tuple[list[PlacedRequest], set[int]]:
    program = parse(compiled.image)
    (entry,) = program.entries
    values = dict(zip(program.constants, (constant.array for constant in compiled.constants), strict=True))
    commands = []
    for command in entry.commands:
        inputs, outputs = types_of(command, program.tensors)
        constants = tuple(None if tensor is None else values.get(tensor) for tensor in command.inputs)
        asked = KernelRequest(command.kind, command.attributes, tuple(inputs), tuple(outputs), constants)
        commands.append(PlacedRequest(asked, tuple(command.inputs), tuple(command.outputs)))
    return commands, {at for at, each in enumerate(program.tensors) if each.storage is Storage.WORKSPACE}


def told(requests: Sequence[KernelRequest]) -> list[tuple[str, list[int], bool]]:
    """Of each command that has to know of blocks: kind, operands in blocks, whether its output is."""
    return [(r.kind.name, sorted(r.blocks.inputs), r.blocks.output) for r in requests if r.blocks is not None]


@pytest.mark.parametrize("make", NETS.values(), ids=NETS.keys())
def test_a_network_of_convolutions_agrees_with_golden(make: Any) -> None:
    module_of_extra("onnxruntime", "models")
    compiled = make()
    x = image_for(compiled)
    expected, _ = execute_compiled(compiled, [x], "golden")
    found, report = execute_compiled(compiled, [x], "auto")
    assert any(run.kernel == "onnxruntime.conv" for run in report)
    for wanted, got in zip(expected, found, strict=True):
        assert np.abs(got - wanted).max() <= 1e-5 * np.abs(wanted).max()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_maxima_in_blocks_do_not_pass_over_what_is_no_number(value: float) -> None:
    module_of_extra("onnxruntime", "models")
    net = Net(16)
    net.weights["one"] = np.eye(16, dtype=F32).reshape(16, 16, 1, 1)
    first = net._add("Conv", ["x", "one"], "first", 16)
    pooled = net.add("MaxPool", first, kernel_shape=[2, 3], strides=[2, 1], pads=[0, 1, 1, 1])
    compiled = net.compiled(net._add("Conv", [pooled, "one"], "last", 16))
    assert ("POOL", [0], True) in told(with_blocks(*placed(compiled), SIZE))
    x = image_for(compiled)
    x[:, :, 4, 4] = value
    (expected,), _ = execute_compiled(compiled, [x], "golden")
    (found,), _ = execute_compiled(compiled, [x], "auto")
    np.testing.assert_array_equal(found, expected)


def test_what_convolutions_give_each_other_lies_in_blocks_and_nothing_else() -> None:
    assert told(with_blocks(*placed(residual()), SIZE)) == [
        ("CONV", [], True),  # of three channels, which are taken as they are
        ("POOL", [0], True),
        ("CONV", [0], True),
        ("CONV", [0, 3], False),  # an output of the network
    ]
    assert told(with_blocks(*placed(uneven()), SIZE)) == [("CONV", [], True), ("CONV", [0], False)]


def test_a_result_that_is_read_in_c_order_too_stays_in_it() -> None:
    requests = with_blocks(*placed(branching()), SIZE)
    last = [request for request in requests if request.kind is CommandKind.CONV][-2:]
    assert [request.blocks and request.blocks.output for request in last] == [False, None]


def test_nothing_lies_in_blocks_where_no_provider_has_them() -> None:
    commands, private = placed(residual())
    assert prepare_all("numpy", commands, private)[0].name == "numpy.conv"
    compiled = residual()
    x = image_for(compiled)
    expected, _ = execute_compiled(compiled, [x], "golden")
    found, _ = execute_compiled(compiled, [x], "numpy")
    for wanted, got in zip(expected, found, strict=True):
        assert np.abs(got - wanted).max() <= 1e-5 * np.abs(wanted).max()
