"""Vocabularies beside tokenisers written down step by step, and round trips of texts that are hard to cut."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from driver_shim.errors import UnsupportedModel
from sdk.chat import default_model
from sdk.chat.metadata import read_metadata
from sdk.chat.pre_tokenisers import CUTS, pre_tokeniser
from sdk.chat.vocabulary import Vocabulary
from tests.support.needs import module_of_extra, require_all_there
from tests.support.plain_tokenisers import byte_level_ids, gpt2_words, sentence_piece_ids, smollm_words
from tests.support.small_chat import BEGIN, END, STOP, USER_MARK, byte_level_metadata, pieces_metadata
from tests.support.tricky_texts import tricky_texts

module_of_extra("tokenizers", "chat")

PLAIN = [name for name, cut in CUTS.items() if not cut.composed]
COMPOSING = [name for name, cut in CUTS.items() if cut.composed]


@cache
def small(pre: str = "smollm") -> Vocabulary:
    return Vocabulary(byte_level_metadata(**{"tokenizer.ggml.pre": pre}))


# --- bytes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("pre", "cut"), [("smollm", smollm_words), ("gpt-2", gpt2_words)])
def test_tokens_are_those_of_a_tokeniser_written_down_step_by_step(pre: str, cut: Callable[[str], list[str]]) -> None:
    metadata = byte_level_metadata()
    for text in tricky_texts():
        plain = byte_level_ids(cut(text), metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.merges"])
        assert small(pre).encode(text, control=False) == plain, repr(text)


@pytest.mark.parametrize("pre", PLAIN)
def test_every_text_comes_back(pre: str) -> None:
    for text in tricky_texts():
        assert small(pre).decode(small(pre).encode(text, control=False)) == text


@pytest.mark.parametrize("pre", COMPOSING)
def test_what_composes_characters_gives_composed_text_back(pre: str) -> None:
    assert small(pre).decode(small(pre).encode("e\u0301")) == "é"


@given(st.text())
def test_any_text_comes_back(text: str) -> None:
    assert small().decode(small().encode(text, control=False)) == text


def test_lone_surrogates_do_not_stop_a_text() -> None:
    assert small().decode(small().encode("a\udcffb")) == "a?b"


@pytest.mark.parametrize(
    ("pre", "text", "words"),
    [
        ("smollm", "in 2024", ["in", " ", "2", "0", "2", "4"]),
        ("gpt-2", "in 2024", ["in", " 2024"]),
        ("llama-bpe", "in 20245", ["in", " ", "202", "45"]),
        ("qwen2", "in 20", ["in", " ", "2", "0"]),
        ("tekken", "aB Cd12", ["a", "B", " Cd", "1", "2"]),
        ("default", "in 2024!", ["in", " ", "202", "4", "!"]),
        ("llama-bpe", "I'LL don't", ["I", "'LL", " don", "'t"]),
        ("gpt-2", "I'LL don't", ["I", "'", "LL", " don", "'t"]),
        ("smollm", "a   b\n\n c", ["a", "  ", " b", "\n\n", " c"]),
        ("llama-bpe", "a \n\n b", ["a", " \n\n", " b"]),
        ("qwen2", "x = (1);\n\ty", ["x", " =", " (", "1", ");\n", "\ty"]),
        ("tekken", "a //\n/b", ["a", " //\n/", "b"]),
    ],
)
def test_words_are_cut_where_each_model_learnt_them(pre: str, text: str, words: list[str]) -> None:
    pieces = pre_tokeniser(CUTS[pre]).pre_tokenize_str(text)
    assert [text[start:end] for _, (start, end) in pieces] == words


def test_a_word_of_the_vocabulary_is_whole_where_the_model_learnt_so() -> None:
    metadata = byte_level_metadata()
    tokens = [*metadata["tokenizer.ggml.tokens"], "zqx"]
    kinds = [*metadata["tokenizer.ggml.token_type"], 1]
    changed = {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": kinds}
    whole = Vocabulary(byte_level_metadata(**changed, **{"tokenizer.ggml.pre": "llama-bpe"}))
    merged = Vocabulary(byte_level_metadata(**changed, **{"tokenizer.ggml.pre": "qwen2"}))
    assert whole.encode("zqx") == [len(tokens) - 1]
    assert len(merged.encode("zqx")) == 3


def test_a_file_that_names_no_cut_means_the_default_one() -> None:
    metadata = byte_level_metadata()
    del metadata["tokenizer.ggml.pre"]
    assert Vocabulary(metadata).encode("12 345") == small("default").encode("12 345")


# --- control tokens --------------------------------------------------------------------------------------------


def test_names_of_control_tokens_are_those_tokens_unless_told_otherwise() -> None:
    text = "<|im_start|>the<|im_end|>"
    ids = small().encode(text)
    assert (ids[0], ids[-1]) == (BEGIN, END)
    assert small().decode(ids) == "the"
    plain = small().encode(text, control=False)
    assert not {BEGIN, END} & set(plain)
    assert small().decode(plain) == text


def test_tokens_that_users_defined_are_text() -> None:
    ids = small().encode("a<mark>b")
    assert ids[1] == USER_MARK
    assert small().decode(ids) == "a<mark>b"


def test_an_answer_ends_with_what_the_file_says_and_with_the_names_that_others_use() -> None:
    assert small().end_ids == {END, STOP}
    more = Vocabulary(byte_level_metadata(**{"tokenizer.ggml.eot_token_id": BEGIN}))
    assert more.end_ids == {BEGIN, END, STOP}


def test_whether_a_text_has_a_beginning_is_the_files_affair() -> None:
    assert not small().begins
    assert Vocabulary(byte_level_metadata(**{"tokenizer.ggml.add_bos_token": True})).begins
    assert Vocabulary(pieces_metadata()).begins
    without = byte_level_metadata(**{"tokenizer.ggml.add_bos_token": True})
    del without["tokenizer.ggml.bos_token_id"]
    assert not Vocabulary(without).begins


# --- pieces ----------------------------------------------------------------------------------------------------


def test_pieces_are_those_of_a_tokeniser_written_down_step_by_step() -> None:
    metadata = pieces_metadata()
    vocabulary = Vocabulary(metadata)
    for text in [*tricky_texts(), "ababab", "the world  in    ing", "abababababab bab"]:
        plain = sentence_piece_ids(text, metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.scores"])
        assert vocabulary.encode(text, control=False) == plain, repr(text)


def test_texts_come_back_from_pieces() -> None:
    vocabulary = Vocabulary(pieces_metadata())
    for text in tricky_texts():
        assert vocabulary.decode(vocabulary.encode(text, control=False)) == text


def test_a_vocabulary_of_pieces_may_read_texts_as_they_are() -> None:
    vocabulary = Vocabulary({**pieces_metadata(), "tokenizer.ggml.add_space_prefix": False})
    assert vocabulary.encode("ab") == vocabulary.encode(" ab")[1:]
    assert vocabulary.decode(vocabulary.encode(" ab")) == " ab"


# --- refusals --------------------------------------------------------------------------------------------------


def test_a_kind_that_is_not_built_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedModel, match=r"'bert'.*gpt2, llama"):
        Vocabulary(byte_level_metadata(**{"tokenizer.ggml.model": "bert"}))


def test_a_way_of_cutting_that_is_not_built_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedModel, match=r"'chameleon'.*smollm"):
        Vocabulary(byte_level_metadata(**{"tokenizer.ggml.pre": "chameleon"}))


@pytest.mark.parametrize("key", ["tokenizer.ggml.model", "tokenizer.ggml.tokens", "tokenizer.ggml.merges"])
def test_a_file_without_a_part_of_its_vocabulary_is_refused(key: str) -> None:
    metadata = byte_level_metadata()
    del metadata[key]
    with pytest.raises(UnsupportedModel, match="vocabulary"):
        Vocabulary(metadata)


# --- a published model -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def published() -> Vocabulary:
    require_all_there(default_model.missing())
    return Vocabulary(read_metadata(default_model.path()))


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("The capital of France is", [504, 3575, 282, 4649, 314]),
        ("Hello, world", [19556, 28, 905]),
        (
            "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n",
            [1, 4093, 198, 1780, 314, 260, 3575, 282, 4649, 47, 2, 198, 1, 520, 9531, 198],
        ),
    ],
)
def test_known_texts_are_the_known_tokens_of_a_published_model(
    published: Vocabulary, text: str, ids: list[int]
) -> None:
    assert published.encode(text) == ids


def test_tokens_of_a_published_model_are_those_written_down_step_by_step(published: Vocabulary) -> None:
    metadata = read_metadata(default_model.path())
    texts = tricky_texts()
    assert len(texts) >= 200
    words = [word for text in texts for word in smollm_words(text)]
    plain = byte_level_ids(words, metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.merges"])
    assert [number for text in texts for number in published.encode(text, control=False)] == plain
    assert all(published.decode(published.encode(text, control=False)) == text for text in texts)
