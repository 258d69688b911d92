"""A file made ready to talk to: what is refused before its net is read, and how much context there is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pytest_mock import MockerFixture

import sdk
from driver_shim.errors import UnsupportedModel
from sdk.chat.chat_model import DEFAULT_CONTEXT, ChatModel, ContextTooLarge
from tests.support.needs import module_of_extra
from tests.support.small_chat import CONTEXT, byte_level_metadata, write_gguf

module_of_extra("jinja2", "chat")
module_of_extra("tokenizers", "chat")


def file(folder: Path, **changed: Any) -> Path:
    return write_gguf(folder / "small.gguf", byte_level_metadata(**changed))


def test_the_context_is_the_models_or_what_is_usual_if_that_is_less(tmp_path: Path, mocker: MockerFixture) -> None:
    mocker.patch.object(sdk, "read_gguf")
    assert ChatModel(file(tmp_path)).context == CONTEXT
    assert ChatModel(file(tmp_path), context=20).context == 20
    assert ChatModel(file(tmp_path, **{"llama.context_length": 10 * DEFAULT_CONTEXT})).context == DEFAULT_CONTEXT


def test_more_context_than_the_model_takes_is_refused_with_the_numbers(tmp_path: Path) -> None:
    with pytest.raises(ContextTooLarge, match=f"{CONTEXT + 1} .* at most {CONTEXT}"):
        ChatModel(file(tmp_path), context=CONTEXT + 1)


def test_no_more_candidates_are_asked_for_than_there_are_tokens(tmp_path: Path, mocker: MockerFixture) -> None:
    read = mocker.patch.object(sdk, "read_gguf")
    ChatModel(file(tmp_path), candidates=100_000)
    count = len(byte_level_metadata()["tokenizer.ggml.tokens"])
    assert read.call_args.kwargs == {"logits": f"top-{count}"}


@pytest.mark.parametrize("key", ["llama.context_length", "llama.block_count", "llama.attention.head_count"])
def test_a_file_that_does_not_say_what_its_state_takes_is_refused_by_name(tmp_path: Path, key: str) -> None:
    metadata = byte_level_metadata()
    del metadata[key]
    with pytest.raises(UnsupportedModel, match=key):
        ChatModel(write_gguf(tmp_path / "small.gguf", metadata))


def test_a_name_is_the_files_where_it_says_none(tmp_path: Path, mocker: MockerFixture) -> None:
    mocker.patch.object(sdk, "read_gguf")
    metadata = byte_level_metadata()
    del metadata["general.name"]
    assert ChatModel(write_gguf(tmp_path / "small.gguf", metadata)).name == "small.gguf"


@pytest.mark.parametrize(
    ("key", "value", "meant"),
    [
        ("llama.context_length", "long", "a whole number above zero"),
        ("llama.attention.head_count", 0, "a whole number above zero"),
        ("llama.attention.head_count_kv", 1.5, "a whole number above zero"),
        ("tokenizer.ggml.model", [1], "a text"),
        ("tokenizer.ggml.pre", 3, "a text"),
        ("tokenizer.chat_template", True, "a text"),
        ("tokenizer.ggml.tokens", 7, "a list of texts"),
        ("tokenizer.ggml.tokens", [1, 2], "a list of texts"),
        ("tokenizer.ggml.merges", "a b", "a list of texts"),
        ("tokenizer.ggml.token_type", 1, "a list of numbers"),
        ("tokenizer.ggml.bos_token_id", 1 << 20, "the number of one of"),
        ("tokenizer.ggml.eos_token_id", "end", "the number of one of"),
        ("tokenizer.ggml.eot_token_id", [1], "the number of one of"),
    ],
)
def test_what_a_file_says_wrongly_is_refused_by_its_key(tmp_path: Path, key: str, value: Any, meant: str) -> None:
    with pytest.raises(UnsupportedModel, match=rf"{key} is .*, must be {meant}"):
        ChatModel(file(tmp_path, **{key: value}))


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"tokenizer.ggml.token_type": [1, 1]}, "token_type says 2 of"),
        ({"tokenizer.ggml.tokens": ["a", "b"], "tokenizer.ggml.token_type": [1, 1]}, "the merge 'Ġ t' is of no tokens"),
        ({"tokenizer.ggml.merges": ["t h x"]}, "the merge 't h x' is of no tokens"),
        ({"tokenizer.ggml.tokens": []}, "has no vocabulary"),
    ],
)
def test_a_vocabulary_that_does_not_fit_together_is_refused(
    tmp_path: Path, mocker: MockerFixture, changed: dict[str, Any], reason: str
) -> None:
    mocker.patch("sdk.chat.chat_model.read_metadata", return_value=byte_level_metadata(**changed))
    with pytest.raises(UnsupportedModel, match=reason):
        ChatModel("a file")


def test_heads_that_are_said_layer_by_layer_are_taken_where_they_are_equal(
    tmp_path: Path, mocker: MockerFixture
) -> None:
    mocker.patch.object(sdk, "read_gguf")
    assert ChatModel(file(tmp_path, **{"llama.attention.head_count_kv": [2, 2]})).context == CONTEXT
