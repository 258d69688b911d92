"""Programs whose commands and tensors were altered with care: well-formed, and maybe nonsense.

Whatever `verify` accepts must run to its end or to a fault that its data explain; a kernel lets nothing else out.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np
import onnx
from hypothesis import given, settings
from hypothesis import strategies as st

from driver_shim.protocol.commands import Status
from driver_shim.protocol.layout import FieldError
from driver_shim.protocol.program import (
    Binding,
    Command,
    EntryPoint,
    Program,
    Storage,
    Tensor,
    TensorType,
    build,
    make_attributes,
)
from driver_shim.protocol.program_commands import ATTRIBUTES, OPERANDS, CommandKind
from driver_shim.protocol.program_parsing import parse
from driver_shim.protocol.types import WireType, wire_type_of
from emulator.engines.job import ProgramFault
from emulator.model.operators import OPERATORS, SemanticError
from emulator.model.verify import DeviceLimits, ProgramRejected, verify
from sdk.compiler import compile_model
from tests.support.models import model, node, quantised_net, storage_net
from tests.support.programs import execute
from tests.support.quantised_nets import integer_net
from tests.unit.emulator.engines.kernels.test_extents import rows_of

F32 = np.float32
LIMITS = DeviceLimits(memory_bytes=1 << 24, effort=1 << 30)
DATA_FAULTS = {Status.VALUE_OUT_OF_RANGE, Status.INDEX_OUT_OF_RANGE, Status.DIVISION_BY_ZERO}


def mixed_net() -> onnx.ModelProto:
    """Kinds of commands that the other nets lack."""
    window = {"kernel_shape": [3, 2], "pads": [1, 0, 1, 1], "strides": [2, 1]}
    nodes = [
        node("Conv", ["x", "w"], ["c"], group=2, pads=[1, 1, 1, 1], dilations=[1, 2]),
        node("MaxPool", ["c"], ["m"], ceil_mode=1, **window),
        node("AveragePool", ["c"], ["a"], ceil_mode=1, **window),
        node("Concat", ["m", "a"], ["k"], axis=1),
        node("Transpose", ["k"], ["t"], perm=[0, 2, 3, 1]),
        node("Slice", ["t", "starts", "ends", "axes", "steps"], ["s"]),
        node("Pad", ["s", "pads", "fill"], ["p"]),
        node("Pad", ["p", "pads"], ["q"], mode="reflect"),
        node("Softmax", ["q"], ["y"], axis=3),
        node("ReduceMean", ["y"], ["r"], axes=[1, 2], keepdims=0),
        node("Expand", ["r", "wide"], ["e"]),
        node("QuantizeLinear", ["e", "scale", "zero"], ["z"], axis=2),
        node("Div", ["i", "j"], ["d"]),
    ]
    initializers: dict[str, Any] = {
        "w": np.linspace(-1, 1, 4 * 1 * 3 * 3, dtype=F32).reshape(4, 1, 3, 3),
        "starts": np.array([4, 0]),
        "ends": np.array([-10, 3]),
        "axes": np.array([1, 2]),
        "steps": np.array([-1, 1]),
        "pads": np.array([0, 1, 1, 0, 0, 0, 1, 0]),
        "fill": np.array(0.5, F32),
        "wide": np.array([3, 2, 8]),
        "scale": np.linspace(0.1, 1, 8, dtype=F32),
        "zero": np.zeros(8, np.int8),
    }
    inputs = {"x": (F32, (2, 2, 7, 6)), "i": (np.int32, (3,)), "j": (np.int32, (3,))}
    initializers["pads"][5] = 1
    return model(nodes, inputs, {"y": F32, "z": np.int8, "d": np.int32}, initializers, opset=13)


def sequence_net() -> onnx.ModelProto:
    """What networks of text and sound are made of."""
    nodes = [
        node("LSTM", ["x", "w", "r", "b", "lengths", "h", "c", "p"], ["s", "last", "state"], hidden_size=4),
        node("Squeeze", ["s", "one"], ["flat"]),
        node("LayerNormalization", ["flat", "scale"], ["n", "mean", "inverse"], axis=-1),
        node("RotaryEmbedding", ["n", "cos", "sin", "places"], ["q"], num_heads=2),
        node(
            "Attention",
            ["q", "n", "n", "mask", "past", "past"],
            ["a", "keys", "values", "scores"],
            q_num_heads=2,
            kv_num_heads=2,
            is_causal=1,
            softcap=2.0,
        ),
        node(
            "Attention", ["a", "n", "n", "", "", "", "valid"], ["y"], q_num_heads=2, kv_num_heads=2, left_window_size=1
        ),
        node("LinearAttention", ["a", "n", "n", "", "decay", "rate"], ["z", "kept"], q_num_heads=2, kv_num_heads=2),
    ]
    initializers: dict[str, Any] = {
        "w": np.linspace(-1, 1, 16 * 3, dtype=F32).reshape(1, 16, 3),
        "r": np.linspace(-1, 1, 16 * 4, dtype=F32).reshape(1, 16, 4),
        "b": np.linspace(-1, 1, 32, dtype=F32).reshape(1, 32),
        "p": np.linspace(-1, 1, 12, dtype=F32).reshape(1, 12),
        "one": np.array([1]),
        "scale": np.ones(4, F32),
        "cos": np.ones((9, 1), F32),
        "sin": np.ones((9, 1), F32),
    }
    floats = {
        "x": (3, 2, 3),
        "h": (1, 2, 4),
        "c": (1, 2, 4),
        "mask": (2, 3),
        "past": (3, 2, 1, 2),
        "decay": (3, 2, 2),
        "rate": (3, 2, 1),
    }
    integers = {"lengths": (np.int32, (2,)), "places": (np.int64, (3, 2)), "valid": (np.int64, (3,))}
    inputs = {name: (F32, shape) for name, shape in floats.items()} | integers
    outputs = dict.fromkeys(("state", "mean", "keys", "scores", "y", "z", "kept"), F32)
    return model(nodes, inputs, outputs, initializers, opset=onnx.defs.onnx_opset_version())


def image_net() -> onnx.ModelProto:
    """The kinds of commands that image networks alone use."""
    nodes = [
        node("Resize", ["x", "", "scales"], ["larger"], mode="linear"),
        node("Resize", ["larger", "", "", "sizes"], ["smaller"], mode="cubic", antialias=1),
        node("Resize", ["smaller", "roi", "scales"], ["cropped"], coordinate_transformation_mode="tf_crop_and_resize"),
        node("ConvTranspose", ["cropped", "w"], ["t"], strides=[2, 1], output_padding=[1, 0], dilations=[1, 2]),
        node("MaxPool", ["t"], ["m", "places"], kernel_shape=[2, 2], strides=[2, 2]),
        node("MaxUnpool", ["m", "places"], ["y"], kernel_shape=[2, 2], strides=[2, 2]),
        node("LpPool", ["m"], ["l"], kernel_shape=[2, 2], p=3),
        node("GridSample", ["x", "grid"], ["g"], mode="bicubic", padding_mode="reflection"),
        node("RoiAlign", ["x", "rois", "batch"], ["r"], output_height=2, output_width=2),
        node("MaxRoiPool", ["x", "boxes"], ["b"], pooled_shape=[2, 3]),
        node("DeformConv", ["x", "v", "offset"], ["d"], group=2, offset_group=2),
    ]
    initializers = {
        "scales": np.array([1, 1, 2, 1.5], F32),
        "sizes": np.array([1, 2, 3, 5]),
        "roi": np.array([0, 0, 0.1, -0.1, 1, 1, 0.9, 1.1], F32),
        "w": np.linspace(-1, 1, 2 * 3 * 2 * 2, dtype=F32).reshape(2, 3, 2, 2),
        "v": np.linspace(-1, 1, 4 * 1 * 2 * 2, dtype=F32).reshape(4, 1, 2, 2),
    }
    inputs = {
        "x": (F32, (1, 2, 4, 5)),
        "grid": (F32, (1, 3, 2, 2)),
        "rois": (F32, (2, 4)),
        "batch": (np.int64, (2,)),
        "boxes": (F32, (2, 5)),
        "offset": (F32, (1, 16, 3, 4)),
    }
    return model(nodes, inputs, dict.fromkeys("ylgrbd", F32), initializers, opset=19)


def cache_net() -> onnx.ModelProto:
    """A cache that is written into."""
    nodes = [node("TensorScatter", ["past", "update", "at"], ["present"], axis=1)]
    inputs = {"past": (F32, (2, 5, 3)), "update": (F32, (2, 2, 3)), "at": (np.int64, (2,))}
    return model(nodes, inputs, {"present": F32}, opset=24)


@functools.cache
def programs() -> tuple[Program, ...]:
    """Small nets, and each kind of command by itself."""
    nets = [
        compile_model(storage_net(), {"ids": (2, 4), "mask": (2, 4)}),
        compile_model(quantised_net(1, np.int8, form="qdq", per_channel=True, relu=True)[0]),
        compile_model(quantised_net(2, np.uint8, form="operator", per_channel=False, relu=True)[0]),
        compile_model(mixed_net()),
        compile_model(cache_net()),
        compile_model(sequence_net()),
        compile_model(image_net()),
        compile_model(integer_net()),
    ]
    return (*(parse(net.image) for net in nets), *(one_command(kind) for kind in CommandKind))


def one_command(kind: CommandKind) -> Program:
    """A program of one command of a kind, on operands that its first row has."""
    for fields, operands in rows_of(kind, 1):
        attributes = make_attributes(kind, **fields)
        types = [TensorType(wire_type_of(a.dtype), a.shape) if a is not None else None for a in operands]
        try:
            outputs = OPERATORS[kind].infer(attributes, types)
        except SemanticError:
            continue
        held = OPERANDS[kind].states
        given = [
            Tensor(tensor, Storage.STATE if position in held else Storage.INPUT)
            for position, tensor in enumerate(types)
            if tensor is not None
        ]
        places = iter(range(len(given)))
        inputs = tuple(next(places) if tensor is not None else None for tensor in types)
        updates = OPERANDS[kind].in_place in held
        results = (0,) if updates else tuple(range(len(given), len(given) + len(outputs)))
        tensors = (*given, *(() if updates else (Tensor(tensor, Storage.OUTPUT) for tensor in outputs)))
        bound = {
            storage: tuple(Binding(f"t{i}", i) for i, tensor in enumerate(tensors) if tensor.storage is storage)
            for storage in (Storage.INPUT, Storage.OUTPUT, Storage.STATE)
        }
        entry = EntryPoint(
            (Command(kind, attributes, inputs, results),),
            bound[Storage.INPUT],
            bound[Storage.OUTPUT],
            states=bound[Storage.STATE],
        )
        return Program(tensors, (entry,))
    raise AssertionError(f"{kind.name} has no row that it is defined for")


def with_commands(program: Program, commands: tuple[Command, ...]) -> Program:
    return dataclasses.replace(program, entries=(dataclasses.replace(program.entries[0], commands=commands),))


NUMBERS = st.one_of(
    st.integers(0, 9), st.sampled_from([-1, -2, 127, 128, 255, 256, 65535, (1 << 31) - 1, -(1 << 31), (1 << 32) - 1])
)
EXTENTS = st.one_of(st.integers(0, 9), st.sampled_from([64, 1000, 1 << 20, (1 << 31) - 1]))


def altered_command(draw: Any, program: Program) -> Program:
    at = draw(st.integers(0, len(program.commands) - 1))
    command = program.commands[at]
    what = draw(st.sampled_from(["kind", "operand", "field"]))
    inputs, kind = list(command.inputs), command.kind
    fields = {name: command.attributes[name] for name in ATTRIBUTES[kind].fields}
    if what == "operand":
        inputs[draw(st.integers(0, len(inputs) - 1))] = draw(st.integers(0, len(program.tensors) - 1))
    elif what == "kind":
        kind = draw(st.sampled_from(CommandKind))
        fields = {}
    if fields and what == "field":
        name = draw(st.sampled_from(sorted(fields)))
        if isinstance(fields[name], list):
            fields[name] = list(fields[name])
            fields[name][draw(st.integers(0, len(fields[name]) - 1))] = draw(NUMBERS)
        else:
            fields[name] = draw(NUMBERS)
    changed = Command(kind, make_attributes(kind, **fields), tuple(inputs), command.outputs)
    return with_commands(program, (*program.commands[:at], changed, *program.commands[at + 1 :]))


def altered_tensor(draw: Any, program: Program) -> Program:
    at = draw(st.integers(0, len(program.tensors) - 1))
    tensor = program.tensors[at]
    dtype, shape, offset = tensor.type.dtype, list(tensor.type.shape), tensor.offset
    what = draw(st.sampled_from(["dtype", "extent", "rank", "offset"]))
    if what == "dtype":
        dtype = draw(st.sampled_from(WireType))
    elif what == "extent" and shape:
        shape[draw(st.integers(0, len(shape) - 1))] = draw(EXTENTS)
    elif what == "rank":
        shape = draw(st.lists(EXTENTS, max_size=8))
    else:
        offset = 64 * draw(st.integers(0, 40)) if offset else 0
    changed = Tensor(TensorType(dtype, tuple(shape)), tensor.storage, offset)
    return dataclasses.replace(program, tensors=(*program.tensors[:at], changed, *program.tensors[at + 1 :]))


@settings(deadline=None, max_examples=400)
@given(st.data())
def test_what_is_accepted_runs(data: st.DataObject) -> None:
    program = data.draw(st.sampled_from(programs()))
    for _ in range(data.draw(st.integers(1, 4))):
        alter = data.draw(st.sampled_from([altered_command, altered_tensor]))
        try:
            program = alter(data.draw, program)
        except FieldError:
            return
    try:
        image = build(program)
        verified = verify(image, device_limits=LIMITS)
    except (FieldError, ProgramRejected):
        return
    fill = data.draw(st.integers(0, 255))
    inputs = [np.full(size, fill, np.uint8) for size in verified.entries[0].input_sizes]
    constants = [np.full(size, fill, np.uint8) for size in verified.constant_sizes]
    for kernels in ("golden", "numpy"):
        states = [memoryview(bytearray([fill]) * size) for size in verified.entries[0].state_sizes]
        try:
            execute(image, inputs, kernels, constants, states=states)
        except ProgramFault as fault:
            assert fault.status in DATA_FAULTS, fault.message


def test_the_unaltered_programs_are_accepted_and_varied() -> None:
    assert {command.kind for program in programs() for command in program.commands} == set(CommandKind)
    for program in programs():
        assert verify(build(program), device_limits=LIMITS).entries[0].command_count == len(program.commands)
