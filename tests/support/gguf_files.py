"""Small GGUF files with random weights, as the package `gguf` writes them, and what is in them as floats."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
WIDTH, INNER, VOCABULARY, CONTEXT = 256, 256, 40, 48
"""Extents: those of the K types' blocks of 256 where weights lie along them."""


@dataclasses.dataclass(frozen=True)
class Net:
    """What a file is to hold."""

    architecture: str = "llama"
    kinds: tuple[str, ...] = ("F32",)
    """Types of the matrices, which take turns."""
    layers: int = 2
    heads: int = 4
    key_heads: int = 2
    key_size: int = 64
    value_size: int | None = None
    """None for that of keys."""
    words: Sequence[str] = tuple(f"t{i}" for i in range(VOCABULARY))
    tied: bool = False
    biases: tuple[str, ...] = ()
    head_norms: bool = False
    rotary_factors: bool = False
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """More of it, or other, under the architecture's prefix; None leaves an entry out."""
    general: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """More of it, by whole keys."""
    changed: Mapping[str, Array | None] = dataclasses.field(default_factory=dict)
    """Tensors of floats to put in place of others or beside them; None leaves one out."""
    seed: int = 0

    @property
    def values(self) -> int:
        """Elements of a head's values."""
        return self.key_size if self.value_size is None else self.value_size


def write_gguf(path: Path, net: Net) -> dict[str, Array]:
    """Write a file; returns its tensors as the floats that they stand for."""
    writer = gguf.GGUFWriter(path, net.architecture)
    for key, value in {**_metadata(net), **net.metadata}.items():
        if value is not None:
            _add(writer, f"{net.architecture}.{key}", value)
    for key, value in net.general.items():
        if key == "general.alignment":
            writer.add_custom_alignment(value)
        else:
            _add(writer, key, value)
    writer.add_token_list(net.words)
    real = {}
    for name, (data, kind) in _tensors(net).items():
        if kind is None:
            writer.add_tensor(name, data)
            real[name] = data.astype(np.float32)
        else:
            writer.add_tensor(name, data, raw_dtype=kind)
            real[name] = gguf.dequantize(data, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return real


def random_blocks(random: np.random.Generator, kind: str, rows: int, columns: int) -> Array:
    """The bytes of a matrix of any type, weights about one in size: random ones, with modest scales."""
    number = gguf.GGMLQuantizationType[kind]
    weights, size = gguf.GGML_QUANT_SIZES[number]
    blocks = random.integers(0, 256, (rows * columns // weights, size), np.uint8)
    for place in SCALES_AT[kind]:
        scales = random.uniform(0.5, 1, len(blocks)) * random.choice([-1, 1], len(blocks))
        blocks[:, place : place + 2] = scales.astype("<f2").view(np.uint8).reshape(-1, 2)
    largest = np.abs(gguf.dequantize(blocks, number)).max()
    for place in SCALES_AT[kind]:
        scales = blocks[:, place : place + 2].copy().view("<f2").astype(np.float32) / largest
        blocks[:, place : place + 2] = scales.astype("<f2").view(np.uint8).reshape(-1, 2)
    return blocks.reshape(rows, -1)


SCALES_AT = {
    "Q4_0": (0,),
    "Q4_1": (0, 2),
    "Q5_0": (0,),
    "Q5_1": (0, 2),
    "Q8_0": (0,),
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
    "IQ4_NL": (0,),
    "IQ4_XS": (0,),
}
"""Where blocks have their scales, and their minimums' scales, in float16."""


def _metadata(net: Net) -> dict[str, Any]:
    return {
        "block_count": net.layers,
        "context_length": CONTEXT,
        "embedding_length": WIDTH,
        "feed_forward_length": INNER,
        "attention.head_count": net.heads,
        "attention.head_count_kv": net.key_heads,
        "attention.key_length": net.key_size,
        "attention.value_length": net.values,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "rope.freq_base": 10000.0,
    }


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, str):
        writer.add_string(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, list):
        writer.add_array(key, value)
    else:
        writer.add_uint32(key, value)


def _tensors(net: Net) -> dict[str, tuple[Array, gguf.GGMLQuantizationType | None]]:
    """Data of the tensors, and the types of those that are not plain float32."""
    random = np.random.default_rng(net.seed)
    kinds = iter(net.kinds * 1000)
    tensors: dict[str, tuple[Array, gguf.GGMLQuantizationType | None]] = {}

    def matrix(name: str, rows: int, columns: int) -> None:
        kind = next(kinds)
        if kind == "F32":
            tensors[name] = random.uniform(-0.2, 0.2, (rows, columns)).astype(np.float32), None
        elif kind in ("F16", "BF16"):
            number = gguf.GGMLQuantizationType[kind]
            values = random.uniform(-0.2, 0.2, (rows, columns)).astype(np.float32)
            tensors[name] = gguf.quantize(values, number), number
        else:
            tensors[name] = random_blocks(random, kind, rows, columns), gguf.GGMLQuantizationType[kind]

    def vector(name: str, length: int, low: float = 0.5, high: float = 1.5) -> None:
        tensors[name] = random.uniform(low, high, length).astype(np.float32), None

    matrix("token_embd.weight", len(net.words), WIDTH)
    for layer in range(net.layers):
        shapes = {
            "attn_q": (net.heads * net.key_size, WIDTH),
            "attn_k": (net.key_heads * net.key_size, WIDTH),
            "attn_v": (net.key_heads * net.values, WIDTH),
            "attn_output": (WIDTH, net.heads * net.values),
            "ffn_gate": (INNER, WIDTH),
            "ffn_up": (INNER, WIDTH),
            "ffn_down": (WIDTH, INNER),
        }
        for name, (rows, columns) in shapes.items():
            matrix(f"blk.{layer}.{name}.weight", rows, columns)
            if name in net.biases:
                vector(f"blk.{layer}.{name}.bias", rows, -0.5, 0.5)
        for norm in ("attn_norm", "ffn_norm"):
            vector(f"blk.{layer}.{norm}.weight", WIDTH)
        if net.head_norms:
            for norm in ("attn_q_norm", "attn_k_norm"):
                vector(f"blk.{layer}.{norm}.weight", net.key_size)
    vector("output_norm.weight", WIDTH)
    if not net.tied:
        matrix("output.weight", len(net.words), WIDTH)
    if net.rotary_factors:
        vector("rope_freqs.weight", net.key_size // 2, 1, 8)
    for name, data in net.changed.items():
        if data is None:
            del tensors[name]
        else:
            tensors[name] = data, None
    return tensors
