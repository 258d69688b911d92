"""What the compiler makes of models: folding, fusing, memory reuse, shapes, determinism."""

from __future__ import annotations

import itertools
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import TensorProto
from onnx.reference import ReferenceEvaluator

from driver_shim.errors import UnsupportedModel
from driver_shim.protocol.program import ALIGNMENT, Storage
from driver_shim.protocol.program_commands import Activation, CommandKind
from driver_shim.protocol.program_parsing import parse
from sdk.compiler import TensorInfo, compile_model, model_signature
from tests.support.models import model, node, quantised_net, storage_net
from tests.support.programs import execute_compiled, run

F32 = np.float32
IMPORT_TIMEOUT_SECONDS = 120


def kinds(image: bytes) -> list[CommandKind]:
    return [command.kind for command in parse(image).commands]


def ones(*shape: int) -> NDArray[Any]:
    return np.ones(shape, F32)


def test_equal_models_give_equal_bytes() -> None:
    shapes = {"ids": (3, 4), "mask": (3, 4)}
    assert compile_model(storage_net(), shapes) == compile_model(storage_net(), shapes)


def test_the_signature_names_unknown_dimensions() -> None:
    net = model([node("Relu", ["x"], ["y"])], {"x": (F32, ("n", None, 3))}, {"y": F32})  # type: ignore[dict-item]
    inputs, outputs, _ = model_signature(net)
    assert inputs == (TensorInfo("x", ("n", "x.1", 3), "float32"),)
    assert str(inputs[0]) == "x: float32[n, x.1, 3]"
    assert [info.name for info in outputs] == ["y"]


def test_shape_arithmetic_never_reaches_the_device() -> None:
    net = model(
        [
            node("Shape", ["x"], ["shape"]),
            node("Gather", ["shape", "zero"], ["batch"], axis=0),
            node("Unsqueeze", ["batch", "axes"], ["batch_1d"]),
            node("Concat", ["batch_1d", "rest"], ["target"], axis=0),
            node("Reshape", ["x", "target"], ["y"]),
        ],
        {"x": (F32, ("n", 2, 3))},
        {"y": F32},
        {"zero": np.array(0), "axes": np.array([0]), "rest": np.array([-1])},
    )
    compiled = compile_model(net, {"x": (4, 2, 3)})
    assert kinds(compiled.image) == [CommandKind.COPY]
    assert compiled.outputs == (TensorInfo("y", (4, 6), "float32"),)
    assert compiled.plan.constants_bytes == 0


def test_what_no_output_needs_is_dropped() -> None:
    nodes = [node("Relu", ["x"], ["y"]), node("MatMul", ["x", "w"], ["unused"])]
    compiled = compile_model(model(nodes, {"x": (F32, (2, 2))}, {"y": F32}, {"w": ones(2, 2)}))
    assert kinds(compiled.image) == [CommandKind.UNARY]
    assert compiled.plan.constants_bytes == 0


@pytest.mark.parametrize("bias_first", [False, True])
@pytest.mark.parametrize(
    ("op", "fused"), [("Relu", Activation.RELU), ("Sigmoid", Activation.SIGMOID), ("Tanh", Activation.TANH)]
)
def test_product_bias_and_activation_are_one_command(bias_first: bool, op: str, fused: Activation) -> None:
    addends = ["b", "p"] if bias_first else ["p", "b"]
    net = model(
        [node("MatMul", ["x", "w"], ["p"]), node("Add", addends, ["s"]), node(op, ["s"], ["y"])],
        {"x": (F32, (1, 2))},
        {"y": F32},
        {"w": ones(2, 3), "b": np.array([-4, 0, 1], F32)},
    )
    compiled = compile_model(net)
    (command,) = parse(compiled.image).commands
    assert (command.kind, command.attributes.activation) == (CommandKind.MATMUL, fused)
    sums = np.array([[-1, 3, 4]], F32)
    expected = {"Relu": np.maximum(sums, 0), "Sigmoid": 1 / (1 + np.exp(-sums)), "Tanh": np.tanh(sums)}[op]
    np.testing.assert_allclose(run(compiled, {"x": np.array([[1, 2]], F32)})["y"], expected, rtol=1e-6)


def normalised_convolution(*, biased: bool, reused: bool = False) -> Any:
    """Conv, BatchNormalization and Relu, as image networks have them; `reused` takes the product elsewhere, too."""
    random = np.random.default_rng(8)
    weights = {
        "w": random.normal(size=(4, 3, 3, 3)).astype(F32),
        "b": random.normal(size=4).astype(F32),
        **{name: random.normal(size=4).astype(F32) for name in ("scale", "shift", "mean")},
        "variance": random.uniform(0.1, 2, 4).astype(F32),
    }
    nodes = [
        node("Conv", ["x", "w", "b"] if biased else ["x", "w"], ["c"], pads=[1, 1, 1, 1]),
        node("BatchNormalization", ["c", "scale", "shift", "mean", "variance"], ["n"], epsilon=1e-3),
        node("Relu", ["n"], ["r"]),
        *([node("Add", ["r", "c"], ["y"])] if reused else [node("Identity", ["r"], ["y"])]),
    ]
    return model(nodes, {"x": (F32, (2, 3, 5, 4))}, {"y": F32}, weights, opset=15)


@pytest.mark.parametrize("biased", [False, True])
def test_a_batch_normalisation_goes_into_the_convolution_before_it(biased: bool) -> None:
    net = normalised_convolution(biased=biased)
    compiled = compile_model(net)
    (command,) = [command for command in parse(compiled.image).commands if command.kind is not CommandKind.COPY]
    assert (command.kind, command.attributes.activation) == (CommandKind.CONV, Activation.RELU)
    x = np.random.default_rng(9).normal(size=(2, 3, 5, 4)).astype(F32)
    (expected,) = ReferenceEvaluator(net).run(None, {"x": x})
    np.testing.assert_allclose(run(compiled, {"x": x})["y"], expected, rtol=1e-4, atol=1e-5)


def test_a_convolution_that_is_used_elsewhere_too_keeps_its_weights() -> None:
    net = normalised_convolution(biased=True, reused=True)
    compiled = compile_model(net)
    assert kinds(compiled.image).count(CommandKind.CONV) == 1 and CommandKind.BINARY in kinds(compiled.image)
    x = np.random.default_rng(9).normal(size=(2, 3, 5, 4)).astype(F32)
    (expected,) = ReferenceEvaluator(net).run(None, {"x": x})
    np.testing.assert_allclose(run(compiled, {"x": x})["y"], expected, rtol=1e-4, atol=1e-5)


def test_a_product_that_is_used_twice_is_not_fused_away() -> None:
    net = model(
        [node("MatMul", ["x", "w"], ["p"]), node("Relu", ["p"], ["r"]), node("Add", ["p", "r"], ["y"])],
        {"x": (F32, (1, 2))},
        {"y": F32},
        {"w": ones(2, 1)},
    )
    assert kinds(compile_model(net).image) == [CommandKind.MATMUL, CommandKind.UNARY, CommandKind.BINARY]


def test_a_product_that_is_also_an_output_is_not_fused_away() -> None:
    net = model(
        [node("MatMul", ["x", "w"], ["p"]), node("Relu", ["p"], ["y"])],
        {"x": (F32, (1, 2))},
        {"p": F32, "y": F32},
        {"w": -ones(2, 1)},
    )
    result = run(compile_model(net), {"x": ones(1, 2)})
    assert (result["p"].item(), result["y"].item()) == (-2, 0)


def test_large_weights_that_a_model_keeps_in_int8_are_turned_to_float_once() -> None:
    codes = np.arange(1200 * 1024, dtype=np.int64).astype(np.int8).reshape(1200, 1024)
    net = model(
        [
            node("Cast", ["codes"], ["whole"], to=TensorProto.FLOAT),
            node("Mul", ["whole", "scale"], ["w"]),
            node("MatMul", ["x", "w"], ["y"]),
        ],
        {"x": (np.float32, (1, 1200))},
        {"y": np.float32},
        {"codes": codes, "scale": np.float32(0.5)},
    )
    assert kinds(compile_model(net).image) == [CommandKind.MATMUL]


def test_expand_before_broadcasting_is_bypassed() -> None:
    net = model(
        [node("Expand", ["x", "shape"], ["e"]), node("Add", ["e", "z"], ["y"])],
        {"x": (F32, (1, 3)), "z": (F32, (2, 3))},
        {"y": F32},
        {"shape": np.array([2, 3])},
    )
    assert kinds(compile_model(net).image) == [CommandKind.BINARY]


def test_workspace_is_reused() -> None:
    depth = 12
    names = ["x", *(f"t{i}" for i in range(depth - 1)), "y"]
    nodes = [node("Exp", [a], [b]) for a, b in itertools.pairwise(names)]
    compiled = compile_model(model(nodes, {"x": (F32, (100,))}, {"y": F32}))
    one = -(-400 // ALIGNMENT) * ALIGNMENT
    assert compiled.plan.workspace_bytes == 2 * one
    assert compiled.plan.unshared_workspace_bytes == (depth - 1) * one


def test_equal_constants_are_stored_once() -> None:
    net = model(
        [node("MatMul", ["x", "a"], ["p"]), node("MatMul", ["p", "b"], ["y"])],
        {"x": (F32, (1, 4))},
        {"y": F32},
        {"a": np.eye(4, dtype=F32), "b": np.eye(4, dtype=F32)},
    )
    compiled = compile_model(net)
    assert compiled.plan.constants_bytes == 64


def test_constants_inputs_and_repeated_values_can_be_outputs() -> None:
    net = model(
        [
            node("Identity", ["x"], ["same"]),
            node("Identity", ["c"], ["constant"]),
            node("Relu", ["x"], ["y"]),
            node("Identity", ["y"], ["z"]),
        ],
        {"x": (F32, (2,))},
        {"same": F32, "constant": F32, "y": F32, "z": F32, "x": F32},
        {"c": np.array([5, 6], F32)},
    )
    x = np.array([-1, 2], F32)
    result = {name: array.tolist() for name, array in run(compile_model(net), {"x": x}).items()}
    assert result == {"same": [-1, 2], "constant": [5, 6], "y": [0, 2], "z": [0, 2], "x": [-1, 2]}


def test_an_initialiser_that_is_also_a_declared_input_is_a_constant() -> None:
    net = model([node("Add", ["x", "c"], ["y"])], {"x": (F32, (2,)), "c": (F32, (2,))}, {"y": F32}, {"c": ones(2)})
    compiled = compile_model(net)
    assert [info.name for info in compiled.inputs] == ["x"]


@pytest.mark.parametrize(
    ("shapes", "reason"),
    [
        ({}, r"give numbers, shapes=\{'x'"),
        ({"x": (2, 4)}, "does not go with it"),
        ({"x": (2,)}, "does not go with it"),
        ({"x": (-1, 3)}, "negative"),
        ({"x": (2, 3), "other": (1,)}, "no input 'other'"),
    ],
)
def test_wrong_shapes_are_value_errors(shapes: dict[str, tuple[int, ...]], reason: str) -> None:
    net = model([node("Relu", ["x"], ["y"])], {"x": (F32, ("n", 3))}, {"y": F32})
    with pytest.raises(ValueError, match=reason):
        compile_model(net, shapes)


def test_qdq_form_gives_the_quantised_program() -> None:
    for relu in (False, True):
        qdq, x = quantised_net(4, np.uint8, form="qdq", per_channel=True, relu=relu)
        compiled = compile_model(qdq)
        assert kinds(compiled.image) == [CommandKind.QCONV, CommandKind.COPY, CommandKind.QMATMUL]
        assert parse(compiled.image).commands[0].attributes.relu == int(relu)
        assert compiled.inputs[0] == TensorInfo("x", x.shape, "uint8")


def test_a_gemm_between_quantisations_takes_its_int32_bias() -> None:
    one = np.array(0.5, F32)
    zero = np.array(0, np.int8)
    net = model(
        [
            node("DequantizeLinear", ["x", "s", "z"], ["xr"]),
            node("DequantizeLinear", ["w", "s", "z"], ["wr"]),
            node("DequantizeLinear", ["b", "bs"], ["br"]),
            node("Gemm", ["xr", "wr", "br"], ["g"], transB=1),
            node("QuantizeLinear", ["g", "s", "z"], ["y"]),
        ],
        {"x": (np.int8, (1, 2))},
        {"y": np.int8},
        {
            "s": one,
            "z": zero,
            "bs": one * one,
            "w": np.array([[1, 2], [3, 4]], np.int8),
            "b": np.array([4, -8], np.int32),
        },
    )
    compiled = compile_model(net)
    assert kinds(compiled.image) == [CommandKind.QMATMUL]
    # (1·10 + 2·20 + 4) · 0.5 = 27; (3·10 + 4·20 - 8) · 0.5 = 51
    assert run(compiled, {"x": np.array([[10, 20]], np.int8)})["y"].tolist() == [[27, 51]]


def test_a_bias_of_another_scale_keeps_the_float_form() -> None:
    one, zero = np.array(0.5, F32), np.array(0, np.int8)
    net = model(
        [
            node("DequantizeLinear", ["x", "s", "z"], ["xr"]),
            node("DequantizeLinear", ["w", "s", "z"], ["wr"]),
            node("DequantizeLinear", ["b", "s"], ["br"]),
            node("Gemm", ["xr", "wr", "br"], ["g"]),
            node("QuantizeLinear", ["g", "s", "z"], ["y"]),
        ],
        {"x": (np.int8, (1, 1))},
        {"y": np.int8},
        {"s": one, "z": zero, "w": np.array([[2]], np.int8), "b": np.array([4], np.int32)},
    )
    compiled = compile_model(net)
    assert kinds(compiled.image) == [CommandKind.DEQUANTIZE, CommandKind.MATMUL, CommandKind.QUANTIZE]
    assert run(compiled, {"x": np.array([[6]], np.int8)})["y"].tolist() == [[10]]


def test_half_precision_models_run() -> None:
    for dtype in ("float16", "bfloat16"):
        if dtype == "bfloat16":
            import ml_dtypes

            kind: Any = ml_dtypes.bfloat16
        else:
            kind = np.float16
        net = model(
            [node("MatMul", ["x", "w"], ["p"]), node("Relu", ["p"], ["y"])],
            {"x": (kind, (1, 3))},
            {"y": kind},
            {"w": np.array([[1], [2], [-1]]).astype(kind)},
        )
        compiled = compile_model(net)
        assert compiled.inputs[0].dtype == dtype
        assert run(compiled, {"x": np.array([[4, 1, 1]]).astype(kind)})["y"].astype(F32).tolist() == [[5]]


@pytest.mark.parametrize("index", [3, -4])
def test_a_constant_index_that_is_out_of_range_is_found_when_compiling(index: int) -> None:
    net = model(
        [node("Gather", ["x", "i"], ["y"], axis=1)], {"x": (F32, (2, 3))}, {"y": F32}, {"i": np.array([0, index])}
    )
    with pytest.raises(UnsupportedModel, match=f"index {index} is out of range for a dimension of 3") as caught:
        compile_model(net)
    assert caught.value.node == "make_y"


def test_tensors_of_a_program_lie_where_they_should() -> None:
    compiled = compile_model(storage_net(), {"ids": (3, 4), "mask": (3, 4)})
    program = parse(compiled.image)
    for tensor in program.tensors:
        assert tensor.offset % ALIGNMENT == 0
        if tensor.storage is Storage.WORKSPACE:
            assert tensor.offset + tensor.type.size_bytes <= program.entries[0].workspace_bytes
        else:
            assert tensor.offset == 0
    assert [program.tensors[at].type for at in program.constants] == [each.type for each in compiled.constants]


@pytest.mark.parametrize(
    ("nodes", "x", "expected"),
    [
        ([("Slice", ["x", "neg", "lowest", "zero_axis", "neg"], ["y"], {})], [1, 2, 3], [3, 2, 1]),
        ([("Slice", ["x", "one", "highest"], ["y"], {})], [1, 2, 3], [2, 3]),
        ([("Pad", ["x", "pads"], ["y"], {})], [1, 2, 3], [0, 0, 1, 2]),
        ([("Max", ["x", "two_f", "x"], ["y"], {})], [1, 2, 3], [2, 2, 3]),
        ([("Mean", ["x", "two_f"], ["y"], {})], [1, 2, 3], [1.5, 2, 2.5]),
        ([("Pow", ["x", "one"], ["y"], {})], [1, 2, 3], [1, 2, 3]),
        ([("Clip", ["x", "two_f"], ["y"], {})], [1, 2, 3], [2, 2, 3]),
        ([("Dropout", ["x"], ["y", "m"], {})], [1, 2, 3], [1, 2, 3]),
        ([("ConstantOfShape", ["three"], ["z"], {}), ("Add", ["x", "z"], ["y"], {})], [1, 2, 3], [1, 2, 3]),
        (
            [("Range", ["zero", "three_0", "step"], ["r"], {}), ("Gather", ["x", "r"], ["y"], {})],
            [1, 2, 3],
            [1, 3],
        ),
        ([("Constant", [], ["c"], {"value_float": 2.0}), ("Sub", ["x", "c"], ["y"], {})], [1, 2, 3], [-1, 0, 1]),
        (
            [("Size", ["x"], ["s"], {}), ("Cast", ["s"], ["f"], {"to": 1}), ("Mul", ["x", "f"], ["y"], {})],
            [1, 2, 3],
            [3, 6, 9],
        ),
        ([("Unsqueeze", ["x", "zero_axis"], ["u"], {}), ("Squeeze", ["u"], ["y"], {})], [1, 2, 3], [1, 2, 3]),
    ],
)  # fmt: skip
def test_operators(nodes: list[Any], x: list[float], expected: list[float]) -> None:
    initializers = {
        "neg": np.array([-1]), "lowest": np.array([-(1 << 63)]), "highest": np.array([(1 << 63) - 1]),
        "one": np.array([1]), "zero_axis": np.array([0]), "pads": np.array([2, -1]), "two_f": np.array([2], F32),
        "three": np.array([3]), "zero": np.array(0), "three_0": np.array(3), "step": np.array(2),
    }  # fmt: skip
    net = model([node(op, i, o, **a) for op, i, o, a in nodes], {"x": (F32, (len(x),))}, {"y": F32}, initializers)
    compiled = compile_model(net)
    assert run(compiled, {"x": np.array(x, F32)})["y"].tolist() == expected


def test_bools_from_outside_may_be_any_byte() -> None:
    net = model([node("Not", ["x"], ["y"])], {"x": (np.bool_, (4,))}, {"y": np.bool_})
    (y,), _ = execute_compiled(compile_model(net), [np.array([0, 1, 2, 255], np.uint8)])
    assert y.view(np.uint8).tolist() == [1, 0, 0, 0]


@pytest.mark.parametrize("name", ["numpy", "golden"])
def test_reports_name_the_kernel_of_every_command(name: str) -> None:
    net = model([node("MatMul", ["x", "w"], ["y"])], {"x": (F32, (1, 2))}, {"y": F32}, {"w": ones(2, 1)})
    _, report = execute_compiled(compile_model(net), [ones(1, 2)], name)
    assert [entry.kernel for entry in report] == [f"{name}.matmul"]


def test_importing_the_compiler_imports_no_onnx() -> None:
    code = "import sys, sdk.compiler; sys.exit('onnx' in sys.modules or 'onnxruntime' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=IMPORT_TIMEOUT_SECONDS, check=False).returncode == 0


def test_compiling_and_running_imports_no_onnxruntime() -> None:
    code = (
        "import sys; from tests.support.models import storage_net; from sdk.compiler import compile_model;"
        "from emulator.model.verify import verify;"
        "verify(compile_model(storage_net(), {'ids': (1, 4), 'mask': (1, 4)}).image);"
        "sys.exit('onnxruntime' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=IMPORT_TIMEOUT_SECONDS, check=False).returncode == 0
