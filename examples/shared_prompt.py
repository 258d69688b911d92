"""Have the model read what all conversations begin with once; each goes on from there, and they share its memory.

$ python examples/shared_prompt.py smollm2.gguf
"""

import sys
from typing import Any

import numpy as np

import sdk
from sdk.chat.metadata import read_metadata
from sdk.chat.template import ChatTemplate, Message
from sdk.chat.vocabulary import Vocabulary

SYSTEM = (
    "You are the assistant of a small town's library. It is open from Tuesday to Saturday, ten to six. A card costs"
    " nothing; books may be kept for four weeks, films for one. Be kind, be brief, and do not invent opening hours."
)
QUESTIONS = ("When are you open?", "How long may I keep a book?", "What does a card cost?", "Do you lend films?")
ANSWER_TOKENS = 24


def answer(model: Any, state: Any, ids: list[int], ends: frozenset[int]) -> list[int]:
    """The words that follow when the model has read `ids`, always the best."""
    said: list[int] = []
    while len(said) < ANSWER_TOKENS:
        out = model({"input_ids": np.array([ids])}, state=state)
        ids = [int(out["token_ids"][0, 0])]
        if ids[0] in ends:
            break
        said += ids
    return said


def main(path: str) -> None:
    metadata = read_metadata(path)
    words = Vocabulary(metadata)
    template = ChatTemplate(metadata, words)
    system = Message("system", SYSTEM)
    prompts = [words.encode(template.render([system, Message("user", question)])) for question in QUESTIONS]
    shared = 0
    while len({prompt[shared] for prompt in prompts}) == 1:
        shared += 1
    with sdk.Device("emulator") as dev:
        graph = sdk.read_gguf(path, logits="top-1")
        model = dev.load(graph, shapes={"input_ids": [(1, 32), (1, 1)]}, state_memory="64MiB")
        whole = model.state_memory_free_bytes
        first = model.state()
        model({"input_ids": np.array([prompts[0][:shared]])}, state=first)
        states = [first.fork() for _ in prompts]
        first.free()  # they keep what they share
        answers = []
        for state, prompt in zip(states, prompts, strict=True):
            answers.append(answer(model, state, prompt[shared:], words.end_ids))
            print(f"{QUESTIONS[len(answers) - 1]} {words.decode(answers[-1])}")
        taken = whole - model.state_memory_free_bytes
        alone = sum(state.memory_bytes for state in states)
        print(f"{shared} tokens were read once, not {len(prompts)} times")
        print(f"state memory: {taken >> 10} KiB; without sharing {alone >> 10} KiB")
        with model.state() as state:
            assert answer(model, state, prompts[0], words.end_ids) == answers[0]


if __name__ == "__main__":
    main(sys.argv[1])
