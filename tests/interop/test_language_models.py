"""Greedy decoding on a device says, word by word, what onnxruntime says of the same graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

import sdk
from tests.models import smollm2
from tests.support.gguf_files import VOCABULARY, Net, write_gguf
from tests.support.gguf_steps import Conversation
from tests.support.greedy_client import Decoded, decode
from tests.support.needs import require_all_there
from tests.support.onnxruntime_peer import run as peer
from tests.support.onnxruntime_server import Server

Array = NDArray[Any]
TOLERANCE = 1e-4
"""Of a logit, in parts of the largest."""
NEAR_TIE = 2 * TOLERANCE
"""Two words that are this near each other may change places."""
COMPARED_WHOLE = (0, 3, 9)
"""Questions of which onnxruntime gives all logits while the test runs."""


def say_the_same(found: Sequence[int], expected: Sequence[int], margins: Sequence[float]) -> None:
    """Every word, since at no step the best two are so near each other that it were chance."""
    assert min(margins) > NEAR_TIE
    assert list(found) == list(expected)


def agree(found: Array, expected: Array, largest: float) -> None:
    assert largest > 1
    assert np.abs(found - expected).max() <= TOLERANCE * largest


# --- a small net ------------------------------------------------------------------------------------------------------

SMALL = Net(kinds=("Q4_1", "F32", "Q8_0"), tied=True, metadata={"context_length": 128}, seed=2)
"""Of this seed, because no words are so near each other that chance would choose."""
SMALL_PROMPTS = [[int(word) for word in np.random.default_rng(n).integers(0, VOCABULARY, 3 + 17 * n)] for n in (0, 2)]
SMALL_STEPS = tuple(range(64))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> onnx.ModelProto:
    path = tmp_path_factory.mktemp("small") / "net.gguf"
    write_gguf(path, SMALL)
    return sdk.read_gguf(path)


@pytest.fixture(scope="module")
def small_answers(small: onnx.ModelProto) -> list[tuple[list[int], list[Array]]]:
    """onnxruntime's words and logits, step by step."""
    answers = []
    with Server() as server:
        for prompt in SMALL_PROMPTS:
            conversation = Conversation(
                small, 1, lambda model, inputs: server.run(model.SerializeToString(), inputs), max_tokens=128
            )
            tokens, rows, ids = [], [], prompt
            for _ in SMALL_STEPS:
                rows.append(conversation.step([ids])["logits"][0])
                ids = [int(rows[-1].argmax())]
                tokens += ids
            answers.append((tokens, rows))
    return answers


@pytest.mark.parametrize("kernels", ["golden", "numpy"])
def test_a_small_net_says_what_it_says_in_onnxruntime(
    kernels: str, small: onnx.ModelProto, small_answers: list[tuple[list[int], list[Array]]]
) -> None:
    found = decode(small, SMALL_PROMPTS, tokens=len(SMALL_STEPS), steps=SMALL_STEPS, kernels=kernels)
    for tokens, rows, (expected, expected_rows) in zip(*found, small_answers, strict=True):
        say_the_same(tokens, expected, [smollm2.margin(row) for row in expected_rows])
        for row, reference in zip(rows, expected_rows, strict=True):
            agree(row, reference, float(np.abs(reference).max()))


# --- SmolLM2 ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recorded() -> list[smollm2.Answer]:
    """onnxruntime's answers to 20 questions, of the file that is there."""
    require_all_there(smollm2.missing())
    sum_of_file, answers = smollm2.recorded()
    assert smollm2.file_sum() == sum_of_file, "another file than onnxruntime's answers are of"
    return answers


@pytest.fixture(scope="module")
def answered(recorded: list[smollm2.Answer]) -> Decoded:
    """The device's answers to them."""
    prompts = [answer.prompt for answer in recorded]
    tokens, steps = smollm2.ANSWER_TOKENS, smollm2.STEPS_WITH_LOGITS
    return decode(smollm2.model(), prompts, tokens=tokens, steps=steps, kernels="numpy")


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_smollm2_answers_20_questions_as_onnxruntime_does(recorded: list[smollm2.Answer], answered: Decoded) -> None:
    assert len(recorded) == len(smollm2.QUESTIONS) == 20
    assert {answer.tokens[-1] for answer in recorded} > {recorded[0].tokens[-1]}, "answers all alike prove nothing"
    for tokens, rows, answer in zip(*answered, recorded, strict=True):
        assert len(answer.tokens) == 64
        say_the_same(tokens, answer.tokens, answer.margins)
        for row, (step, expected) in zip(rows, answer.rows.items(), strict=True):
            agree(row[:: smollm2.EVERY], np.array(expected), answer.largest[step])


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("question", COMPARED_WHOLE)
def test_all_of_smollm2s_logits_are_onnxruntimes(
    question: int, recorded: list[smollm2.Answer], answered: Decoded
) -> None:
    """onnxruntime reads the question and the device's answer at once."""
    prompt, said = recorded[question].prompt, answered.tokens[question]
    ids = [*prompt, *said[:-1].tolist()]
    model = smollm2.model("all")
    inputs = {
        "input_ids": np.array([ids]),
        "write_indices": np.zeros(1, np.int64),
        "nonpad_kv_seqlen": np.full(1, len(ids)),
        "token_counts": np.full(1, len(ids)),
        **empty_caches(model, len(ids)),
    }
    rows = peer(model.SerializeToString(), inputs)["logits"][0, len(prompt) - 1 :]
    assert len(rows) == len(said)
    say_the_same(said, rows.argmax(axis=1).tolist(), [smollm2.margin(row) for row in rows])
    for row, step in zip(answered.rows[question], smollm2.STEPS_WITH_LOGITS, strict=True):
        agree(row, rows[step], float(np.abs(rows[step]).max()))


def empty_caches(model: onnx.ModelProto, tokens: int) -> dict[str, Array]:
    return {
        info.name: np.zeros((1, heads, tokens, size), np.float32)
        for info in model.graph.input
        if info.name.startswith("past")
        for _, heads, _, size in [[each.dim_value for each in info.type.tensor_type.shape.dim]]
    }
