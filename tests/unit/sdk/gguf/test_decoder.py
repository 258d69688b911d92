"""Graphs of GGUF files compute what a decoder written in NumPy does, step by step, with weights of every type."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

import sdk
from sdk.gguf.blocks import LAYOUTS
from tests.support import llama_reference
from tests.support.gguf_files import CONTEXT, INNER, VOCABULARY, WIDTH, Net, write_gguf
from tests.support.gguf_steps import Conversation, on_kernels

Array = NDArray[Any]
IDS = (3, 17, 0, 39, 8, 21, 5, 30, 11)

QWEN2 = Net("qwen2", ("Q8_0", "F32"), biases=("attn_q", "attn_k", "attn_v"), tied=True, seed=1)
QWEN3 = Net("qwen3", ("Q4_0", "F16"), head_norms=True, key_size=32, seed=2)
NETS = {
    "llama": Net(),
    "llama with factors of rotation": Net(rotary_factors=True, seed=3),
    "llama with a bias everywhere": Net(biases=("attn_q", "attn_k", "attn_v", "attn_output", "ffn_down"), seed=4),
    "part of each head turned": Net(metadata={"rope.dimension_count": 32}, seed=5),
    "values of another size": Net(value_size=32, seed=6),
    "one head": Net(heads=1, key_heads=1, seed=7),
    "qwen2": QWEN2,
    "qwen3": QWEN3,
    "qwen3, tied": Net("qwen3", ("Q6_K",), head_norms=True, tied=True, seed=8),
    "offsets of an embedding": Net(kinds=("Q4_K",), tied=True, seed=9),
    "brain floats": Net(kinds=("BF16",), seed=10),
}


def read(folder: Path, net: Net, **how: Any) -> tuple[onnx.ModelProto, dict[str, Array]]:
    path = folder / "net.gguf"
    tensors = write_gguf(path, net)
    return sdk.read_gguf(path, **how), tensors


def agree(found: Array, expected: Array, tolerance: float = 2e-5) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * np.abs(expected).max())


def refuse(folder: Path, net: Net, reason: str) -> None:
    path = folder / "net.gguf"
    write_gguf(path, net)
    with pytest.raises(sdk.UnsupportedModel, match=reason) as caught:
        sdk.read_gguf(path)
    assert "net.gguf" in str(caught.value)


@pytest.mark.parametrize("kernels", ["golden", "numpy", "auto"])
@pytest.mark.parametrize("net", NETS.values(), ids=NETS.keys())
def test_logits_are_those_of_a_decoder_written_in_numpy(net: Net, kernels: str, tmp_path: Path) -> None:
    model, tensors = read(tmp_path, net, logits="all")
    found = Conversation(model, 1, on_kernels(kernels)).step([IDS])["logits"]
    agree(found[0], llama_reference.logits(net, tensors, IDS))


@pytest.mark.parametrize("kind", LAYOUTS)
def test_every_type_of_blocks_gives_the_logits_of_its_floats(kind: str, tmp_path: Path) -> None:
    net = Net(kinds=(kind,), layers=1, seed=11)
    model, tensors = read(tmp_path, net)
    found = Conversation(model, 1, on_kernels("numpy")).step([IDS])["logits"]
    agree(found[0], llama_reference.logits(net, tensors, IDS)[-1])


def test_rotary_base_and_linear_scaling_are_heeded(tmp_path: Path) -> None:
    scaling = {"rope.freq_base": 500.0, "rope.scaling.type": "linear", "rope.scaling.factor": 4.0}
    net = Net(metadata=scaling)
    model, tensors = read(tmp_path, net)
    found = Conversation(model, 1, on_kernels("numpy")).step([IDS])["logits"]
    agree(found[0], llama_reference.logits(net, tensors, IDS, base=500.0, factor=4.0)[-1])


@pytest.mark.parametrize("chunks", [(9,), (4, 5), (1,) * 9, (8, 1)])
def test_a_sequence_in_steps_is_the_sequence(chunks: Sequence[int], tmp_path: Path) -> None:
    model, tensors = read(tmp_path, QWEN3)
    conversation, expected, place = Conversation(model, 1, on_kernels("numpy")), QWEN3, 0
    for length in chunks:
        place += length
        found = conversation.step([IDS[place - length : place]])["logits"]
        agree(found[0], llama_reference.logits(expected, tensors, IDS[:place])[-1])


def test_rows_of_different_lengths_are_each_their_own(tmp_path: Path) -> None:
    model, tensors = read(tmp_path, Net(kinds=("Q4_1",)))
    conversation = Conversation(model, 3, on_kernels("numpy"))
    conversation.step([IDS[:2], IDS[:5], IDS[:1]])
    found = conversation.step([IDS[2:6], IDS[5:6], IDS[1:9]], tokens=8)["logits"]
    for row, length in enumerate((6, 6, 9)):
        agree(found[row], llama_reference.logits(Net(), tensors, IDS[:length])[-1])


def test_padding_at_the_end_of_the_context_does_no_harm(tmp_path: Path) -> None:
    ids = [*range(16), 7]
    model, tensors = read(tmp_path, Net(metadata={"context_length": len(ids)}))
    conversation = Conversation(model, 1, on_kernels("numpy"))
    conversation.step([ids[:16]])
    found = conversation.step([ids[16:]], tokens=8)["logits"]
    agree(found[0], llama_reference.logits(Net(), tensors, ids)[-1])


def test_the_largest_logits_come_in_order_with_their_tokens(tmp_path: Path) -> None:
    model, tensors = read(tmp_path, Net(), logits="top-5")
    outputs = Conversation(model, 1, on_kernels("golden")).step([IDS])
    expected = llama_reference.logits(Net(), tensors, IDS)[-1]
    order = np.argsort(-expected)[:5]
    assert outputs["token_ids"].tolist() == [order.tolist()]
    agree(outputs["logits"][0], expected[order])


def test_float16_computes_and_keeps_caches_in_half_precision(tmp_path: Path) -> None:
    model, tensors = read(tmp_path, Net(kinds=("Q4_1", "Q8_0", "F16")), dtype="float16")
    conversation = Conversation(model, 1, on_kernels("numpy"))
    found = conversation.step([IDS])["logits"]
    assert found.dtype == np.float16 and {cache.dtype for cache in conversation.caches.values()} == {found.dtype}
    agree(found[0].astype(np.float32), llama_reference.logits(Net(), tensors, IDS)[-1], 0.02)


def test_inputs_and_outputs_are_named_as_exports_name_them(tmp_path: Path) -> None:
    model, _ = read(tmp_path, Net())
    caches = [f"{layer}.{which}" for layer in range(2) for which in ("key", "value")]
    assert [info.name for info in model.graph.input] == [
        *("input_ids", "write_indices", "nonpad_kv_seqlen", "token_counts"),
        *(f"past_key_values.{name}" for name in caches),
    ]
    assert [info.name for info in model.graph.output] == ["logits", *(f"present.{name}" for name in caches)]
    assert {entry.key: entry.value for entry in model.metadata_props} == {
        "architecture": "llama",
        "context_length": str(CONTEXT),
        "vocabulary_size": str(VOCABULARY),
    }
    onnx.checker.check_model(_without_contrib(model))


def _without_contrib(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model, which has none of onnxruntime's operators, without the import of their domain."""
    del model.opset_import[1:]
    return model


@pytest.mark.parametrize("tied", [False, True])
def test_quantised_matrices_stay_quantised_and_an_embedding_is_there_once(tied: bool, tmp_path: Path) -> None:
    net = Net(kinds=("Q8_0",), tied=tied)
    model, tensors = read(tmp_path, net)
    weights = sum(tensor.size for name, tensor in tensors.items() if tensor.ndim == 2)
    stored = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    assert weights < stored < 1.3 * weights
    assert ("output.weight" in tensors) is not tied


def test_a_device_multiplies_by_packed_weights_in_one_command_each(tmp_path: Path) -> None:
    from sdk.compiler import compile_model
    from tests.support.programs import execute_compiled

    net = Net(kinds=("Q4_K",), layers=1)
    model, _ = read(tmp_path, net)
    caches = {f"past_key_values.0.{which}": (1, 2, 24, 64) for which in ("key", "value")}
    inputs = {"input_ids": (1, 1), **dict.fromkeys(("write_indices", "nonpad_kv_seqlen", "token_counts"), (1,))}
    compiled = compile_model(model, {**inputs, **caches})
    arrays = [np.ones([int(extent) for extent in info.shape], info.dtype) for info in compiled.inputs]
    _, report = execute_compiled(compiled, arrays)
    kernels = [run.kernel for run in report]
    assert kernels.count("golden.matmul_nbits") == 8
    assert not {"golden.matmul", "golden.reduce"} & set(kernels)


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ({"logits": "first"}, "logits is 'first'"),
        ({"logits": "top-0"}, "logits is 'top-0'"),
        ({"logits": None}, "logits is None"),
        ({"logits": "top-41"}, "vocabulary has 40 tokens"),
        ({"dtype": "int8"}, "dtype is 'int8', must be one of float32, float16"),
    ],
)
def test_unknown_wishes_are_refused(how: dict[str, str], reason: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=reason):
        read(tmp_path, Net(layers=1), **how)


@pytest.mark.parametrize(
    ("net", "reason"),
    [
        (Net("mamba"), "architecture 'mamba' is not supported; llama, qwen2, qwen3 are"),
        (Net(metadata={"expert_count": 8}), "a mixture of 8 experts"),
        (Net(metadata={"attention.sliding_window": 16}), r"of 16 tokens, of 48.*llama\.context_length 16"),
        (Net(metadata={"rope.scaling.type": "yarn"}), "scaled by 'yarn'"),
        (Net(metadata={"block_count": None}), r"metadata lack llama\.block_count"),
        (Net(metadata={"block_count": 0}), r"llama\.block_count is 0"),
        (Net(metadata={"block_count": 1 << 31}), f"tensors for {1 << 31} layers"),
        (Net(metadata={"context_length": 1 << 31}), f"its context has {1 << 31} tokens"),
        (Net(metadata={"block_count": 3}), r"lacks the tensor blk\.2\.attn_norm\.weight, and 8 more"),
        (Net(metadata={"block_count": 1}), r"tensor that its architecture does not: blk\.1\..*, and 8 more"),
        (Net(metadata={"attention.head_count": [4, 2]}), "differs from layer to layer"),
        (Net(metadata={"attention.head_count_kv": 3}), "4 heads of queries cannot share 3"),
        (Net(heads=5, key_heads=5, metadata={"attention.key_length": None}), "256 is not divided by 5"),
        (Net(metadata={"attention.layer_norm_rms_epsilon": "x"}), "must be a number"),
        (Net(metadata={"rope.dimension_count": 63}), "must be even and at most 64"),
        (Net(metadata={"rope.dimension_count": 66}), "must be even and at most 64"),
        (Net(metadata={"feed_forward_length": INNER + 1}), rf"ffn_gate\.weight is \[{INNER}, {WIDTH}\], must be"),
        (Net(changed={"blk.0.attn_k.weight": None}), r"lacks the tensor blk\.0\.attn_k\.weight"),
        (Net(changed={"output_norm.weight": np.ones(3, np.float32)}), r"output_norm\.weight is \[3\], must be \[256\]"),
        (Net(changed={"token_embd.weight": None}), r"lacks the matrix token_embd\.weight"),
        (Net(changed={"blk.0.ffn_gate_exps.weight": np.ones((2, 2), np.float32)}), "ffn_gate_exps"),
        (Net(changed={"blk.1.ffn_up.weight": np.ones((INNER, WIDTH), np.int8)}), "is of type I8; F32, F16, BF16, Q4_0"),
        (Net("qwen2"), r"lacks the tensor blk\.0\.attn_q\.bias"),
        (Net("qwen3"), r"lacks the tensor blk\.0\.attn_q_norm\.weight"),
    ],
    ids=lambda value: None if isinstance(value, Net) else value[:40],
)
def test_what_is_another_net_is_refused_by_name(net: Net, reason: str, tmp_path: Path) -> None:
    refuse(tmp_path, net, reason)


def test_a_window_that_the_context_fits_into_is_no_window(tmp_path: Path) -> None:
    model, _ = read(tmp_path, Net(layers=1, metadata={"attention.sliding_window": CONTEXT}))
    assert model.graph.node
