"""Vocabularies of bytes: any text is a row of bytes, and tokens are merged from those ("gpt2" in GGUF files)."""

from __future__ import annotations

from collections.abc import KeysView, Sequence
from typing import Any

from driver_shim.errors import UnsupportedModel
from sdk.chat.metadata import Metadata
from sdk.chat.pre_tokenisers import DEFAULT, cut_named, pre_tokeniser

_PRINTABLE = (*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1))
_FIRST_SPARE = 0x100


def _spelling() -> dict[str, int]:
    """Character → the byte it stands for in such a vocabulary: printable ones for themselves, the others in order."""
    spare = (byte for byte in range(256) if byte not in _PRINTABLE)
    others = {chr(_FIRST_SPARE + position): byte for position, byte in enumerate(spare)}
    return {chr(byte): byte for byte in _PRINTABLE} | others


_BYTES = _spelling()


def make_tokenizer(metadata: Metadata, tokens: Sequence[str]) -> Any:
    """The `tokenizers.Tokenizer`, without special tokens. Raises UnsupportedModel for a way of cutting not built."""
    from tokenizers import Tokenizer, models, normalizers

    cut = cut_named(metadata.get("tokenizer.ggml.pre", DEFAULT))
    ids = {token: number for number, token in enumerate(tokens)}
    merges = [_pair(merge, ids.keys()) for merge in metadata["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=merges, ignore_merges=cut.whole_words))
    if cut.composed:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokeniser(cut)
    return tokenizer


def _pair(merge: str, ids: KeysView[str]) -> tuple[str, str]:
    """The two tokens that a merge joins. Raises UnsupportedModel where they, or what they make, are none."""
    left, _, right = merge.partition(" ")
    if not {left, right, left + right} <= ids:
        raise UnsupportedModel(
            f"the merge {merge!r} is of no tokens of the vocabulary",
            subsystem="vocabulary",
            remedy="download the file again, or convert it again",
        )
    return left, right


def bytes_of(token: str) -> bytes:
    """What a token stands for; a special token, which is not spelled in bytes, for its own name."""
    if all(character in _BYTES for character in token):
        return bytes(_BYTES[character] for character in token)
    return token.encode("utf-8")
