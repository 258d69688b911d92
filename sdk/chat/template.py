"""Messages written as the model was taught to read them: the Jinja template that its file brings."""

from __future__ import annotations

import datetime
import importlib.util
import json
from collections.abc import Sequence
from typing import Any, NamedTuple, NoReturn

from driver_shim.errors import NpuError, UnsupportedModel
from sdk.chat.metadata import Metadata
from sdk.chat.vocabulary import EXTRA, Vocabulary

KEY = "tokenizer.chat_template"


class Message(NamedTuple):
    """One turn: who speaks ("system", "user", "assistant"), and what."""

    role: str
    content: str


class TemplateError(NpuError, ValueError):
    """A template that cannot be read, or does not take these messages."""

    code = "chat-template"


class ChatTemplate:
    """The template of a model. Raises UnsupportedModel where the file brings none and no `source` is given.

    A file's template is a program of a stranger's: it runs in Jinja's sandbox, which shows it only what it is given.
    """

    def __init__(self, metadata: Metadata, vocabulary: Vocabulary, source: str | None = None) -> None:
        source = source or metadata.get(KEY)
        if not source:
            raise UnsupportedModel(
                f"the model has no chat template ({KEY}), so it was not taught to answer messages",
                subsystem="chat-template",
                remedy="give one in a Jinja file: --template FILE",
            )
        self._template = _compiled(source)
        self._names = {
            "bos_token": vocabulary.text_of(vocabulary.begin_id),
            "eos_token": vocabulary.text_of(vocabulary.end_id),
        }

    def render(self, messages: Sequence[Message], *, answer: bool = True) -> str:
        """The text of these messages; with `answer` up to where the model's next one begins. Raises TemplateError."""
        import jinja2

        try:
            text: str = self._template.render(
                messages=[message._asdict() for message in messages], add_generation_prompt=answer, **self._names
            )
        except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError, RecursionError) as error:
            raise TemplateError(f"the chat template does not take these messages: {error}") from error
        return text


def _compiled(source: str) -> Any:
    """The template, with the names that templates of published models use."""
    if importlib.util.find_spec("jinja2") is None:
        raise NpuError("jinja2 is not installed", code="missing-extra", remedy=EXTRA)
    import jinja2
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _as_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = _now
    try:
        return environment.from_string(source)
    except (jinja2.TemplateError, RecursionError) as error:
        raise TemplateError(f"the chat template cannot be read: {error}") from error


def _as_json(value: Any, indent: int | None = None) -> str:
    """As JSON for a model to read: Jinja's own escapes what HTML would misread."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _refuse(message: str) -> NoReturn:
    """What templates call for messages they do not take."""
    import jinja2

    raise jinja2.TemplateError(message)


def _now(form: str) -> str:
    return datetime.datetime.now().astimezone().strftime(form)
