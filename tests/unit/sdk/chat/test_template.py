"""Chat templates: what they write, what they may not do, and what is said of bad ones."""

from __future__ import annotations

import datetime
from functools import cache

import pytest

from driver_shim.errors import UnsupportedModel
from sdk.chat.template import ChatTemplate, Message, TemplateError
from sdk.chat.vocabulary import Vocabulary
from tests.support.needs import module_of_extra
from tests.support.small_chat import byte_level_metadata

module_of_extra("jinja2", "chat")
module_of_extra("tokenizers", "chat")

ASKED = [Message("user", "Hi")]


@cache
def vocabulary() -> Vocabulary:
    return Vocabulary(byte_level_metadata())


def template(source: str) -> ChatTemplate:
    return ChatTemplate({}, vocabulary(), source)


def test_messages_are_written_as_the_files_template_says() -> None:
    chat = ChatTemplate(byte_level_metadata(), vocabulary())
    said = [Message("system", "Be brief."), Message("user", "Hi"), Message("assistant", "Hello"), Message("user", "<&")]
    assert chat.render(said).split("<|im_end|>\n") == [
        "<|im_start|>system\nBe brief.",
        "<|im_start|>user\nHi",
        "<|im_start|>assistant\nHello",
        "<|im_start|>user\n<&",
        "<|im_start|>assistant\n",
    ]
    assert not chat.render(said, answer=False).endswith("assistant\n")


def test_a_template_of_ones_own_comes_before_the_files() -> None:
    assert ChatTemplate(byte_level_metadata(), vocabulary(), "{{ messages[0].content }}!").render(ASKED) == "Hi!"


def test_a_file_without_a_template_is_refused_with_advice() -> None:
    metadata = byte_level_metadata()
    del metadata["tokenizer.chat_template"]
    with pytest.raises(UnsupportedModel, match=r"tokenizer\.chat_template.*--template FILE"):
        ChatTemplate(metadata, vocabulary())


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ bos_token }}{{ eos_token }}", "<|im_start|><|im_end|>"),
        ("{% for m in messages %}\n{{ m.role }}\n{% endfor %}\n", "user\n"),
        ("{% for m in [1, 2, 3] %}{% if m == 2 %}{% break %}{% endif %}{{ m }}{% endfor %}", "1"),
        ("{{ {'a': 'é<'} | tojson }}", '{"a": "é<"}'),
        ("{{ messages[0]['content'].strip().upper() }}", "HI"),
        ("{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}", "1"),
        ("{{ tools is defined and tools }}", "False"),
    ],
)
def test_what_templates_of_published_models_use_is_there(source: str, text: str) -> None:
    assert template(source).render(ASKED) == text


def test_a_template_may_ask_for_the_date() -> None:
    assert template("{{ strftime_now('%Y') }}").render(ASKED) == str(datetime.datetime.now().astimezone().year)


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update({'content': 'x'}) }}",
        "{{ cycler.__init__.__globals__ }}",
        "{% for i in range(1000000000) %}{% endfor %}",
        "{% include '/etc/passwd' %}",
    ],
)
def test_a_template_reaches_nothing_that_it_was_not_given(source: str) -> None:
    with pytest.raises(TemplateError):
        template(source).render(ASKED)


@pytest.mark.parametrize("source", ["{{ raise_exception('no system messages') }}", "{{ 1 / 0 }}", "{{ messages + 1 }}"])
def test_messages_that_a_template_does_not_take_are_refused(source: str) -> None:
    with pytest.raises(TemplateError, match="does not take these messages"):
        template(source).render(ASKED)


def test_a_template_that_cannot_be_read_is_refused() -> None:
    with pytest.raises(TemplateError, match="cannot be read"):
        template("{% for %}")
