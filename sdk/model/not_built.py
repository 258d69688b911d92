"""What users of language models ask `Device.load` for elsewhere and will not find here, each with the reason."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NoReturn

_ONE_DEVICE = (
    "a model runs on one device, since devices have no way to each other's memory: every layer would cross the host's"
    " bus twice; load the model on each device and share the conversations out"
)
_BEAMS = (
    "choosing tokens is the caller's: give every beam a state by state.fork(), step them all with states=[...], and"
    " keep the best"
)
_EIGHT_BIT_FLOATS = (
    "the device computes with float32, float16 and bfloat16, and has no 8-bit floats: weights may be blocks of 4 or 8"
    ' bits with scales, and read_gguf(dtype="float16") halves what states take'
)
_EVICTION = (
    "a state never drops tokens by itself, since no answer after that would be the model's own: it raises StateFull;"
    " rewind it, or begin another with what is to be kept"
)
_TEXT = (
    "models take and give numbers of tokens, whatever tokenizer made them; sdk.chat reads a GGUF file's vocabulary and"
    " template, and examples/chat_server.py is a server"
)

REASONS: Mapping[str, str] = {
    "tensor_parallel": _ONE_DEVICE,
    "tensor_parallel_size": _ONE_DEVICE,
    "pipeline_parallel": _ONE_DEVICE,
    "beam_search": _BEAMS,
    "num_beams": _BEAMS,
    "fp8": _EIGHT_BIT_FLOATS,
    "kv_cache_dtype": _EIGHT_BIT_FLOATS,
    "state_dtype": _EIGHT_BIT_FLOATS,
    "evict": _EVICTION,
    "sliding_window": _EVICTION,
    "tokenizer": _TEXT,
    "chat_template": _TEXT,
}
"""Keyword → why it is not built, and what to do instead."""


def refuse(keywords: Mapping[str, object]) -> NoReturn:
    """Raise TypeError for the first of these keywords, none of which `load` takes."""
    name = next(iter(keywords))
    reason = REASONS.get(name)
    raise TypeError(f"Device.load() got an unexpected keyword argument {name!r}" + (f": {reason}" if reason else ""))
