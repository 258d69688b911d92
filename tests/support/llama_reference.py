"""A decoder of the Llama family in NumPy, whole sequences at once: what graphs of GGUF files are compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.support.gguf_files import Net

Array = NDArray[Any]
EPSILON = 1e-5
INTERLEAVED = {"llama": True, "qwen2": False, "qwen3": False}


def logits(net: Net, tensors: Mapping[str, Array], ids: Sequence[int], base: float = 1e4, factor: float = 1) -> Array:
    """The logits of every token of a sequence, float64 [tokens, vocabulary]."""
    real = {name: array.astype(np.float64) for name, array in tensors.items()}
    turn = _turns(net, real, len(ids), base, factor)
    x = real["token_embd.weight"][list(ids)]
    for layer in range(net.layers):
        of_layer = {name.split(".", 2)[2]: array for name, array in real.items() if name.startswith(f"blk.{layer}.")}
        x = x + _attention(net, of_layer, _normal(x, of_layer["attn_norm.weight"]), turn)
        y = _normal(x, of_layer["ffn_norm.weight"])
        gate = _product(of_layer, "ffn_gate", y)
        x = x + _product(of_layer, "ffn_down", gate / (1 + np.exp(-gate)) * _product(of_layer, "ffn_up", y))
    last = real.get("output.weight", real["token_embd.weight"])
    return np.asarray(_normal(x, real["output_norm.weight"]) @ last.T)


def _normal(x: Array, weight: Array) -> Array:
    return np.asarray(x / np.sqrt((x * x).mean(-1, keepdims=True) + EPSILON) * weight)


def _product(tensors: Mapping[str, Array], name: str, x: Array) -> Array:
    return np.asarray(x @ tensors[f"{name}.weight"].T + tensors.get(f"{name}.bias", np.zeros(1)))


def _turns(net: Net, tensors: Mapping[str, Array], tokens: int, base: float, factor: float) -> Array:
    """What each pair of a head is multiplied with as a complex number, [tokens, pairs]."""
    size = net.metadata.get("rope.dimension_count", net.key_size)
    frequencies = base ** (-2 * np.arange(size // 2) / size) / factor
    frequencies = frequencies / tensors.get("rope_freqs.weight", np.ones(1))
    return np.exp(1j * np.outer(np.arange(tokens), frequencies))


def _turned(net: Net, x: Array, turn: Array) -> Array:
    """Heads [tokens, size] turned by their positions; what is beyond the pairs stays."""
    pairs = turn.shape[1]
    turned, rest = x[:, : 2 * pairs], x[:, 2 * pairs :]
    if INTERLEAVED[net.architecture]:
        y = (turned[:, 0::2] + 1j * turned[:, 1::2]) * turn
        turned = np.stack([y.real, y.imag], -1).reshape(len(x), -1)
    else:
        y = (turned[:, :pairs] + 1j * turned[:, pairs:]) * turn
        turned = np.concatenate([y.real, y.imag], -1)
    return np.concatenate([turned, rest], -1)


def _attention(net: Net, tensors: Mapping[str, Array], x: Array, turn: Array) -> Array:
    q, k, v = (_product(tensors, f"attn_{which}", x) for which in "qkv")
    tokens = len(x)
    heads = []
    for head in range(net.heads):
        shared = head * net.key_heads // net.heads
        query = q[:, head * net.key_size :][:, : net.key_size]
        key = k[:, shared * net.key_size :][:, : net.key_size]
        if net.head_norms:
            query = _normal(query, tensors["attn_q_norm.weight"])
            key = _normal(key, tensors["attn_k_norm.weight"])
        scores = _turned(net, query, turn) @ _turned(net, key, turn).T / np.sqrt(net.key_size)
        scores = np.where(np.tri(tokens, dtype=bool), scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        heads.append(weights @ v[:, shared * net.values :][:, : net.values])
    return _product(tensors, "attn_output", np.concatenate(heads, -1))
