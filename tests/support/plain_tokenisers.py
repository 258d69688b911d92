"""Tokenisers written down step by step, for comparison: slow, and without the library that ours rest on."""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Mapping, Sequence

_SPACES = frozenset(
    "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))
)
_WORDS = re.compile(r" ?L+| ?N+| ?O+|[S ]+\Z|[S ]+(?=[S ])|[S ]+")
"""Over classes of characters; a run of spaces leaves its last one to what follows."""
_CONTRACTIONS = ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d")


def smollm_words(text: str) -> list[str]:
    """Text in words as SmolLM cuts it: every digit by itself, the rest as GPT-2 does."""
    found: list[str] = []
    rest = ""
    for character in text:
        if unicodedata.category(character).startswith("N"):
            found += gpt2_words(rest)
            found.append(character)
            rest = ""
        else:
            rest += character
    return found + gpt2_words(rest)


def gpt2_words(text: str) -> list[str]:
    """Text in words as GPT-2 cuts it."""
    classes = "".join(map(_class_of, text))
    found, at = [], 0
    while at < len(text):
        end = at + next((len(one) for one in _CONTRACTIONS if text.startswith(one, at)), 0)
        if end == at:
            match = _WORDS.match(classes, at)
            assert match is not None
            end = match.end()
        found.append(text[at:end])
        at = end
    return found


def _class_of(character: str) -> str:
    if character == " ":
        return " "
    if character in _SPACES:
        return "S"
    kind = unicodedata.category(character)[0]
    return kind if kind in "LN" else "O"


def spelling() -> dict[int, str]:
    """Byte → the character that GPT-2 writes for it."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {byte: chr(byte) for byte in shown} | {byte: chr(256 + place) for place, byte in enumerate(hidden)}


def merged(symbols: list[str], ranks: Mapping[tuple[str, str], int]) -> list[str]:
    """Symbols after all merges, the earliest in the list first, each from left to right."""
    while True:
        pairs = [pair for pair in itertools.pairwise(symbols) if pair in ranks]
        if not pairs:
            return symbols
        best = min(pairs, key=lambda pair: ranks[pair])
        out: list[str] = []
        for symbol in symbols:
            if out and (out[-1], symbol) == best:
                out[-1] = out[-1] + symbol
            else:
                out.append(symbol)
        symbols = out


def byte_level_ids(words: Sequence[str], tokens: Sequence[str], merges: Sequence[str]) -> list[int]:
    """The tokens of words, by a byte-level vocabulary."""
    ids = {token: number for number, token in enumerate(tokens)}
    ranks = {(left, right): rank for rank, (left, right) in enumerate(merge.split(" ") for merge in merges)}
    letters = spelling()
    spelt = ([letters[byte] for byte in word.encode("utf-8")] for word in words)
    return [ids[symbol] for symbols in spelt for symbol in merged(symbols, ranks)]


def sentence_piece_ids(text: str, tokens: Sequence[str], scores: Sequence[float]) -> list[int]:
    """The tokens of a text, by pieces: of all neighbours, those are joined first that make the best piece."""
    ids = {token: number for number, token in enumerate(tokens)}
    symbols = list("▁" + text.replace(" ", "▁")) if text else []
    while True:
        pairs = enumerate(a + b for a, b in itertools.pairwise(symbols))
        joined = [(scores[ids[pair]], -at) for at, pair in pairs if pair in ids]
        if not joined:
            break
        at = -max(joined)[1]
        symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]
    found: list[int] = []
    for symbol in symbols:
        found += [ids[symbol]] if symbol in ids else [ids[f"<0x{byte:02X}>"] for byte in symbol.encode("utf-8")]
    return found
