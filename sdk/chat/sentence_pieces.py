"""Vocabularies of SentencePiece's kind: pieces of text with scores, spaces spelled "▁" ("llama" in GGUF files)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from sdk.chat.metadata import Metadata

_SPACE = "▁"
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


def make_tokenizer(metadata: Metadata, tokens: Sequence[str]) -> Any:
    """The `tokenizers.Tokenizer`, without special tokens."""
    from tokenizers import Tokenizer, models, normalizers

    ids = {token: number for number, token in enumerate(tokens)}
    unknown = tokens[metadata.get("tokenizer.ggml.unknown_token_id", 0)]
    merges = merges_by_score(tokens, metadata["tokenizer.ggml.scores"])
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    steps: list[Any] = [normalizers.Replace(" ", _SPACE)]
    if spaces_first(metadata):
        steps.insert(0, normalizers.Prepend(_SPACE))
    tokenizer.normalizer = normalizers.Sequence(steps)
    return tokenizer


def spaces_first(metadata: Metadata) -> bool:
    """Whether a text is read as if a space stood before it."""
    return bool(metadata.get("tokenizer.ggml.add_space_prefix", True))


def merges_by_score(tokens: Sequence[str], scores: Sequence[float]) -> list[tuple[str, str]]:
    """Every way to make a piece of two others; the piece with the highest score comes first."""
    ids = {token: number for number, token in enumerate(tokens)}
    found = []
    for token, score in zip(tokens, scores, strict=True):
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in ids and right in ids:
                found.append((-score, ids[left], ids[right], left, right))
    return [(left, right) for *_, left, right in sorted(found)]


def bytes_of(token: str) -> bytes:
    """What a token stands for; byte tokens are written <0x0A>."""
    byte = _BYTE.fullmatch(token)
    return bytes([int(byte[1], 16)]) if byte else token.replace(_SPACE, " ").encode("utf-8")
