"""What a file's metadata say of its net, checked; architectures differ by a row of a table."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

from sdk.gguf.file import GgufFile

_PROGRAM = "convert it to ONNX with a program that knows it"
_MAX_CONTEXT = 1 << 22
"""Tokens that cosines and sines are computed for at most."""
_ROTARY_BASE = 10000.0


class Architecture(NamedTuple):
    """How an architecture differs from Llama."""

    interleaved: bool
    """Whether neighbours are turned as pairs, and not the halves of a head."""
    biases: bool = False
    """Whether queries, keys and values have a bias; some files of the others have one, too."""
    head_norms: bool = False
    """Whether each head's queries and keys are normalised."""


ARCHITECTURES = {
    "llama": Architecture(interleaved=True),
    "qwen2": Architecture(interleaved=False, biases=True),
    "qwen3": Architecture(interleaved=False, head_norms=True),
}
"""By GGUF's name; Mistral and SmolLM2 are "llama" there."""


@dataclass(frozen=True)
class Parameters:
    """The numbers of a net."""

    architecture: Architecture
    name: str
    """GGUF's name of the architecture."""
    layers: int
    width: int
    inner_width: int
    """Of the gated product."""
    heads: int
    key_heads: int
    key_size: int
    value_size: int
    context_length: int
    epsilon: float
    rotary_size: int
    """Elements of a head that are turned."""
    rotary_base: float
    rotary_factor: float
    """What positions are divided by."""
    attention_scale: float | None
    """None for one over the root of `key_size`."""


def read_parameters(file: GgufFile) -> Parameters:
    """The parameters of a file. Raises UnsupportedModel when it is of another architecture, or they contradict."""
    name = file.value("general.architecture")
    if not isinstance(name, str) or name not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise file.refusal(f"its architecture {name!r} is not supported; {known} are", _PROGRAM)
    numbers = _Numbers(file, name)
    _refuse_variants(numbers)
    heads, width = numbers.count("attention.head_count"), numbers.count("embedding_length")
    key_heads = numbers.count("attention.head_count_kv", heads)
    if heads % key_heads:
        raise file.refusal(f"{heads} heads of queries cannot share {key_heads} heads of keys")
    if width % heads and numbers.value("attention.key_length") is None:
        raise file.refusal(f"a width of {width} is not divided by {heads} heads")
    key_size = numbers.count("attention.key_length", max(1, width // heads))
    rotary_size = numbers.count("rope.dimension_count", key_size)
    if rotary_size > key_size or rotary_size % 2:
        raise file.refusal(f"rope.dimension_count is {rotary_size}, must be even and at most {key_size}")
    layers, context = numbers.count("block_count"), numbers.count("context_length")
    if layers > len(file.tensors):
        raise file.refusal(f"it has {len(file.tensors)} tensors for {layers} layers", "download it again")
    if context > _MAX_CONTEXT:
        raise file.refusal(f"its context has {context} tokens; at most {_MAX_CONTEXT} are supported")
    return Parameters(
        architecture=ARCHITECTURES[name],
        name=name,
        layers=layers,
        width=width,
        inner_width=numbers.count("feed_forward_length"),
        heads=heads,
        key_heads=key_heads,
        key_size=key_size,
        value_size=numbers.count("attention.value_length", key_size),
        context_length=context,
        epsilon=numbers.real("attention.layer_norm_rms_epsilon"),
        rotary_size=rotary_size,
        rotary_base=numbers.real("rope.freq_base", _ROTARY_BASE) or _ROTARY_BASE,
        rotary_factor=_rotary_factor(numbers),
        attention_scale=numbers.real("attention.scale", 0.0) or None,
    )


class _Numbers:
    """Metadata of one architecture."""

    def __init__(self, file: GgufFile, architecture: str) -> None:
        self.file = file
        self._prefix = architecture

    def key(self, name: str) -> str:
        """What the metadata call it."""
        return f"{self._prefix}.{name}"

    def value(self, key: str) -> Any:
        """What the metadata say, None when they say nothing."""
        return self.file.value(self.key(key))

    def count(self, key: str, default: int | None = None) -> int:
        """A whole number above zero; without a default it must be there."""
        value = self._required(key, default)
        if isinstance(value, list):
            if len(set(value)) != 1:
                raise self.file.refusal(f"{self.key(key)} differs from layer to layer, which is not supported")
            value = value[0]
        if not isinstance(value, int) or value < 1:
            raise self.file.refusal(f"{self.key(key)} is {value!r}, must be a whole number above zero")
        return value

    def real(self, key: str, default: float | None = None) -> float:
        """A finite number that is not negative; without a default it must be there."""
        value = self._required(key, default)
        if not isinstance(value, (int, float)) or not math.isfinite(value) or value < 0:
            raise self.file.refusal(f"{self.key(key)} is {value!r}, must be a number that is not negative")
        return float(value)

    def _required(self, key: str, default: float | None) -> Any:
        value = self.value(key)
        value = default if value is None else value
        if value is None:
            raise self.file.refusal(f"its metadata lack {self.key(key)}", "convert the model again")
        return value


def _refuse_variants(numbers: _Numbers) -> None:
    """Refuse what would make another net of the same tensors."""
    file = numbers.file
    if numbers.value("expert_count"):
        raise file.refusal(f"it is a mixture of {numbers.value('expert_count')} experts, which is not supported")
    window, context = numbers.value("attention.sliding_window"), numbers.value("context_length")
    if isinstance(window, int) and isinstance(context, int) and 0 < window < context:
        change = f"gguf-set-metadata FILE {numbers.key('context_length')} {window}"
        raise file.refusal(
            f"it attends to a sliding window of {window} tokens, of {context}; ONNX's Attention has none over a cache",
            f"where {window} tokens are enough, say so: {change}",
        )


def _rotary_factor(numbers: _Numbers) -> float:
    scaling = numbers.value("rope.scaling.type")
    if scaling in (None, "none"):
        return 1.0
    if scaling != "linear":
        raise numbers.file.refusal(f"its rotary positions are scaled by {scaling!r}; 'linear' is supported", _PROGRAM)
    return numbers.real("rope.scaling.factor", 1.0) or 1.0
