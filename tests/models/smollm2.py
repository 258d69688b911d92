"""SmolLM2-135M-Instruct, the model that `npuctl chat` talks to: questions, and what onnxruntime answers to them.

Its greedy answers are recorded, since it takes minutes for them: `python -m tests.models.smollm2` writes
tests/data/smollm2_greedy.json, with onnxruntime's version and the sum of the model's file in it.
"""

from __future__ import annotations

import functools
import hashlib
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray

import sdk
from sdk.chat import default_model
from sdk.chat.metadata import read_metadata
from sdk.chat.template import ChatTemplate, Message
from sdk.chat.vocabulary import Vocabulary
from tests.support.paths import ROOT

RECORDED = ROOT / "tests" / "data" / "smollm2_greedy.json"
ANSWER_TOKENS = 64
STEPS_WITH_LOGITS = (0, 31, 63)
EVERY = 768
"""Logits of such a step are recorded of every so many words."""
QUESTIONS = (
    "What is the capital of France?",
    "Name three colours of the rainbow.",
    "Why is the sky blue?",
    "Write a poem about the sea, four lines long.",
    "How many legs does a spider have?",
    "Translate 'good morning' into Spanish.",
    "Explain photosynthesis to a child.",
    "What is 12 times 12?",
    "Who wrote Romeo and Juliet?",
    "Give me a recipe for pancakes, with the amounts of all that goes into them and how long they take.",
    "What is a prime number?",
    "Tell me a story about a dragon who was afraid of fire.",
    "Write a Python function that reverses a string.",
    "What are the planets of the solar system, in order from the sun?",
    "Describe a rainy day in London in two sentences.",
    "How do I boil an egg?",
    "What does HTTP stand for?",
    "List the days of the week backwards.",
    (
        "Is it better to read books or to watch films? Say why in a few words, and name one book that you would give to"
        " a friend who has never read any."
    ),
    "Hi!",
)


class Answer(NamedTuple):
    """A question's greedy answer."""

    prompt: list[int]
    tokens: list[int]
    margins: list[float]
    """At each step, how far the best word is before the second, in parts of the largest |logit|."""
    largest: list[float]
    """|logit| of each step."""
    rows: dict[int, list[float]]
    """Of every so many words, by step."""


def missing() -> str | None:
    """What to do where the model's file is not there; None where it is."""
    return default_model.missing()


@functools.cache
def model(logits: str = "last") -> onnx.ModelProto:
    """The graph of the file."""
    return sdk.read_gguf(default_model.path(), logits=logits)


@functools.cache
def vocabulary() -> Vocabulary:
    """Its words."""
    return Vocabulary(read_metadata(default_model.path()))


def prompt(question: str) -> list[int]:
    """The tokens of a question as the model was taught to read it."""
    template = ChatTemplate(read_metadata(default_model.path()), vocabulary())
    return vocabulary().encode(template.render([Message("user", question)]))


def file_sum() -> str:
    """SHA-256 of the model's file."""
    return hashlib.sha256(default_model.path().read_bytes()).hexdigest()


def margin(row: NDArray[np.float32]) -> float:
    """How far the best word is before the second, in parts of the largest |logit|."""
    second, best = np.partition(row, -2)[-2:]
    return float((best - second) / np.abs(row).max())


def recorded() -> tuple[str, list[Answer]]:
    """The sum of the file whose model answered, and its answers."""
    told = json.loads(RECORDED.read_text("utf-8"))
    answers = [
        Answer(**{**answer, "rows": {int(step): row for step, row in answer["rows"].items()}})
        for answer in told["answers"]
    ]
    return told["file_sha256"], answers


# --- recording: never in a process that has to do with a device -------------------------------------------------------


class _Decoder:
    """onnxruntime with one sequence, whose caches take turns as input and output."""

    def __init__(self, path: str) -> None:
        import onnxruntime

        self.runtime = onnxruntime
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self._shapes = {entry.name: entry.shape for entry in self._session.get_inputs()}
        self._pasts = [name for name in self._shapes if name.startswith("past")]

    def answer(self, prompt: list[int]) -> Answer:
        """Tokens one by one, always the best."""
        held, spare = (self._caches(len(prompt) + ANSWER_TOKENS) for _ in range(2))
        answer = Answer(prompt, [], [], [], {})
        ids, length = prompt, 0
        for step in range(ANSWER_TOKENS):
            row = self._step(ids, length, held, spare)
            held, spare, length = spare, held, length + len(ids)
            ids = [int(row.argmax())]
            answer.tokens.extend(ids)
            answer.margins.append(_short(margin(row)))
            answer.largest.append(_short(np.abs(row).max()))
            if step in STEPS_WITH_LOGITS:
                answer.rows[step] = [_short(value) for value in row[::EVERY]]
        return answer

    def _caches(self, tokens: int) -> dict[str, Any]:
        return {
            name: self.runtime.OrtValue.ortvalue_from_numpy(np.zeros((1, shape[1], tokens, shape[3]), np.float32))
            for name, shape in self._shapes.items()
            if name in self._pasts
        }

    def _step(self, ids: Sequence[int], length: int, held: dict[str, Any], spare: dict[str, Any]) -> Any:
        binding = self._session.io_binding()
        for name, numbers in (
            ("input_ids", [ids]),
            ("write_indices", [length]),
            ("nonpad_kv_seqlen", [length + len(ids)]),
            ("token_counts", [len(ids)]),
        ):
            binding.bind_cpu_input(name, np.array(numbers, np.int64))
        for name in self._pasts:
            binding.bind_ortvalue_input(name, held[name])
            binding.bind_ortvalue_output(name.replace("past_key_values", "present"), spare[name])
        binding.bind_output("logits")
        self._session.run_with_iobinding(binding)
        return binding.get_outputs()[-1].numpy()[0]


def _short(value: Any) -> float:
    """As many digits as a float32 has."""
    return float(f"{float(value):.7g}")


def record() -> None:
    """Have onnxruntime answer all questions, and write that down."""
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "model.onnx")
        onnx.save(model(), path)
        decoder = _Decoder(path)
        answers = []
        for question in QUESTIONS:
            answers.append(decoder.answer(prompt(question))._asdict())
            print(f"{question} {vocabulary().decode(answers[-1]['tokens'])!r}", file=sys.stderr)
    told = {
        "about": "Greedy answers of SmolLM2-135M-Instruct's graph, as sdk.read_gguf makes it: python -m"
        " tests.models.smollm2",
        "onnxruntime": decoder.runtime.__version__,
        "file_sha256": file_sum(),
    }
    lines = '"answers": [\n' + ",\n".join(map(json.dumps, answers))
    RECORDED.write_text(f"{json.dumps(told)[:-1]},\n{lines}]}}\n", "utf-8")


if __name__ == "__main__":
    record()
