"""A small vocabulary, and a model that answers by numbers: what stands in for a language model."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sdk.log_pages import Activity
from tests.support.plain_tokenisers import spelling

BEGIN, END, STOP, USER_MARK = 0, 1, 2, 3
_NAMED = ("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<mark>")
_KINDS = (3, 3, 3, 4)
_MERGES = (
    *("Ġ t", "h e", "Ġt he", "Ġ Ġ", "ĠĠ ĠĠ", "i n", "o r", "l d", "Ġ w", "Ġw or", "Ġwor ld", "H e", "He l", "Hel l"),
    *("Hell o", "e r", "Ġ a", "n d", "Ġa nd", "Ã ©", "Ċ Ċ", "= =", "== ==", "1 2", "Ð ¸", "ð Ł", "ðŁ Ļ"),
)
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CONTEXT = 512
TICKS = 100
"""Of every run."""


def byte_level_metadata(**changed: Any) -> dict[str, Any]:
    """What a small file with a byte-level vocabulary says of itself; keys with dots for underscores change."""
    tokens = [*_NAMED, *spelling().values(), *("".join(merge.split(" ")) for merge in _MERGES)]
    return {
        "general.architecture": "llama",
        "general.name": "Small",
        "llama.context_length": CONTEXT,
        "llama.block_count": 1,
        "llama.embedding_length": 8,
        "llama.feed_forward_length": 16,
        "llama.attention.head_count": 2,
        "llama.attention.layer_norm_rms_epsilon": 2**-17,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [*_KINDS, *[1] * (len(tokens) - len(_NAMED))],
        "tokenizer.ggml.merges": list(_MERGES),
        "tokenizer.ggml.bos_token_id": BEGIN,
        "tokenizer.ggml.eos_token_id": END,
        "tokenizer.chat_template": TEMPLATE,
        **changed,
    }


def pieces_metadata() -> dict[str, Any]:
    """What a small file with a vocabulary of pieces says of itself."""
    words = ("▁", "▁the", "▁t", "he", "▁▁", "▁▁▁▁", "in", "ing", "▁wor", "ld", "▁world", "or", "▁w", "ab", "aba", "bab")
    letters = "abcdefghijklmnopqrstuvwxyzé.!"
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *words, *letters]
    kinds = [2, 3, 3, *[6] * 256, *[1] * (len(words) + len(letters))]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.scores": [0.0] * 259 + [-float(place) for place in range(len(words) + len(letters))],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }


def write_gguf(path: Path, metadata: Mapping[str, Any]) -> Path:
    """A GGUF file with these metadata and one tensor of all that its net has."""
    from gguf import GGUFWriter

    writer = GGUFWriter(path, metadata["general.architecture"])
    for name, value in metadata.items():
        if name != "general.architecture":
            _add(writer, name, value)
    writer.add_tensor("output_norm.weight", np.ones(8, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add(writer: Any, name: str, value: Any) -> None:
    kinds = {bool: "bool", int: "uint32", float: "float32", str: "string", list: "array"}
    getattr(writer, f"add_{kinds[type(value)]}")(name, value)


class StandInRun(NamedTuple):
    """A run that has ended."""

    start_tick: int
    end_tick: int
    outputs: dict[str, NDArray[Any]]

    def result(self, timeout: float | None = None) -> dict[str, NDArray[Any]]:
        return self.outputs


class StandInState:
    """As `sdk` keeps one sequence's memory."""

    masked_tokens = 0

    def __init__(self, max_tokens: int = CONTEXT) -> None:
        self.max_tokens = max_tokens
        self.tokens: list[int] = []
        self.rewinds: list[int] = []

    @property
    def length(self) -> int:
        return len(self.tokens)

    @property
    def memory_bytes(self) -> int:
        return 16 * self.length

    def rewind(self, length: int) -> None:
        assert 0 <= length <= self.length
        self.rewinds.append(length)
        del self.tokens[length:]


class StandInModel:
    """Scores that follow from all tokens of a state; or, with `answers`, the next token of the answer that is due.

    Whatever reads several tokens at once is a question.
    """

    def __init__(self, size: int, answers: Sequence[Sequence[int]] = (), best: int | None = None) -> None:
        self._size = size
        self._answers = answers
        self._best = best
        self._questions = 0
        self._at = 0
        self.reads: list[int] = []
        """Tokens of each run."""
        self.failing: Exception | None = None

    def submit(self, inputs: Mapping[str, NDArray[Any]], *, state: Any) -> StandInRun:
        tokens = inputs["input_ids"]
        assert tokens.dtype == np.int64 and tokens.shape[0] == 1
        assert state.length + tokens.shape[1] <= state.max_tokens
        if self.failing is not None:
            raise self.failing
        self.reads.append(tokens.shape[1])
        state.tokens += tokens[0].tolist()
        start = TICKS * sum(self.reads)
        return StandInRun(start, start + TICKS, self._outputs(self._scores(state.tokens, tokens.shape[1])))

    def _scores(self, tokens: list[int], read: int) -> NDArray[np.float32]:
        scores = np.random.default_rng(zlib.crc32(np.array(tokens).tobytes())).random(self._size, np.float32)
        scores[[BEGIN, END, STOP]] = -1
        if self._answers:
            self._questions, self._at = (self._questions + 1, 0) if read > 1 else (self._questions, self._at + 1)
            answer = self._answers[(self._questions - 1) % len(self._answers)]
            scores[answer[self._at] if self._at < len(answer) else END] = 9
        return scores

    def _outputs(self, scores: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        if self._best is None:
            return {"logits": scores.reshape(1, 1, -1)}
        best = np.argsort(-scores, kind="stable")[: self._best]
        return {"values": scores[best].reshape(1, 1, -1), "indices": best.astype(np.int64).reshape(1, 1, -1)}


class StandInCounters:
    """A device's counters; each look finds 1000 bytes and two commands more."""

    def __init__(self) -> None:
        self._looks = 0

    def activity(self) -> Activity:
        self._looks += 1
        fields = dict.fromkeys(Activity.__dataclass_fields__, 0)
        return Activity(**{**fields, "bytes_copied": 1000 * self._looks, "commands": 2 * self._looks})
