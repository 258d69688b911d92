"""FlexAttention, whose graphs change scores and probabilities, against numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper

from driver_shim.errors import UnsupportedModel
from driver_shim.protocol.program_commands import CommandKind
from driver_shim.protocol.program_parsing import parse
from sdk.compiler import compile_model
from tests.support.arrays import real
from tests.support.programs import run

F32 = np.float32
DOMAIN = "ai.onnx.preview"
Array = NDArray[Any]
B, HEADS, KEY_HEADS, S, T, D = 2, 4, 2, 3, 5, 6


INPUTS = {"q": real(B, HEADS, S, D), "k": real(B, KEY_HEADS, T, D, seed=1), "v": real(B, KEY_HEADS, T, D, seed=2)}


def change(op: str, *operands: float, outputs: tuple[str, ...] = ("y",)) -> onnx.GraphProto:
    """A graph of one operator on its input and numbers."""
    names = [f"c{i}" for i in range(len(operands))]
    constants = [onnx.numpy_helper.from_array(np.array(v, F32), n) for n, v in zip(names, operands, strict=True)]
    return helper.make_graph(
        [helper.make_node(op, ["x", *names], list(outputs))],
        "change",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, None)],
        [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in outputs],
        constants,
    )


def net(**attributes: Any) -> onnx.ModelProto:
    graph = helper.make_graph(
        [helper.make_node("FlexAttention", list(INPUTS), ["y"], domain=DOMAIN, **attributes)],
        "flex",
        [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, a.shape) for n, a in INPUTS.items()],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
    )
    opsets = [helper.make_opsetid("", 24), helper.make_opsetid(DOMAIN, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def expected(scale: float, bend: float = 1.0, weigh: float = 1.0) -> Array:
    key, value = (np.repeat(INPUTS[name], HEADS // KEY_HEADS, 1) for name in ("k", "v"))
    scores = np.einsum("bhsd,bhtd->bhst", INPUTS["q"], key) * scale * bend
    powers = np.exp(scores)
    result: Array = np.einsum("bhst,bhtd->bhsd", weigh * powers / powers.sum(-1, keepdims=True), value)
    return result


def test_without_changes_it_is_attention() -> None:
    compiled = compile_model(net(scale=0.3))
    assert [command.kind for command in parse(compiled.image).commands] == [CommandKind.ATTENTION]
    np.testing.assert_allclose(run(compiled, INPUTS)["y"], expected(0.3), rtol=1e-4, atol=1e-5)


def test_graphs_change_scores_and_probabilities() -> None:
    compiled = compile_model(net(score_mod=change("Mul", 0.5), prob_mod=change("Mul", 3.0)))
    result = run(compiled, INPUTS)["y"]
    np.testing.assert_allclose(result, expected(D**-0.5, 0.5, 3), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        (change("Split", outputs=("y", "z")), "other than one input and one output"),
        (change("Greater", 0.0), "a graph of its own makes bool"),
    ],
)
def test_other_graphs_are_refused(graph: onnx.GraphProto, message: str) -> None:
    with pytest.raises(UnsupportedModel, match=message):
        compile_model(net(score_mod=graph))


def test_operators_of_the_domain_that_are_unknown_are_refused() -> None:
    model = net()
    model.graph.node[0].op_type = "NoSuchAttention"
    with pytest.raises(UnsupportedModel, match=r"operators of the domain 'ai\.onnx\.preview' are not supported"):
        compile_model(model)
