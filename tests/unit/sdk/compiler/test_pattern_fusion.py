"""Functions that exporters write in pieces become one command, with the values that the pieces give."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper
from onnx.reference import ReferenceEvaluator

from driver_shim.protocol.program_commands import CommandKind, UnaryFunction
from driver_shim.protocol.program_parsing import parse
from sdk.compiler import compile_model
from tests.support.arrays import real
from tests.support.programs import run

F32 = np.float32
Array = NDArray[Any]
OPSET = 18


class Net:
    """A graph written node by node; results have made-up names."""

    def __init__(self, **inputs: Array) -> None:
        self.inputs = inputs
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.outputs: list[str] = []

    def __call__(self, op: str, *operands: str | float | list[int] | Array, **attributes: Any) -> str:
        result = f"v{len(self.nodes)}"
        names = [operand if isinstance(operand, str) else self.constant(operand) for operand in operands]
        self.nodes.append(helper.make_node(op, names, [result], **attributes))
        return result

    def constant(self, value: float | list[int] | Array) -> str:
        name = f"c{len(self.constants)}"
        array = np.array(value, np.int64) if isinstance(value, list) else np.asarray(value, F32)
        self.constants.append(onnx.numpy_helper.from_array(array, name))
        return name

    def flags(self, values: Array) -> str:
        """A constant of bools."""
        name = f"c{len(self.constants)}"
        self.constants.append(onnx.numpy_helper.from_array(values, name))
        return name

    def model(self, *outputs: str) -> onnx.ModelProto:
        self.outputs = list(outputs)
        graph = helper.make_graph(
            self.nodes,
            "pieces",
            [
                helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
                for n, a in self.inputs.items()
            ],
            [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in outputs],
            self.constants,
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9)

    def kinds(self, *outputs: str) -> Counter[CommandKind]:
        """The commands of the compiled graph, which must give what the reference evaluator gives."""
        model = self.model(*outputs)
        compiled = compile_model(model)
        results, expected = run(compiled, self.inputs), ReferenceEvaluator(model).run(None, self.inputs)
        for name, array in zip(outputs, expected, strict=True):
            np.testing.assert_allclose(results[name], array, rtol=1e-4, atol=1e-5)
        return Counter(command.kind for command in parse(compiled.image).commands)

    def function(self, output: str) -> tuple[UnaryFunction, float]:
        """The function and its alpha where the whole graph is one UNARY command."""
        assert self.kinds(output) == {CommandKind.UNARY: 1}
        (command,) = parse(compile_model(self.model(output)).image).commands
        return UnaryFunction(command.attributes.function), command.attributes.alpha


def gelu_in_order(net: Net, x: str) -> str:
    return net("Mul", net("Mul", x, net("Add", net("Erf", net("Div", x, math.sqrt(2))), 1.0)), 0.5)


def gelu_half_first(net: Net, x: str) -> str:
    return net("Mul", net("Mul", x, 0.5), net("Add", 1.0, net("Erf", net("Mul", x, math.sqrt(0.5)))))


def gelu_half_within(net: Net, x: str) -> str:
    return net("Mul", x, net("Mul", 0.5, net("Add", net("Erf", net("Mul", math.sqrt(0.5), x)), 1.0)))


def gelu_halved_last(net: Net, x: str) -> str:
    return net("Div", net("Mul", net("Add", net("Erf", net("Div", x, math.sqrt(2))), 1.0), x), 2.0)


@pytest.mark.parametrize("write", [gelu_in_order, gelu_half_first, gelu_half_within, gelu_halved_last])
def test_gelu(write: Callable[[Net, str], str]) -> None:
    net = Net(x=real(2, 3, 4))
    assert net.function(write(net, "x"))[0] is UnaryFunction.GELU


def test_gelu_of_a_product() -> None:
    net = Net(a=real(2, 4), b=real(2, 4, seed=1))
    assert net.kinds(gelu_in_order(net, net("Mul", "a", "b"))) == {CommandKind.BINARY: 1, CommandKind.UNARY: 1}


def tanh_with_power(net: Net, x: str) -> str:
    inner = net("Mul", net("Add", x, net("Mul", net("Pow", x, 3.0), 0.044715)), math.sqrt(2 / math.pi))
    return net("Mul", net("Mul", x, 0.5), net("Add", net("Tanh", inner), 1.0))


def tanh_with_products(net: Net, x: str) -> str:
    cube = net("Mul", net("Mul", net("Mul", 0.044715, x), x), x)
    gate = net("Add", 1.0, net("Tanh", net("Mul", math.sqrt(2 / math.pi), net("Add", cube, x))))
    return net("Mul", 0.5, net("Mul", x, gate))


def tanh_with_x_before_brackets(net: Net, x: str) -> str:
    bent = net("Add", 1.0, net("Mul", net("Mul", 0.044715, x), x))
    gate = net("Add", 1.0, net("Tanh", net("Mul", net("Mul", math.sqrt(2 / math.pi), x), bent)))
    return net("Mul", net("Mul", 0.5, x), gate)


@pytest.mark.parametrize("write", [tanh_with_power, tanh_with_products, tanh_with_x_before_brackets])
def test_gelu_by_tanh(write: Callable[[Net, str], str]) -> None:
    net = Net(x=real(2, 3, 4))
    assert net.function(write(net, "x"))[0] is UnaryFunction.GELU_TANH


def test_swish_and_quick_gelu() -> None:
    net = Net(x=real(2, 3))
    assert net.function(net("Mul", "x", net("Sigmoid", "x"))) == (UnaryFunction.SWISH, 1)
    net = Net(x=real(2, 3))
    function, alpha = net.function(net("Mul", net("Sigmoid", net("Mul", 1.702, "x")), "x"))
    assert function is UnaryFunction.SWISH and math.isclose(alpha, 1.702, rel_tol=1e-6)


def test_a_gate_of_a_convolution_leaves_the_convolution_to_it() -> None:
    net = Net(x=real(1, 2, 5))
    product = net("Conv", "x", real(3, 2, 3))
    assert net.kinds(net("Mul", product, net("Sigmoid", product))) == {CommandKind.CONV: 1, CommandKind.UNARY: 1}


def test_mish() -> None:
    net = Net(x=real(2, 3))
    assert net.function(net("Mul", "x", net("Tanh", net("Softplus", "x"))))[0] is UnaryFunction.MISH


def test_hard_swish() -> None:
    net = Net(x=real(2, 3) * 4)
    assert net.function(net("Mul", "x", net("HardSigmoid", "x", alpha=1 / 6)))[0] is UnaryFunction.HARD_SWISH
    net = Net(x=real(2, 3) * 4)
    clipped = net("Clip", net("Add", "x", 3.0), 0.0, 6.0)
    assert net.function(net("Div", net("Mul", "x", clipped), 6.0))[0] is UnaryFunction.HARD_SWISH
    net = Net(x=real(2, 3) * 4)
    clipped = net("Clip", net("Add", "x", 3.0), 0.0, 6.0)
    assert net.function(net("Mul", "x", net("Div", clipped, 6.0)))[0] is UnaryFunction.HARD_SWISH


@pytest.mark.parametrize(
    "write",
    [
        lambda net: net("Mul", "x", net("Sigmoid", "y")),
        lambda net: net("Mul", net("Mul", "x", 2.0), net("Sigmoid", "x")),
        lambda net: net("Mul", "x", net("HardSigmoid", "x")),
        lambda net: net("Mul", net("Mul", "x", 0.5), net("Add", net("Erf", "x"), 1.0)),
        lambda net: net("Mul", net("Mul", "x", 0.5), net("Add", net("Erf", net("Div", "x", 1.5)), 1.0)),
        lambda net: net("Mul", net("Mul", "x", 0.4), net("Add", net("Erf", net("Div", "x", math.sqrt(2))), 1.0)),
        lambda net: net("Mul", net("Mul", "y", 0.5), net("Add", net("Erf", net("Div", "x", math.sqrt(2))), 1.0)),
    ],
)
def test_what_only_looks_alike_stays(write: Callable[[Net], str]) -> None:
    net = Net(x=real(2, 3), y=real(2, 3, seed=1))
    kinds = net.kinds(write(net))
    assert kinds[CommandKind.BINARY] >= 1


def test_pieces_that_are_read_elsewhere_stay() -> None:
    net = Net(x=real(2, 3))
    gate = net("Sigmoid", "x")
    kinds = net.kinds(net("Mul", "x", gate), gate)
    assert kinds == {CommandKind.UNARY: 1, CommandKind.BINARY: 1}


# --- normalisations -------------------------------------------------------------------------------------------------


def centred(net: Net, x: str, axis: int = -1) -> str:
    return net("Sub", x, net("ReduceMean", x, [axis]))


def by_root(net: Net, x: str) -> str:
    difference = centred(net, x)
    variance = net("ReduceMean", net("Pow", difference, 2.0), [-1])
    return net("Div", difference, net("Sqrt", net("Add", variance, 1e-5)))


def by_two_differences(net: Net, x: str) -> str:
    one, other = centred(net, x), centred(net, x)
    variance = net("ReduceMean", net("Mul", one, one), [-1])
    return net("Div", other, net("Sqrt", net("Add", 1e-5, variance)))


def by_reciprocal(net: Net, x: str) -> str:
    difference = centred(net, x)
    variance = net("ReduceMean", net("Mul", difference, difference), [-1])
    return net("Mul", net("Reciprocal", net("Sqrt", net("Add", variance, 1e-5))), difference)


def by_power(net: Net, x: str) -> str:
    difference = centred(net, x)
    variance = net("ReduceMean", net("Mul", difference, difference), [-1])
    return net("Mul", difference, net("Pow", net("Add", variance, 1e-5), -0.5))


@pytest.mark.parametrize("write", [by_root, by_two_differences, by_reciprocal, by_power])
def test_layer_normalisation_with_scale_and_bias(write: Callable[[Net, str], str]) -> None:
    net = Net(x=real(2, 3, 8))
    scaled = net("Mul", write(net, "x"), real(8, seed=1))
    assert net.kinds(net("Add", scaled, real(8, seed=2))) == {CommandKind.LAYER_NORM: 1}


def test_root_mean_square_normalisation() -> None:
    net = Net(x=real(2, 3, 8))
    mean = net("ReduceMean", net("Pow", "x", 2.0), [-1])
    inverse = net("Div", 1.0, net("Sqrt", net("Add", mean, 1e-6)))
    assert net.kinds(net("Mul", real(8, seed=1), net("Mul", "x", inverse))) == {CommandKind.LAYER_NORM: 1}


def test_normalisation_over_other_dimensions() -> None:
    net = Net(x=real(2, 3, 4, 5))
    mean = net("ReduceMean", "x", [2, 3])
    difference = net("Sub", "x", mean)
    variance = net("ReduceMean", net("Mul", difference, difference), [2, 3])
    root = net("Sqrt", net("Add", variance, 1e-5))
    assert net.kinds(net("Mul", net("Div", difference, root), real(3, 1, 1))) == {CommandKind.LAYER_NORM: 1}


def test_a_difference_from_another_mean_is_normalised_as_it_is() -> None:
    net = Net(x=real(4, 4))
    difference = centred(net, "x", 0)
    variance = net("ReduceMean", net("Mul", difference, difference), [-1])
    result = net("Div", difference, net("Sqrt", net("Add", variance, 1e-5)))
    assert net.kinds(result) == {CommandKind.REDUCE: 1, CommandKind.BINARY: 1, CommandKind.LAYER_NORM: 1}


def test_squares_of_something_else_are_no_normalisation() -> None:
    net = Net(x=real(4, 4), y=real(4, 4, seed=1))
    variance = net("ReduceMean", net("Mul", "y", "y"), [-1])
    kinds = net.kinds(net("Div", centred(net, "x"), net("Sqrt", net("Add", variance, 1e-5))))
    assert CommandKind.LAYER_NORM not in kinds


def test_a_residual_is_no_bias() -> None:
    net = Net(x=real(2, 3, 8))
    assert net.kinds(net("Add", by_root(net, "x"), "x")) == {CommandKind.LAYER_NORM: 1, CommandKind.BINARY: 1}


def test_a_scale_that_makes_the_result_larger_stays() -> None:
    net = Net(x=real(1, 3, 8))
    kinds = net.kinds(net("Mul", by_root(net, "x"), real(2, 1, 1)))
    assert kinds == {CommandKind.LAYER_NORM: 1, CommandKind.BINARY: 1}


# --- attention ------------------------------------------------------------------------------------------------------

B, S, T, N, D = 2, 5, 7, 4, 6


def attention_inputs() -> dict[str, Array]:
    return {"q": real(B, N, S, D), "k": real(B, N, T, D, seed=1), "v": real(B, N, T, D, seed=2)}


def test_attention_with_a_scale_and_a_mask() -> None:
    net = Net(**attention_inputs(), m=real(B, 1, 1, T, seed=3))
    products = net("Div", net("MatMul", "q", net("Transpose", "k", perm=[0, 1, 3, 2])), math.sqrt(D))
    probabilities = net("Softmax", net("Add", products, "m"), axis=-1)
    assert net.kinds(net("MatMul", probabilities, "v")) == {CommandKind.ATTENTION: 1}


def test_attention_in_a_model_of_an_older_opset() -> None:
    net = Net(**attention_inputs())
    products = net("MatMul", "q", net("Transpose", "k", perm=[0, 1, 3, 2]))
    model = net.model(net("MatMul", net("Softmax", products, axis=3), "v"))
    model.opset_import[0].version = 11
    (command,) = parse(compile_model(model).image).commands
    assert command.kind is CommandKind.ATTENTION


def test_attention_with_queries_and_keys_scaled_before() -> None:
    net = Net(**attention_inputs())
    keys = net("Transpose", net("Mul", "k", 0.7), perm=[0, 1, 3, 2])
    products = net("MatMul", net("Mul", "q", 0.5), keys)
    assert net.kinds(net("MatMul", net("Softmax", products, axis=3), "v")) == {CommandKind.ATTENTION: 1}


def test_attention_with_keys_turned_as_one_stack() -> None:
    net = Net(**attention_inputs())
    turned = net("Transpose", net("Reshape", "k", [-1, T, D]), perm=[0, 2, 1])
    keys = net("Mul", net("Reshape", turned, [B, N, D, T]), 0.7)
    products = net("MatMul", net("Mul", "q", 0.7), keys)
    assert net.kinds(net("MatMul", net("Softmax", products, axis=3), "v")) == {CommandKind.ATTENTION: 1}


def test_attention_where_a_mask_chooses() -> None:
    net = Net(**attention_inputs(), m=real(S, T) > -1)
    products = net("MatMul", "q", net("Transpose", "k", perm=[0, 1, 3, 2]))
    probabilities = net("Softmax", net("Where", "m", products, -np.inf), axis=-1)
    assert net.kinds(net("MatMul", probabilities, "v")) == {CommandKind.ATTENTION: 1}


@pytest.mark.parametrize("fill", [-np.inf, -1e4, float(np.finfo(F32).min)])
@pytest.mark.parametrize("queries", [T, S])
def test_a_constant_triangle_is_causality(queries: int, fill: float) -> None:
    net = Net(q=real(B, N, queries, D), k=real(B, N, T, D, seed=1), v=real(B, N, T, D, seed=2), m=real(B, 1, 1, T))
    triangle = net.flags(np.tri(queries, T, T - queries, bool)[None, None])
    products = net("Div", net("MatMul", "q", net("Transpose", "k", perm=[0, 1, 3, 2])), 2.0)
    biased = net("Add", net("Where", triangle, products, fill), "m")
    result = net("MatMul", net("Softmax", biased, axis=-1), "v")
    assert net.kinds(result) == {CommandKind.ATTENTION: 1}
    (command,) = parse(compile_model(net.model(result)).image).commands
    assert (command.attributes.causal, command.attributes.right_window) == ((1, -1) if queries == T else (0, T - S))


def test_another_constant_choice_stays() -> None:
    net = Net(**attention_inputs())
    products = net("MatMul", "q", net("Transpose", "k", perm=[0, 1, 3, 2]))
    chosen = net("Where", net.flags(np.tri(S, T, 0, bool)), products, -1e4)
    kinds = net.kinds(net("MatMul", net("Softmax", chosen, axis=-1), "v"))
    assert CommandKind.ATTENTION not in kinds


def test_attention_of_stacks_of_one_head() -> None:
    net = Net(q=real(8, S, D), k=real(8, T, D, seed=1), v=real(8, T, D, seed=2))
    products = net("Mul", net("MatMul", "q", net("Transpose", "k", perm=[0, 2, 1])), 0.3)
    assert net.kinds(net("MatMul", net("Softmax", products, axis=-1), "v")) == {CommandKind.ATTENTION: 1}


def test_zeros_for_queries_that_may_attend_nothing_are_what_attention_gives() -> None:
    mask = np.where(real(S, T) > -1, 0, -np.inf).astype(F32)
    mask[0] = -np.inf
    for guard in (guard_by_numbers, guard_by_mask):
        net = Net(**attention_inputs(), m=mask)
        products = net("MatMul", "q", net("Transpose", "k", perm=[0, 1, 3, 2]))
        probabilities = net("Softmax", net("Add", products, "m"), axis=-1)
        with np.errstate(invalid="ignore"):
            kinds = net.kinds(net("MatMul", guard(net, probabilities), "v"))
        assert kinds == {CommandKind.ATTENTION: 1}


def guard_by_numbers(net: Net, probabilities: str) -> str:
    return net("Where", net("IsNaN", probabilities), 0.0, probabilities)


def guard_by_mask(net: Net, probabilities: str) -> str:
    peak = net("ReduceMax", "m", [-1], keepdims=1)
    return net("Where", net("Equal", peak, -np.inf), 0.0, probabilities)


@pytest.mark.parametrize("masked", [False, True])
def test_stacks_of_samples_and_heads_are_taken_apart_again(masked: bool) -> None:
    mask = real(B, 1, S, T, seed=3)
    net = Net(**hidden_inputs(), m=mask)
    query, key, value = (
        net("Reshape", split(net, name, [0, 2, 1, 3], length), [B * N, length, D])
        for name, length in (("q", S), ("k", T), ("v", T))
    )
    scores = net("MatMul", query, net("Transpose", key, perm=[0, 2, 1]))
    if masked:
        scores = net("Reshape", net("Add", net("Reshape", scores, [B, N, S, T]), "m"), [B * N, S, T])
    result = net("MatMul", net("Softmax", scores, axis=-1), value)
    apart = net("Transpose", net("Reshape", result, [B, N, S, D]), perm=[0, 2, 1, 3])
    assert net.kinds(net("Reshape", apart, [B, S, N * D])) == {CommandKind.ATTENTION: 1}


def test_a_stack_that_stays_one_keeps_its_shape() -> None:
    net = Net(**attention_inputs(), m=real(B, 1, 1, T, seed=3))
    query, key, value = (net("Reshape", name, [B * N, -1, D]) for name in "qkv")
    scores = net("Reshape", net("MatMul", query, net("Transpose", key, perm=[0, 2, 1])), [B, N, S, T])
    biased = net("Reshape", net("Add", "m", scores), [B * N, S, T])
    kinds = net.kinds(net("MatMul", net("Softmax", biased, axis=-1), value))
    assert kinds == {CommandKind.ATTENTION: 1, CommandKind.COPY: 1}


def split(net: Net, x: str, perm: list[int], length: int) -> str:
    return net("Transpose", net("Reshape", x, [B, length, N, D]), perm=perm)


def hidden_inputs() -> dict[str, Array]:
    return {"q": real(B, S, N * D), "k": real(B, T, N * D, seed=1), "v": real(B, T, N * D, seed=2)}


@pytest.mark.parametrize("apart", [False, True])
def test_heads_are_neither_put_apart_nor_together_again(apart: bool) -> None:
    net = Net(**hidden_inputs(), m=real(B, 1, 1, T, seed=3))
    if apart:
        keys = net("Transpose", split(net, "k", [0, 2, 1, 3], T), perm=[0, 1, 3, 2])
    else:
        keys = split(net, "k", [0, 2, 3, 1], T)
    products = net("Div", net("MatMul", split(net, "q", [0, 2, 1, 3], S), keys), math.sqrt(D))
    probabilities = net("Softmax", net("Add", products, "m"), axis=-1)
    result = net("MatMul", probabilities, split(net, "v", [0, 2, 1, 3], T))
    joined = net("Reshape", net("Transpose", result, perm=[0, 2, 1, 3]), [B, S, N * D])
    assert net.kinds(joined) == {CommandKind.ATTENTION: 1}


def test_heads_of_rows_of_a_matrix_need_reshapes_alone() -> None:
    rows = {name: array.reshape(-1, N * D) for name, array in hidden_inputs().items()}
    net = Net(**rows)
    keys = split(net, "k", [0, 2, 3, 1], T)
    products = net("MatMul", split(net, "q", [0, 2, 1, 3], S), keys)
    result = net("MatMul", net("Softmax", products, axis=-1), split(net, "v", [0, 2, 1, 3], T))
    joined = net("Reshape", net("Transpose", result, perm=[0, 2, 1, 3]), [B * S, N * D])
    assert net.kinds(joined).keys() == {CommandKind.ATTENTION, CommandKind.COPY}


def test_a_cache_that_is_an_output_keeps_its_transposition() -> None:
    net = Net(**hidden_inputs())
    values = split(net, "v", [0, 2, 1, 3], T)
    products = net("MatMul", split(net, "q", [0, 2, 1, 3], S), split(net, "k", [0, 2, 3, 1], T))
    result = net("MatMul", net("Softmax", products, axis=-1), values)
    joined = net("Reshape", net("Transpose", result, perm=[0, 2, 1, 3]), [B, S, N * D])
    kinds = net.kinds(joined, values)
    assert (kinds[CommandKind.ATTENTION], kinds[CommandKind.TRANSPOSE], kinds[CommandKind.MATMUL]) == (1, 1, 0)


@pytest.mark.parametrize(
    "write",
    [
        lambda net, products: net("MatMul", net("Softmax", products, axis=2), "v"),
        lambda net, products: net("MatMul", net("LogSoftmax", products, axis=3), "v"),
        lambda net, products: net("MatMul", net("Softmax", net("Add", products, real(T, 1)[:1]), axis=3), "v"),
        lambda net, products: net("MatMul", net("Softmax", net("Where", "m", products, -9.0), axis=3), "v"),
        lambda net, products: net("MatMul", net("Softmax", net("Exp", products), axis=3), "v"),
    ],
)
def test_what_is_no_attention_stays(write: Callable[[Net, str], str]) -> None:
    net = Net(**attention_inputs(), m=real(S, T) > -1)
    products = net("MatMul", "q", net("Transpose", "k", perm=[0, 1, 3, 2]))
    kinds = net.kinds(write(net, products))
    assert kinds[CommandKind.MATMUL] == 2 and CommandKind.ATTENTION not in kinds


def test_probabilities_that_are_an_output_stay() -> None:
    net = Net(**attention_inputs())
    products = net("MatMul", "q", net("Transpose", "k", perm=[0, 1, 3, 2]))
    probabilities = net("Softmax", products, axis=-1)
    kinds = net.kinds(net("MatMul", probabilities, "v"), probabilities)
    assert kinds[CommandKind.MATMUL] == 2 and CommandKind.ATTENTION not in kinds
