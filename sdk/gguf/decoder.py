"""The graph of a decoder of the Llama family: embedding, layers of attention and gated products, logits.

A step takes tokens and appends them to caches, one pair for each layer, from `write_indices` on. Its positions are made
in the graph. Of each row `token_counts` tokens count: what follows them is padding, whose logits mean nothing and whose
keys the next step writes over.
"""

from __future__ import annotations

import os
import re
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import TensorProto

from sdk.gguf.file import GgufFile, open_gguf
from sdk.gguf.graph import ELEMENT_TYPES, Graph
from sdk.gguf.parameters import Parameters, read_parameters
from sdk.gguf.weights import Weights

_DTYPES = ("float32", "float16")
_EMBEDDING, _OUTPUT = "token_embd", "output"
_TOP = re.compile(r"top-([1-9][0-9]*)")
_ROTARY_FACTORS = "rope_freqs.weight"


class Logits(NamedTuple):
    """Which logits a graph returns."""

    every: bool
    """Those of every token, in place of the last one of each row."""
    top: int | None
    """How many of the largest; None for the whole vocabulary's."""


def read_gguf(path: str | os.PathLike[str], *, logits: str = "last", dtype: str = "float32") -> onnx.ModelProto:
    """The language model of a GGUF file as an ONNX graph that runs in onnxruntime and on devices alike.

    Inputs are `input_ids` int64 [batch, tokens], `write_indices` (tokens that each row's cache holds),
    `nonpad_kv_seqlen` (those and this step's), `token_counts` (this step's that are no padding), all int64 [batch], and
    for each layer `past_key_values.N.key` and `.value` [batch, heads, max_tokens, size]; outputs are `present.N.key`
    and `.value` of the same shape, and `logits`: "last" returns [batch, vocabulary], those of each row's last token;
    "all" [batch, tokens, vocabulary]; "top-K" [batch, K], the largest in order, and their `token_ids`, int64.

    Quantised matrices keep their blocks. `dtype` is the type of all else that is computed, and of the caches: "float32"
    or "float16". Metadata of the model say its `architecture`, `context_length` and `vocabulary_size`.

    Raises UnsupportedModel for what is no whole file of a known architecture, before anything is computed; ValueError
    for an unknown `logits` or `dtype`, OSError.
    """
    wanted = _logits(logits)
    if dtype not in _DTYPES:
        raise ValueError(f"dtype is {dtype!r}, must be one of {', '.join(_DTYPES)}")
    file = open_gguf(path)
    parameters = read_parameters(file)
    if wanted.top is not None and wanted.top > _vocabulary(file):
        raise ValueError(f"logits is {logits!r}, and the vocabulary has {_vocabulary(file)} tokens")
    return _Decoder(file, parameters, np.dtype(dtype)).model(wanted)


def _logits(text: str) -> Logits:
    top = _TOP.fullmatch(text) if isinstance(text, str) else None
    if text not in ("last", "all") and top is None:
        raise ValueError(f'logits is {text!r}, must be "last", "all" or "top-K", as "top-64"')
    return Logits(every=text == "all", top=int(top.group(1)) if top else None)


def _vocabulary(file: GgufFile) -> int:
    embedding = file.tensors.get(f"{_EMBEDDING}.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise file.refusal(f"it lacks the matrix {_EMBEDDING}.weight", "download it again, or convert it again")
    return embedding.shape[0]


class _Decoder:
    """One graph being written."""

    def __init__(self, file: GgufFile, parameters: Parameters, dtype: np.dtype[Any]) -> None:
        self._parameters = parameters
        self._vocabulary = _vocabulary(file)
        self._graph = Graph()
        self._weights = Weights(file, self._graph, dtype)
        self._weights.check(_required(parameters, self._vocabulary), _optional(parameters, self._vocabulary))
        self._dtype = dtype
        self._type = ELEMENT_TYPES[dtype]
        self._presents: dict[str, list[str | int]] = {}
        """Shapes of the caches as they are after a step, by name."""

    def model(self, logits: Logits) -> onnx.ModelProto:
        graph, parameters = self._graph, self._parameters
        ids = graph.input("input_ids", TensorProto.INT64, ["batch", "tokens"])
        for name in ("write_indices", "nonpad_kv_seqlen", "token_counts"):
            graph.input(name, TensorProto.INT64, ["batch"])
        turn = [*self._rotary_caches(), self._positions(ids)]
        x = self._weights.rows(_EMBEDDING, ids)
        for layer in range(parameters.layers):
            x = graph.node("Add", [x, self._attention(layer, x, turn)], f"blk.{layer}.attended")
            x = graph.node("Add", [x, self._gated(layer, x)], f"blk.{layer}.output")
        self._return_logits(x, logits)
        for name, shape in self._presents.items():
            graph.output(name, self._type, shape)
        metadata = {
            "architecture": parameters.name,
            "context_length": str(parameters.context_length),
            "vocabulary_size": str(self._vocabulary),
        }
        return graph.model(parameters.name, metadata)

    # --- positions ----------------------------------------------------------------------------------------------------

    def _positions(self, ids: str) -> str:
        """The position of each token; padding, which may lie beyond the context, has that of the first of it."""
        graph = self._graph
        tokens = graph.node("Shape", [ids], "tokens", start=1, end=2)
        scalar = graph.node("Squeeze", [tokens], "tokens.scalar")
        zero, one = (graph.constant(f"int64.{value}", np.array(value, np.int64)) for value in (0, 1))
        steps = graph.node("Range", [zero, scalar, one], "steps")
        columns = [
            graph.node("Unsqueeze", [name, graph.whole_numbers(1)], f"{name}.column")
            for name in ("token_counts", "write_indices")
        ]
        capped = graph.node("Min", [steps, columns[0]], "steps.capped")
        return graph.node("Add", [capped, columns[1]], "positions")

    def _rotary_caches(self) -> list[str]:
        """Cosines and sines of all positions of the context, and of one more, which padding may have."""
        parameters = self._parameters
        exponents = np.arange(0, parameters.rotary_size, 2) / parameters.rotary_size
        frequencies = parameters.rotary_base**-exponents / parameters.rotary_factor
        if self._weights.has(_ROTARY_FACTORS):
            frequencies = frequencies / self._weights.array(_ROTARY_FACTORS).astype(np.float64)
        angles = np.outer(np.arange(parameters.context_length + 1), frequencies)
        return [
            self._graph.constant(name, function(angles).astype(self._dtype))
            for name, function in (("rotary.cos", np.cos), ("rotary.sin", np.sin))
        ]

    # --- layers -------------------------------------------------------------------------------------------------------

    def _attention(self, layer: int, x: str, turn: list[str]) -> str:
        graph, parameters, prefix = self._graph, self._parameters, f"blk.{layer}"
        normal = self._normalised(x, f"{prefix}.attn_norm")
        names = [f"{prefix}.attn_{which}" for which in "qkv"]
        q, k, v = self._weights.products(normal, names)
        q = self._turned(self._heads(q, parameters.heads, parameters.key_size, f"{names[0]}_norm"), turn)
        k = self._turned(self._heads(k, parameters.key_heads, parameters.key_size, f"{names[1]}_norm"), turn)
        v = self._heads(v, parameters.key_heads, parameters.value_size, None)
        keys = self._appended(layer, "key", k, parameters.key_size)
        values = self._appended(layer, "value", v, parameters.value_size)
        scale: dict[str, Any] = {} if parameters.attention_scale is None else {"scale": parameters.attention_scale}
        operands = [q, keys, values, "", "", "", "nonpad_kv_seqlen"]
        y = graph.node("Attention", operands, f"{prefix}.attention", is_causal=1, **scale)
        side_by_side = graph.node("Transpose", [y], f"{prefix}.attention.tokens", perm=[0, 2, 1, 3])
        shape = graph.whole_numbers(0, 0, parameters.heads * parameters.value_size)
        merged = graph.node("Reshape", [side_by_side, shape], f"{prefix}.attention.merged")
        return self._weights.products(merged, [f"{prefix}.attn_output"])[0]

    def _heads(self, x: str, heads: int, size: int, norm: str | None) -> str:
        """[batch, tokens, heads · size] as [batch, heads, tokens, size], each head normalised where the net does."""
        graph = self._graph
        split = graph.node("Reshape", [x, graph.whole_numbers(0, 0, heads, size)], f"{x}.heads")
        if norm is not None and self._parameters.architecture.head_norms:
            split = self._normalised(split, norm)
        return graph.node("Transpose", [split], f"{x}.by_head", perm=[0, 2, 1, 3])

    def _turned(self, x: str, turn: list[str]) -> str:
        parameters = self._parameters
        attributes: dict[str, Any] = {"interleaved": int(parameters.architecture.interleaved)}
        if parameters.rotary_size < parameters.key_size:
            attributes["rotary_embedding_dim"] = parameters.rotary_size
        return self._graph.node("RotaryEmbedding", [x, *turn], f"{x}.turned", **attributes)

    def _appended(self, layer: int, which: str, update: str, size: int) -> str:
        """The cache of a layer with what this step adds to it."""
        graph = self._graph
        shape: list[str | int] = ["batch", self._parameters.key_heads, "max_tokens", size]
        past = graph.input(f"past_key_values.{layer}.{which}", self._type, shape)
        present = graph.node("TensorScatter", [past, update, "write_indices"], f"present.{layer}.{which}", axis=2)
        self._presents[present] = shape
        return present

    def _gated(self, layer: int, x: str) -> str:
        graph, prefix = self._graph, f"blk.{layer}"
        normal = self._normalised(x, f"{prefix}.ffn_norm")
        gate, up = self._weights.products(normal, [f"{prefix}.ffn_gate", f"{prefix}.ffn_up"])
        opened = graph.node("Swish", [gate], f"{prefix}.ffn_gate.open")
        product = graph.node("Mul", [opened, up], f"{prefix}.ffn_gated")
        return self._weights.products(product, [f"{prefix}.ffn_down"])[0]

    def _normalised(self, x: str, name: str) -> str:
        weight = self._weights.floats(f"{name}.weight")
        return self._graph.node("RMSNormalization", [x, weight], name, axis=-1, epsilon=self._parameters.epsilon)

    # --- logits -------------------------------------------------------------------------------------------------------

    def _return_logits(self, x: str, logits: Logits) -> None:
        graph, vocabulary = self._graph, self._vocabulary
        if not logits.every:
            x = self._last(x)
        normal = self._normalised(x, f"{_OUTPUT}_norm")
        last = _OUTPUT if self._weights.has(f"{_OUTPUT}.weight") else _EMBEDDING
        scores = self._weights.products(normal, [last])[0]
        if logits.every:
            graph.output(graph.node("Identity", [scores], "logits"), self._type, ["batch", "tokens", vocabulary])
            return
        of_row = graph.whole_numbers(1)
        if logits.top is None:
            graph.output(graph.node("Squeeze", [scores, of_row], "logits"), self._type, ["batch", vocabulary])
            return
        flat = graph.node("Squeeze", [scores, of_row], "scores")
        best = graph.nodes("TopK", [flat, graph.whole_numbers(logits.top)], ["logits", "token_ids"])
        for name, element in zip(best, (self._type, TensorProto.INT64), strict=True):
            graph.output(name, element, ["batch", logits.top])

    def _last(self, x: str) -> str:
        """The last token of each row that counts, [batch, 1, width]."""
        graph = self._graph
        places = graph.node("Sub", ["token_counts", graph.whole_numbers(1)], "last")
        indices = graph.node("Unsqueeze", [places, graph.whole_numbers(1, 2)], "last.indices")
        return graph.node("GatherND", [x, indices], "last.hidden", batch_dims=1)


def _required(parameters: Parameters, vocabulary: int) -> dict[str, tuple[int, ...]]:
    """The tensors that a file must have, with their shapes."""
    width, inner = parameters.width, parameters.inner_width
    queries, keys = parameters.heads * parameters.key_size, parameters.key_heads * parameters.key_size
    values = parameters.key_heads * parameters.value_size
    tensors: dict[str, tuple[int, ...]] = {f"{_EMBEDDING}.weight": (vocabulary, width), "output_norm.weight": (width,)}
    for layer in range(parameters.layers):
        of_layer: dict[str, tuple[int, ...]] = {
            "attn_norm.weight": (width,),
            "attn_q.weight": (queries, width),
            "attn_k.weight": (keys, width),
            "attn_v.weight": (values, width),
            "attn_output.weight": (width, parameters.heads * parameters.value_size),
            "ffn_norm.weight": (width,),
            "ffn_gate.weight": (inner, width),
            "ffn_up.weight": (inner, width),
            "ffn_down.weight": (width, inner),
        }
        if parameters.architecture.head_norms:
            of_layer |= {f"attn_{which}_norm.weight": (parameters.key_size,) for which in "qk"}
        if parameters.architecture.biases:
            of_layer |= {f"attn_{which}.bias": of_layer[f"attn_{which}.weight"][:1] for which in "qkv"}
        tensors |= {f"blk.{layer}.{name}": shape for name, shape in of_layer.items()}
    return tensors


def _optional(parameters: Parameters, vocabulary: int) -> dict[str, tuple[int, ...]]:
    """The tensors that a file may have: without an output of its own, the embedding is it."""
    required = _required(parameters, vocabulary)
    products = [name for name in required if name.endswith(".weight") and len(required[name]) == 2]
    biases = {name.removesuffix("weight") + "bias": required[name][:1] for name in products}
    del biases[f"{_EMBEDDING}.bias"]
    return {
        f"{_OUTPUT}.weight": (vocabulary, parameters.width),
        f"{_OUTPUT}.bias": (vocabulary,),
        _ROTARY_FACTORS: (parameters.rotary_size // 2,),
        **biases,
    }
