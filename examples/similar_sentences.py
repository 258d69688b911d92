"""Find the sentence that means most nearly the same, with a sentence encoder such as all-MiniLM-L6-v2.

$ python examples/similar_sentences.py model.onnx tokenizer.json

Both files come with such models. The model takes `input_ids` and `attention_mask`, and gives vectors of sentences or of
their tokens, whose mean is taken then.
"""

import json
import re
import sys
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np

import sdk

SENTENCES = [
    "How do I reset my password?",
    "The train to Bern leaves at noon.",
    "A kitten is resting on a rug.",
    "Shares dropped at the start of the week.",
    "Showers are expected in the mountains.",
]
QUESTIONS = {"I cannot sign in any more.": 0, "The cat sits on the mat.": 2, "Stock markets fell on Monday.": 3}
vocabulary = json.loads(Path(sys.argv[2]).read_text("utf-8"))["model"]["vocab"]


def pieces(sentence: str) -> list[int]:
    """WordPiece: of each word the longest beginning that the vocabulary has, then the longest of what is left."""
    plain = "".join(c for c in unicodedata.normalize("NFD", sentence.lower()) if unicodedata.category(c) != "Mn")
    found = [vocabulary["[CLS]"]]
    for word in re.findall(r"\w+|[^\w\s]", plain):
        rest, mark = word, ""
        while rest:
            fits = (end for end in range(len(rest), 0, -1) if mark + rest[:end] in vocabulary)
            if (end := next(fits, None)) is None:
                found.append(vocabulary["[UNK]"])
                break
            found.append(vocabulary[mark + rest[:end]])
            rest, mark = rest[end:], "##"
    return [*found, vocabulary["[SEP]"]]


def vectors(model: Any, sentences: list[str]) -> np.ndarray:
    """One of length 1 each; all sentences go through the model at once, padded to the longest."""
    rows = [pieces(sentence) for sentence in sentences]
    ids = np.zeros((len(rows), max(map(len, rows))), np.int64)
    for padded, row in zip(ids, rows, strict=True):
        padded[: len(row)] = row
    mask = (ids != 0).astype(np.int64)
    inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    taken = [info.name for info in model.inputs]
    found = next(iter(model({name: inputs[name] for name in taken}).values()))
    if found.ndim == 3:
        found = (found * mask[:, :, None]).sum(axis=1)
    lengths = np.linalg.norm(found, axis=1, keepdims=True)
    return np.asarray(found / lengths)


with sdk.Device("emulator") as dev:
    model = dev.load(sys.argv[1])
    known, asked = vectors(model, SENTENCES), vectors(model, list(QUESTIONS))
    for question, row in zip(QUESTIONS, asked @ known.T, strict=True):
        print(f"{question}  →  {SENTENCES[row.argmax()]} ({row.max():.2f})")
        assert row.argmax() == QUESTIONS[question]
