"""Graphs of GGUF files run in onnxruntime as they are, and the device's logits are its."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

import sdk
from sdk.gguf.blocks import LAYOUTS
from tests.support import llama_reference
from tests.support.dense_products import with_dense_products
from tests.support.gguf_files import Net, write_gguf
from tests.support.gguf_steps import Conversation, Runner, on_kernels
from tests.support.onnxruntime_server import Server

Array = NDArray[Any]
IDS = (3, 17, 0, 39, 8, 21, 5)
NETS = {
    "llama": Net(kinds=("F32", "F16", "BF16"), rotary_factors=True),
    "qwen2": Net("qwen2", ("Q8_0",), biases=("attn_q", "attn_k", "attn_v"), tied=True),
    "qwen3": Net("qwen3", ("Q4_0", "Q6_K"), head_norms=True, heads=8, key_size=32),
    "part of each head turned": Net(metadata={"rope.dimension_count": 32}),
    "values of another size": Net(value_size=32),
}
TYPES = {kind: Net(kinds=(kind,), layers=1, tied=True, seed=3) for kind in LAYOUTS}


@pytest.fixture(scope="module")
def peer() -> Iterator[Runner]:
    with Server() as server:
        yield lambda model, inputs: server.run(model.SerializeToString(), inputs)


def steps(model: onnx.ModelProto, runner: Runner) -> list[Mapping[str, Array]]:
    """Two rows: a prompt each, padded, then one token each."""
    conversation = Conversation(model, 2, runner)
    return [conversation.step([IDS[:4], IDS[1:7]], tokens=8), conversation.step([IDS[4:5], [9]])]


@pytest.mark.parametrize("net", [*NETS.values(), *TYPES.values()], ids=[*NETS, *TYPES])
def test_onnxruntime_runs_the_graph_and_the_device_agrees_with_it(net: Net, peer: Runner, tmp_path: Path) -> None:
    tensors = write_gguf(tmp_path / "net.gguf", net)
    model = sdk.read_gguf(tmp_path / "net.gguf")
    theirs, ours = steps(model, peer), steps(model, on_kernels("auto"))
    for expected, found in zip(theirs, ours, strict=True):
        largest = np.abs(expected["logits"]).max()
        np.testing.assert_allclose(found["logits"], expected["logits"], rtol=0, atol=2e-5 * largest)
    reference = llama_reference.logits(net, tensors, IDS[:5])[-1]
    np.testing.assert_allclose(theirs[1]["logits"][0], reference, rtol=0, atol=2e-5 * np.abs(reference).max())


@pytest.mark.parametrize("how", [{"logits": "all"}, {"logits": "top-4"}, {"dtype": "float16"}], ids=str)
def test_onnxruntime_runs_every_form_of_the_graph(how: dict[str, str], peer: Runner, tmp_path: Path) -> None:
    write_gguf(tmp_path / "net.gguf", Net(kinds=("Q4_1", "Q8_0", "F16"), tied=True))
    model = sdk.read_gguf(tmp_path / "net.gguf", **how)
    rough = how.get("dtype") == "float16"
    for expected, found in zip(steps(model, peer), steps(model, on_kernels("auto")), strict=True):
        assert found.keys() == expected.keys()
        largest = np.abs(expected["logits"].astype(np.float32)).max()
        counted = slice(0, 1) if how.get("logits") == "all" else slice(None)  # what follows in a row is padding
        a, b = (outputs["logits"].astype(np.float32)[:, counted] for outputs in (found, expected))
        np.testing.assert_allclose(a, b, rtol=0, atol=(2e-2 if rough else 2e-5) * largest)
        if "token_ids" in expected:
            assert np.array_equal(found["token_ids"], expected["token_ids"])


def test_unpacked_products_are_the_same_numbers(peer: Runner, tmp_path: Path) -> None:
    write_gguf(tmp_path / "net.gguf", Net(kinds=("Q4_1", "Q8_0")))
    model = sdk.read_gguf(tmp_path / "net.gguf")
    dense = with_dense_products(model, (4, 8))
    assert not any(node.op_type == "MatMulNBits" for node in dense.graph.node)
    for expected, found in zip(steps(model, peer), steps(dense, peer), strict=True):
        largest = np.abs(expected["logits"]).max()
        np.testing.assert_allclose(found["logits"], expected["logits"], rtol=0, atol=2e-5 * largest)
