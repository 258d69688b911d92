"""Say several words in one step: guess what comes next by what was said before, and have the model check the guess.

$ python examples/speculative_decoding.py smollm2.gguf

A step that reads one word takes nearly as long as one that reads a few, since the weights are read once for all. So
what followed the last two words where they stood before is read with them: the model says of each word what follows it.
The guess is right as far as that is what was guessed; `rewind` forgets the rest. The answer is the same to the word.
"""

import sys
import time
from typing import Any

import numpy as np

import sdk
from sdk.chat.metadata import read_metadata
from sdk.chat.template import ChatTemplate, Message
from sdk.chat.vocabulary import Vocabulary

QUESTION = "Write a poem about the sea, four lines long."
GUESSED_TOKENS, CHUNK_TOKENS, ANSWER_TOKENS = 4, 32, 96
KNOWN_TOKENS = 2
"""Words that have to have stood together before."""


def guess(text: list[int]) -> list[int]:
    """What followed the newest words where they stood last, in a circle if that is short; else nothing."""
    newest = text[-KNOWN_TOKENS:]
    for end in range(len(text) - 1, KNOWN_TOKENS - 1, -1):
        if text[end - KNOWN_TOKENS : end] == newest:
            return (text[end:] * GUESSED_TOKENS)[:GUESSED_TOKENS]
    return []


def read(model: Any, state: Any, tokens: list[int]) -> list[int]:
    """Have tokens read; what the model says follows each."""
    out = model({"input_ids": np.array([tokens])}, state=state)
    best: list[int] = out["logits"][0].argmax(axis=-1).tolist()
    return best


def word_by_word(model: Any, prompt: list[int]) -> list[int]:
    with model.state() as state:
        said = read(model, state, prompt)[-1:]
        while len(said) < ANSWER_TOKENS:
            said += read(model, state, said[-1:])
    return said


def with_guesses(model: Any, prompt: list[int]) -> tuple[list[int], list[int]]:
    """The same, and how many guessed words were right in each step."""
    right_guesses = []
    with model.state() as state:
        said = read(model, state, prompt)[-1:]
        while len(said) < ANSWER_TOKENS:
            guessed = guess(prompt + said)[: ANSWER_TOKENS - len(said) - 1]
            follows = read(model, state, [said[-1], *guessed])
            right = 0
            while right < len(guessed) and guessed[right] == follows[right]:
                right += 1
            state.rewind(state.length - (len(guessed) - right))
            said += follows[: right + 1]
            right_guesses.append(right)
    return said, right_guesses


def main(path: str) -> None:
    metadata = read_metadata(path)
    words = Vocabulary(metadata)
    prompt = words.encode(ChatTemplate(metadata, words).render([Message("user", QUESTION)]))
    shapes = {"input_ids": [(1, CHUNK_TOKENS), (1, 1 + GUESSED_TOKENS), (1, 1)]}
    with sdk.Device("emulator") as dev:
        model = dev.load(sdk.read_gguf(path, logits="all"), shapes=shapes, state_memory="64MiB")
        began = time.perf_counter()
        plain = word_by_word(model, prompt)
        between = time.perf_counter()
        said, right = with_guesses(model, prompt)
        ended = time.perf_counter()
    assert said == plain
    print(words.decode(said))
    print(f"guesses that were right, step by step: {' '.join(map(str, right))}")
    print(
        f"{len(said)} words: {between - began:.1f} s in {len(said)} steps, {ended - between:.1f} s in {len(right) + 1}"
    )


if __name__ == "__main__":
    main(sys.argv[1])
