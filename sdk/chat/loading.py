"""A language model of a GGUF file on a device, with room for one conversation."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

import sdk
from driver_shim.errors import UnsupportedModel
from sdk.chat.metadata import Metadata
from sdk.chat.port import LanguageModel, State
from sdk.chat.sequence import INPUT

if TYPE_CHECKING:
    from sdk.device import Device

PREFILL_TOKENS = 128
"""What a run reads of a prompt at most."""
CANDIDATES = 64
"""Scores that a step brings over the bus, unless more are sampled from: the best of the whole vocabulary."""
DEFAULT_CONTEXT = 2048
"""Tokens of a conversation; models that take less have less. What they take at most may not fit anywhere."""
_ELEMENT_BYTES = 4
_ROUNDED_TOKENS = 256
"""State memory is taken in whole blocks, which are smaller than this."""


class Loaded(NamedTuple):
    """What a conversation runs on."""

    model: LanguageModel
    state: State
    weights_bytes: int | None
    """Device memory that weights lie in."""


def most_context(metadata: Metadata) -> int:
    """Tokens of a conversation that the model was made for. Raises UnsupportedModel where the file does not say."""
    return _number(metadata, "context_length")


def load(
    device: Device, path: str | os.PathLike[str], metadata: Metadata, *, context: int, candidates: int = CANDIDATES
) -> Loaded:
    """Load a model and take a state of `context` tokens. Raises as `sdk.read_gguf`, `Device.load`, `Model.state`."""
    graph = sdk.read_gguf(path, logits=f"top-{candidates}")
    tokens = min(PREFILL_TOKENS, context)
    memory = _state_bytes(metadata, context)
    model = device.load(graph, shapes={INPUT: [(1, tokens), (1, 1)]}, state_memory=memory)
    plan = model.plan
    return Loaded(model, model.state(max_tokens=context), None if plan is None else plan.constants_bytes)


def _state_bytes(metadata: Metadata, context: int) -> int:
    """Memory that holds so many tokens' keys and values, whatever they are stored as."""
    heads = _number(metadata, "attention.head_count")
    size = metadata.get(f"{_architecture(metadata)}.attention.key_length")
    size = size or _number(metadata, "embedding_length") // heads
    key_heads = metadata.get(f"{_architecture(metadata)}.attention.head_count_kv", heads)
    token_bytes = 2 * _number(metadata, "block_count") * int(key_heads) * int(size) * _ELEMENT_BYTES
    return token_bytes * (-(-context // _ROUNDED_TOKENS) * _ROUNDED_TOKENS)


def _architecture(metadata: Metadata) -> str:
    return str(metadata.get("general.architecture"))


def _number(metadata: Metadata, key: str) -> int:
    name = f"{_architecture(metadata)}.{key}"
    if name not in metadata:
        raise UnsupportedModel(f"the file does not say {name}", subsystem="gguf")
    return int(metadata[name])
