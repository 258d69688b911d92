"""Text of tokens as they come: only whole characters, all of them, none twice."""

from __future__ import annotations

from functools import cache

from hypothesis import given
from hypothesis import strategies as st

from sdk.chat.text_stream import TextStream
from sdk.chat.vocabulary import Vocabulary
from tests.support.needs import module_of_extra
from tests.support.small_chat import BEGIN, END, byte_level_metadata, pieces_metadata
from tests.support.tricky_texts import tricky_texts

module_of_extra("tokenizers", "chat")

CUT_SHORT = "\ufffd"


@cache
def small() -> Vocabulary:
    return Vocabulary(byte_level_metadata())


def pieces(vocabulary: Vocabulary, ids: list[int]) -> list[str]:
    stream = TextStream(vocabulary)
    return [*(stream.push(number) for number in ids), stream.finish()]


def test_an_emoji_of_four_tokens_comes_when_its_last_byte_is_there() -> None:
    ids = [next(one for one in range(len(small())) if small().bytes_of(one) == bytes([byte])) for byte in "🙂".encode()]
    assert pieces(small(), ids) == ["", "", "", "🙂", ""]


def test_the_text_is_that_of_the_tokens_together_and_no_piece_has_half_a_character() -> None:
    for text in tricky_texts():
        said = pieces(small(), small().encode(text, control=False))
        assert "".join(said) == text
        assert all(CUT_SHORT not in piece for piece in said)


@given(st.lists(st.integers(0, len(small()) - 1), max_size=20))
def test_any_tokens_give_what_they_give_together(ids: list[int]) -> None:
    assert "".join(pieces(small(), ids)) == small().decode(ids)


def test_a_character_that_is_cut_short_at_the_end_is_replaced() -> None:
    half = next(one for one in range(len(small())) if small().bytes_of(one) == "é".encode()[:1])
    assert pieces(small(), [half]) == ["", CUT_SHORT]


def test_control_tokens_are_not_shown() -> None:
    assert "".join(pieces(small(), [BEGIN, *small().encode("the"), END])) == "the"


def test_the_space_in_front_of_the_first_piece_is_not_shown() -> None:
    vocabulary = Vocabulary(pieces_metadata())
    assert "".join(pieces(vocabulary, [1, *vocabulary.encode("the world")])) == "the world"
