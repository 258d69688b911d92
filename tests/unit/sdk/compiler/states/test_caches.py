"""Decoders compiled over caches give what they give without, however their tokens are cut into steps."""

from __future__ import annotations

import numpy as np
import pytest

from sdk.compiler.states import StateLayout
from tests.support.decoders import (
    Concatenating,
    CountingPlaces,
    Decoder,
    Grouping,
    Owning,
    Scattering,
    Sequences,
    SlidingGrouping,
    SummingPlaces,
    whole,
)

LAYOUT = StateLayout(blocks=32, slots=4, entries=8, block_tokens=4)
FORMS: dict[str, type[Decoder]] = {
    "TensorScatter": Scattering,
    "GroupQueryAttention": Grouping,
    "GroupQueryAttention, sliding": SlidingGrouping,
    "Attention with a past": Owning,
    "Concat": Concatenating,
    "Concat, places counted": CountingPlaces,
    "Concat, places summed": SummingPlaces,
}


@pytest.fixture(params=FORMS, scope="module")
def form(request: pytest.FixtureRequest) -> type[Decoder]:
    """A way in which models keep states."""
    return FORMS[str(request.param)]


def words(count: int, seed: int) -> list[int]:
    return [int(word) for word in np.random.default_rng(seed).integers(0, 31, count)]


def test_chunks_and_single_tokens_give_what_the_whole_text_gives(form: type[Decoder]) -> None:
    model, text = form().model(), words(13, 1)
    expected = whole(model, text)
    sequences = Sequences(model, LAYOUT)
    found = [sequences.step({2: text[:5]}, 5)[2], sequences.step({2: text[5:8]}, 5)[2]]
    found += [sequences.step({2: [word]}, 1)[2] for word in text[8:]]
    np.testing.assert_allclose(np.concatenate(found), expected, rtol=1e-4, atol=1e-5)


def test_rows_of_different_lengths_give_what_each_gives_alone(form: type[Decoder]) -> None:
    model = form().model()
    texts = {0: words(11, 1), 3: words(7, 2), 1: words(9, 3)}
    sequences = Sequences(model, LAYOUT)
    found: dict[int, list[np.ndarray]] = {slot: [] for slot in texts}
    places = dict.fromkeys(texts, 0)
    for counts in ((4, 2, 0), (1, 4, 3), (0, 1, 4), (4, 0, 1)):
        new = {slot: texts[slot][places[slot] :][:count] for (slot, count) in zip(texts, counts, strict=True)}
        for slot, logits in sequences.step(new, 4).items():
            found[slot].append(logits)
            places[slot] += len(new[slot])
    for slot, text in texts.items():
        expected = whole(model, text[: places[slot]])
        np.testing.assert_allclose(np.concatenate(found[slot]), expected, rtol=1e-4, atol=1e-5)


def test_another_block_in_a_table_changes_the_answer(form: type[Decoder]) -> None:
    model, text = form().model(), words(6, 1)
    sequences = Sequences(model, LAYOUT)
    sequences.step({0: text[:5]}, 5)
    sequences.tables[0, 0] = sequences.tables[0, 0] ^ 1
    found = sequences.step({0: text[5:]}, 1)[0]
    assert not np.allclose(found[-1], whole(model, text)[-1], rtol=1e-3)


def test_a_program_takes_and_gives_no_states_but_names_their_caches(form: type[Decoder]) -> None:
    program = Sequences(form().model(), LAYOUT).program(2, 3)
    assert [info.name for info in program.inputs] == ["input_ids", "state.rows", "state.tables"]
    assert [info.name for info in program.outputs] == ["logits"]
    assert [str(info) for info in program.caches] == ["cache.0: float32[4, 32, 4, 2, 8]"]
    assert [(s.name, s.present, s.shape, s.dtype, str(s.kind), s.bytes_per_token) for s in program.states][:2] == [
        ("past_key_values.0.key", "present.0.key", (2, 8), "float32", "append", 64),
        ("past_key_values.0.value", "present.0.value", (2, 8), "float32", "append", 64),
    ]
