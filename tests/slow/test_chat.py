"""`npuctl chat` with a published model: what it answers, what it costs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from sdk.chat import default_model
from tests.support.needs import module_of_extra, require_all_there
from tests.support.npuctl import PATIENCE_S, Npuctl, environment
from tests.support.pipes import read_line

pytestmark = pytest.mark.slow

module_of_extra("jinja2", "chat")
module_of_extra("tokenizers", "chat")

QUESTION = "What is the capital of France?"
ANSWER = "The capital of France is Paris."
LOGITS_BYTES = 64 * (4 + 8)
"""Of a step: the scores of the best tokens, and their numbers."""
MOST_BYTES = 512
"""That cross the bus with every token, beside the scores."""


@pytest.fixture
def npuctl(tmp_path: Path) -> Npuctl:
    require_all_there(default_model.missing())
    return Npuctl(tmp_path)


def test_a_question_is_answered_and_of_the_next_only_what_is_new_is_read(npuctl: Npuctl) -> None:
    first, second = npuctl.lines("chat", typed=f"{QUESTION}\nAnd of Italy?\n")
    answer, following = first["answer"], second["answer"]
    assert (answer["text"], answer["finish"]) == (ANSWER, "end")
    assert following["reused_tokens"] == answer["state_tokens"] == answer["prompt_tokens"] + answer["tokens"]
    assert "Italy" in following["text"] or "Rome" in following["text"]
    for phase in (answer["decode"], following["decode"]):
        assert phase["bus_bytes"] <= phase["tokens"] * (LOGITS_BYTES + MOST_BYTES)


def test_a_conversation_goes_on_as_one_that_is_read_from_the_start(npuctl: Npuctl, tmp_path: Path) -> None:
    kept = npuctl.lines("chat", "--max-tokens", "24", typed=f"{QUESTION}\nWhat is it known for?\n")[1]["answer"]
    whole = tmp_path / "whole.jinja"
    turn = "<|im_start|>{}\n{}<|im_end|>\n"
    system = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
    said = turn.format("system", system) + turn.format("user", QUESTION) + turn.format("assistant", ANSWER)
    whole.write_text(
        f"{said}<|im_start|>user\n{{{{ messages[-1].content }}}}<|im_end|>\n<|im_start|>assistant\n{{{{ '' }}}}",
        "utf-8",
    )
    options = ("--max-tokens", "24", "--template", str(whole), "--prompt", "What is it known for?")
    fresh = npuctl.document("chat", *options)["answer"]
    assert (fresh["reused_tokens"], kept["reused_tokens"] > 40) == (0, True)
    assert fresh["prompt_tokens"] == kept["prompt_tokens"]
    assert fresh["text"] == kept["text"]


def test_a_seed_gives_the_same_answer_again(npuctl: Npuctl) -> None:
    drawn = ("chat", "--prompt", "Tell me a story.", "--temperature", "0.8", "--top-p", "0.9", "--seed", "7")
    first, again = (npuctl.document(*drawn, "--max-tokens", "24")["answer"] for _ in range(2))
    assert first["text"] == again["text"]
    assert first["sampling"]["seed"] == 7


def test_a_long_prompt_is_read_in_pieces(npuctl: Npuctl) -> None:
    prompt = f"{'The sky is blue today. ' * 60}{QUESTION}"
    answer = npuctl.document("chat", "--prompt", prompt, "--max-tokens", "16")["answer"]
    assert answer["prompt_tokens"] > 300
    assert answer["prefill"]["tokens"] == answer["prompt_tokens"]
    assert "Paris" in answer["text"]


def test_a_chat_that_is_killed_leaves_no_emulator(npuctl: Npuctl) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", npuctl.module, "chat"],
        env=environment(npuctl.runtime_folder),
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        assert "using" in read_line(process.stderr)
    finally:
        process.kill()
        _, errors = process.communicate(timeout=PATIENCE_S)  # ends when nobody has its stderr any more
    assert b"Traceback" not in errors
