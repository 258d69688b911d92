"""Decoders compiled over caches give what they give without, however their tokens are cut into steps."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest

from driver_shim.errors import UnsupportedModel
from driver_shim.protocol.program_commands import CommandKind
from driver_shim.protocol.program_parsing import parse
from sdk.compiler import compile_model
from sdk.compiler.states import StateKind, StateLayout
from tests.support.decoders import (
    Choosing,
    Circling,
    Concatenating,
    CountingPlaces,
    Decoder,
    Grouping,
    Narrowing,
    Owning,
    Scattering,
    Sequences,
    Size,
    SlidingGrouping,
    Splitting,
    SummingPlaces,
    TokensFirst,
    Tracing,
    whole,
)
from tests.support.programs import run

LAYOUT = StateLayout(blocks=32, slots=4, entries=8, block_tokens=4)
FORMS: dict[str, type[Decoder]] = {
    "TensorScatter": Scattering,
    "GroupQueryAttention": Grouping,
    "GroupQueryAttention, sliding": SlidingGrouping,
    "Attention with a past": Owning,
    "Concat": Concatenating,
    "Concat, places counted": CountingPlaces,
    "Concat, scores chosen": Choosing,
    "Concat, mask traced": Tracing,
    "MultiHeadAttention": Splitting,
    "TensorScatter, tokens first": TokensFirst,
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


def test_a_context_is_filled_to_its_end_by_chunks_that_are_wider_than_what_is_left(form: type[Decoder]) -> None:
    decoder, text = form(), words(30, 1)
    decoder.size = decoder.size._replace(context=30)
    model = decoder.model()
    onnx.helper.set_model_props(model, {"context_length": "30"})
    sequences = Sequences(model, LAYOUT)
    sequences.step({2: text[:20]}, 20)
    found = [sequences.step({2: text[at : at + count]}, 8)[2] for at, count in ((20, 8), (28, 2))]
    np.testing.assert_allclose(np.concatenate(found), whole(model, text)[20:], rtol=1e-4, atol=1e-5)


def test_kernels_that_are_fast_give_the_same(form: type[Decoder]) -> None:
    model, texts = form().model(), (words(9, 1), words(7, 2))
    found = []
    for kernels in ("golden", "numpy"):
        sequences = Sequences(model, LAYOUT)
        sequences.kernels = kernels
        sequences.step({0: texts[0][:6], 1: texts[1][:4]}, 6)
        found.append(sequences.step({0: texts[0][6:], 1: texts[1][4:5]}, 3))
    for slot in (0, 1):
        np.testing.assert_allclose(found[1][slot], found[0][slot], rtol=1e-4, atol=1e-5)


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
    heads = form().size.key_heads
    assert [str(info) for info in program.caches] == [f"cache.0: float32[4, 32, 4, {heads}, 8]"]
    assert [(s.name, s.present, s.shape, s.dtype, str(s.kind), s.bytes_per_token) for s in program.states][:2] == [
        ("past_key_values.0.key", "present.0.key", (heads, 8), "float32", "append", 32 * heads),
        ("past_key_values.0.value", "present.0.value", (heads, 8), "float32", "append", 32 * heads),
    ]


def test_a_ring_gives_what_its_model_gives_step_by_step_while_the_oldest_tokens_give_way() -> None:
    model, text = Circling().model(), words(15, 1)
    program = compile_model(model, {entry.name: shape_of(entry) for entry in model.graph.input})
    arrays = {info.name: np.zeros(tuple(map(int, info.shape)), info.dtype) for info in program.inputs}
    sequences = Sequences(model, LAYOUT)
    for place, word in enumerate(text):
        arrays |= {"input_ids": np.array([[word]]), "position_ids": np.array([[place]])}
        arrays |= {"write_indices": np.array([place % 6]), "nonpad_kv_seqlen": np.array([min(place + 1, 6)])}
        results = run(program, arrays)
        arrays |= {name.replace("present", "past_key_values"): array for name, array in results.items()}
        found = sequences.step({0: [word]}, 1)[0]
        np.testing.assert_allclose(found, results["logits"][0], rtol=1e-4, atol=1e-5)
    assert {state.kind for state in sequences.program(1, 1).states} == {StateKind.RING}


def shape_of(entry: onnx.ValueInfoProto) -> tuple[int, ...]:
    """One row of one token."""
    return tuple(max(1, dimension.dim_value) for dimension in entry.type.tensor_type.shape.dim)


def test_a_ring_takes_one_token_a_step() -> None:
    with pytest.raises(UnsupportedModel, match="a ring takes one token a step"):
        Sequences(Circling().model(), LAYOUT).program(1, 2)


def test_a_program_is_kept_with_its_caches_and_states(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NPU_CACHE_DIR", str(tmp_path))
    model = Scattering().model().SerializeToString()
    programs = [compile_model(model, {"input_ids": (1, 1)}, states=LAYOUT) for _ in range(2)]
    assert len(list(tmp_path.rglob("*.program"))) == 1
    assert programs[0] == programs[1]
    other = dataclasses.replace(LAYOUT, slots=5)
    assert compile_model(model, {"input_ids": (1, 1)}, states=other).image != programs[0].image


def test_layers_share_what_follows_from_the_lengths() -> None:
    programs = [Sequences(SlidingGrouping(Size(layers=layers)).model(), LAYOUT).program(2, 3) for layers in (1, 3)]
    derived = [
        sum(command.kind in (CommandKind.SLICE, CommandKind.CAST) for command in parse(program.image).commands)
        for program in programs
    ]
    assert derived[0] == derived[1]


def test_keys_and_values_of_different_sizes_are_in_caches_of_their_own() -> None:
    model, text = Narrowing().model(), words(9, 1)
    sequences = Sequences(model, LAYOUT)
    found = [sequences.step({1: text[:7]}, 7)[1], *(sequences.step({1: [word]}, 1)[1] for word in text[7:])]
    np.testing.assert_allclose(np.concatenate(found), whole(model, text), rtol=1e-4, atol=1e-5)
    assert [str(info) for info in sequences.program(1, 1).caches] == [
        "cache.0: float32[2, 32, 4, 2, 8]",
        "cache.1: float32[2, 32, 4, 2, 4]",
    ]
