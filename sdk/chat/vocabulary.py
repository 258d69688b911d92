"""The vocabulary of a model: text to tokens and back, as its GGUF file says."""

from __future__ import annotations

import enum
import importlib.util
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from driver_shim.errors import NpuError, UnsupportedModel
from sdk.chat import byte_level, sentence_pieces
from sdk.chat.metadata import TOKENS, Metadata, check_vocabulary

EXTRA = "pip install 'npu-sdk[chat]'"

_END_NAMES = frozenset(
    ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<|endoftext|>", "<|end_of_text|>", "<end_of_turn>", "</s>")
)
"""Control tokens that end an answer, whether or not the file says so: many files name one end and use another."""
_END_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id")


class TokenKind(enum.IntEnum):
    """`tokenizer.ggml.token_type`."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


class _Kind(NamedTuple):
    """One kind of vocabulary."""

    make_tokenizer: Callable[[Metadata, Sequence[str]], Any]
    bytes_of: Callable[[str], bytes]
    begins: bool
    """Whether texts begin with the token for it where the file does not say."""
    needs: str
    """What the file must have beside the tokens."""


KINDS = {
    "gpt2": _Kind(byte_level.make_tokenizer, byte_level.bytes_of, False, "tokenizer.ggml.merges"),
    "llama": _Kind(sentence_pieces.make_tokenizer, sentence_pieces.bytes_of, True, "tokenizer.ggml.scores"),
}
"""`tokenizer.ggml.model` → kind."""


class Vocabulary:
    """Tokens of one model. Raises UnsupportedModel for a kind that is not built, NpuError without `tokenizers`."""

    def __init__(self, metadata: Metadata) -> None:
        check_vocabulary(metadata)
        kind = _kind(metadata)
        _require_tokenizers()
        tokens: list[str] = metadata[TOKENS]
        kinds: list[int] = metadata.get("tokenizer.ggml.token_type") or [TokenKind.NORMAL] * len(tokens)
        self._tokens = tokens
        self._control = {number for number, one in enumerate(kinds) if one == TokenKind.CONTROL}
        self._named = self._control | {number for number, one in enumerate(kinds) if one == TokenKind.USER_DEFINED}
        self._bytes_of = kind.bytes_of
        self._tokenizer = kind.make_tokenizer(metadata, tokens)
        self._add_named()
        self.strips_first_space = kind is KINDS["llama"] and sentence_pieces.spaces_first(metadata)
        """Whether the first token of a text has a space in front that is not the text's."""
        self.begin_id: int | None = metadata.get("tokenizer.ggml.bos_token_id")
        self.begins = bool(metadata.get("tokenizer.ggml.add_bos_token", kind.begins)) and self.begin_id is not None
        """Whether a text begins with `begin_id`."""
        self.end_id: int | None = metadata.get("tokenizer.ggml.eos_token_id")
        self.end_ids = self._ends(metadata)
        """Tokens that end an answer."""

    def __len__(self) -> int:
        return len(self._tokens)

    def encode(self, text: str, *, control: bool = True) -> list[int]:
        """The tokens of a text, without the one for its beginning. Names of control tokens become those tokens.

        Without `control` they are read as the characters they are written in.
        """
        self._tokenizer.encode_special_tokens = not control
        ids: list[int] = self._tokenizer.encode(_encodable(text), add_special_tokens=False).ids
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of tokens, control tokens left out; bytes that are no UTF-8 as U+FFFD."""
        text = b"".join(self.bytes_of(one) for one in ids).decode("utf-8", "replace")
        return text.removeprefix(" ") if self.strips_first_space else text

    def bytes_of(self, number: int) -> bytes:
        """What a token adds to a text: nothing for control tokens, part of a character for some."""
        if number in self._control:
            return b""
        token = self._tokens[number]
        return token.encode("utf-8") if number in self._named else self._bytes_of(token)

    def text_of(self, number: int | None) -> str:
        """How a token is written, as templates want their special tokens; nothing for no token."""
        return "" if number is None else self._tokens[number]

    def _add_named(self) -> None:
        from tokenizers import AddedToken

        for number in sorted(self._named):
            token = AddedToken(self._tokens[number], special=number in self._control, normalized=False)
            add = self._tokenizer.add_special_tokens if number in self._control else self._tokenizer.add_tokens
            add([token])

    def _ends(self, metadata: Metadata) -> frozenset[int]:
        said = (metadata.get(f"tokenizer.ggml.{key}") for key in _END_KEYS)
        known = (number for number in self._control if self._tokens[number] in _END_NAMES)
        return frozenset((*(number for number in said if number is not None), *known))


def _kind(metadata: Metadata) -> _Kind:
    name = metadata.get("tokenizer.ggml.model")
    if name is None:
        raise UnsupportedModel("the file has no vocabulary: tokenizer.ggml.model is missing", subsystem="vocabulary")
    if name not in KINDS:
        raise UnsupportedModel(
            f"the vocabulary is of a kind that is not built, tokenizer.ggml.model = {name!r}",
            subsystem="vocabulary",
            remedy=f"there are: {', '.join(KINDS)}",
        )
    kind = KINDS[name]
    if kind.needs not in metadata:
        raise UnsupportedModel(f"the vocabulary is incomplete: {kind.needs} is missing", subsystem="vocabulary")
    return kind


def _require_tokenizers() -> None:
    if importlib.util.find_spec("tokenizers") is None:
        raise NpuError("tokenizers is not installed", code="missing-extra", remedy=EXTRA)


def _encodable(text: str) -> str:
    """Without lone surrogates, which stand for bytes of the command line that are no UTF-8."""
    return text.encode("utf-8", "replace").decode()
