"""What a GGUF file says of itself, its vocabulary included."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from driver_shim.errors import UnsupportedModel
from sdk.gguf.file import open_gguf

Metadata = Mapping[str, Any]
"""Name → number, bool, text, or a list of them."""

TOKENS = "tokenizer.ggml.tokens"
_TEXTS = ("tokenizer.ggml.model", "tokenizer.ggml.pre", "tokenizer.chat_template")
_LISTS: dict[str, type | tuple[type, ...]] = {
    TOKENS: str,
    "tokenizer.ggml.merges": str,
    "tokenizer.ggml.token_type": int,
    "tokenizer.ggml.scores": (int, float),
}
"""Key → what its list is of; all of a list are of one type in such a file."""
_OF_EVERY_TOKEN = ("tokenizer.ggml.token_type", "tokenizer.ggml.scores")
_TOKEN_NUMBERS = tuple(f"tokenizer.ggml.{which}_token_id" for which in ("bos", "eos", "eot", "eom", "unknown"))


def read_metadata(path: str | os.PathLike[str]) -> Metadata:
    """All that a file says. Raises as `sdk.read_gguf` for a file that is no whole model."""
    file = open_gguf(path)
    return {key: file.value(key) for key in file.keys}


def check_vocabulary(metadata: Metadata) -> None:
    """Raise UnsupportedModel where what is said of tokens is of another type than it has to be, or does not fit them.

    Of what is not said, only tokens are missed here: whoever needs the rest says so.
    """
    for key in _TEXTS:
        if not isinstance(metadata.get(key, ""), str):
            raise _wrong(metadata, key, "a text")
    for key, kind in _LISTS.items():
        values = metadata.get(key, [])
        if not isinstance(values, list) or not all(isinstance(value, kind) for value in values[:1]):
            raise _wrong(metadata, key, "a list of texts" if kind is str else "a list of numbers")
    count = len(metadata.get(TOKENS, []))
    if not count:
        raise UnsupportedModel(f"the file has no vocabulary: {TOKENS} is missing", subsystem="vocabulary")
    for key in _OF_EVERY_TOKEN:
        if metadata.get(key) and len(metadata[key]) != count:
            raise UnsupportedModel(f"{key} says {len(metadata[key])} of {count} tokens", subsystem="vocabulary")
    for key in _TOKEN_NUMBERS:
        number = metadata.get(key)
        if number is not None and not (isinstance(number, int) and 0 <= number < count):
            raise _wrong(metadata, key, f"the number of one of {count} tokens")


def _wrong(metadata: Metadata, key: str, meant: str) -> UnsupportedModel:
    """The error that says what a key has to be."""
    said = repr(metadata[key])
    shown = said if len(said) <= _SHOWN else f"{said[:_SHOWN]}…"
    return UnsupportedModel(
        f"{key} is {shown}, must be {meant}", subsystem="gguf", remedy="download the file again, or convert it again"
    )


_SHOWN = 40
"""Characters of a wrong value."""
