"""RNN, GRU and LSTM in all their forms against onnxruntime, whose arithmetic is the reference."""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from driver_shim.errors import UnsupportedModel
from sdk.compiler import compile_model
from tests.support.needs import module_of_extra
from tests.support.programs import run

F32 = np.float32
STEPS, BATCH, FEATURES, HIDDEN = 5, 3, 4, 6
GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
DIRECTIONS = ("forward", "reverse", "bidirectional")
KERNELS = ("golden", "numpy", "auto")


class Net(NamedTuple):
    model: onnx.ModelProto
    inputs: dict[str, NDArray[Any]]


def recurrent(
    op: str, operands: str = "b", opset: int = 14, lengths: list[int] | None = None, **attributes: Any
) -> Net:
    """One node; `operands` has letters of what it gets: b bias, h and c initial states, p peepholes, l lengths.

    Weights, bias and peepholes are initialisers.
    """
    random = np.random.default_rng(7)
    directions = 2 if attributes.get("direction") == "bidirectional" else 1
    width = GATES[op] * HIDDEN
    states = (BATCH, directions, HIDDEN) if attributes.get("layout") else (directions, BATCH, HIDDEN)
    shapes: dict[str, tuple[int, ...]] = {
        "x": (BATCH, STEPS, FEATURES) if attributes.get("layout") else (STEPS, BATCH, FEATURES),
        "w": (directions, width, FEATURES),
        "r": (directions, width, HIDDEN),
        "b": (directions, 2 * width),
        "l": (BATCH,),
        "h": states,
        "c": states,
        "p": (directions, 3 * HIDDEN),
    }
    present = {*"xwr", *operands}
    names = [name if name in present else "" for name in shapes]
    arrays = {name: random.normal(size=shapes[name]).astype(F32) for name in shapes if name in present}
    if lengths is not None:
        names[4], arrays["l"] = "l", np.array(lengths, np.int32)
    while not names[-1]:
        names.pop()
    outputs = ["y", "y_h", "y_c"][: 3 if op == "LSTM" else 2]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node(op, names, outputs, hidden_size=HIDDEN, **attributes)],
        "recurrent",
        [
            onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
            for name, a in arrays.items()
            if name in "xlhc"
        ],
        [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in outputs],
        [onnx.numpy_helper.from_array(a, name) for name, a in arrays.items() if name in "wrbp"],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=9)
    return Net(model, {name: a for name, a in arrays.items() if name in "xlhc"})


def compare(net: Net, kernels: str = "golden") -> None:
    runtime = module_of_extra("onnxruntime", "models")
    session = runtime.InferenceSession(net.model.SerializeToString(), providers=["CPUExecutionProvider"])
    expected = session.run(None, net.inputs)
    results = run(compile_model(net.model), net.inputs, kernels)
    for declared, array in zip(net.model.graph.output, expected, strict=True):
        assert results[declared.name].shape == array.shape
        np.testing.assert_allclose(results[declared.name], array, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("operands", ["", "b", "bh"])
@pytest.mark.parametrize(("op", "direction"), list(itertools.product(GATES, DIRECTIONS)))
def test_every_cell_in_every_direction(op: str, direction: str, operands: str, kernels: str) -> None:
    compare(recurrent(op, operands, direction=direction), kernels)


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("lengths", [[5, 2, 3], [1, 0, 5]], ids=str)
@pytest.mark.parametrize(("op", "direction"), list(itertools.product(GATES, DIRECTIONS)))
def test_sequences_of_several_lengths(op: str, direction: str, lengths: list[int], kernels: str) -> None:
    compare(recurrent(op, "bh", direction=direction, lengths=lengths), kernels)


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("operands", ["bc", "bhc", "bhcp", "p"])
def test_states_and_peepholes_of_memory_cells(operands: str, direction: str, kernels: str) -> None:
    compare(recurrent("LSTM", operands, direction=direction), kernels)


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize(
    ("op", "attributes"),
    [
        ("RNN", {"clip": 0.3}),
        ("GRU", {"clip": 0.3}),
        ("GRU", {"linear_before_reset": 1}),
        ("GRU", {"linear_before_reset": 1, "direction": "bidirectional"}),
        ("LSTM", {"clip": 0.3}),
        ("LSTM", {"input_forget": 1}),
        ("RNN", {"activations": ["Relu"]}),
        ("RNN", {"activations": ["Affine"], "activation_alpha": [0.5], "activation_beta": [0.1]}),
        ("GRU", {"activations": ["HardSigmoid", "Softsign"], "activation_alpha": [0.3], "activation_beta": [0.4]}),
        ("LSTM", {"activations": ["HardSigmoid", "LeakyRelu", "Softplus"], "activation_alpha": [0.3, 0.2]}),
        ("LSTM", {"activations": ["sigmoid", "Elu", "tanh"]}),
        (
            "LSTM",
            {"activations": ["Sigmoid", "ScaledTanh", "Tanh"], "activation_alpha": [1.7], "activation_beta": [0.6]},
        ),
        ("LSTM", {"activations": ["Sigmoid", "ThresholdedRelu", "Tanh"], "activation_alpha": [0.2]}),
        (
            "LSTM",
            {"direction": "bidirectional", "activations": ["Sigmoid", "Tanh", "Relu", "HardSigmoid", "Relu", "Tanh"]},
        ),
    ],
    ids=str,
)
def test_attributes(op: str, attributes: dict[str, Any], kernels: str) -> None:
    compare(recurrent(op, "bh", **attributes), kernels)


@pytest.mark.parametrize("opset", [7, 14, 22])
@pytest.mark.parametrize("op", GATES)
def test_every_opset(op: str, opset: int) -> None:
    compare(recurrent(op, opset=opset))


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("op", GATES)
def test_batch_first_is_the_same_in_another_order(op: str, direction: str) -> None:
    # onnxruntime has no kernel for this layout.
    first, second = recurrent(op, "bh", direction=direction, layout=1), recurrent(op, "bh", direction=direction)
    results = run(compile_model(first.model), first.inputs)
    turned = {name: array.swapaxes(0, 1).copy() for name, array in first.inputs.items()}
    expected = run(compile_model(second.model), turned)
    np.testing.assert_array_equal(results["y"], expected["y"].transpose(2, 0, 1, 3))
    for name in list(expected)[1:]:
        np.testing.assert_array_equal(results[name], expected[name].swapaxes(0, 1))


def test_a_network_is_one_command() -> None:
    assert compile_model(recurrent("LSTM", "bhc", direction="bidirectional").model).plan.commands == 1


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"direction": "sideways"}, "direction 'sideways'"),
        ({"activations": ["Tanh"]}, "1 activations; it has 3"),
        ({"activations": ["Tanh", "Tanh", "Swish"]}, "the activation 'Swish' is unknown"),
        ({"hidden_size": 7}, "hidden_size 7"),
        ({"clip": -1.0}, "must not be negative"),
    ],
)
def test_what_cannot_be_is_refused(attributes: dict[str, Any], message: str) -> None:
    net = recurrent("LSTM")
    proto = net.model.graph.node[0]
    for name, value in attributes.items():
        for old in [a for a in proto.attribute if a.name == name]:
            proto.attribute.remove(old)
        proto.attribute.append(onnx.helper.make_attribute(name, value))
    with pytest.raises(UnsupportedModel, match=message):
        compile_model(net.model)
