"""States of models: runs append to them in device memory, all or nothing, and go on from any of them."""

from __future__ import annotations

import asyncio
import gc
import os
import pickle
import signal
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

import sdk
from sdk.model.model import Model
from sdk.state.state import State
from tests.support.children import children_that_run
from tests.support.decoders import (
    Concatenating,
    CountingPlaces,
    Decoder,
    Owning,
    Scattering,
    Size,
    SlidingGrouping,
    whole,
)
from tests.support.models import model as model_of
from tests.support.models import node
from tests.support.rigs import in_process_rig, process_rig

SIZE = Size(context=256)
BLOCK = 16
TOKEN_BYTES = 2 * 2 * SIZE.layers * SIZE.key_heads * SIZE.size * 2
"""Keys and values of float32, of all layers."""
BLOCK_BYTES = BLOCK * TOKEN_BYTES
NO_WORD = 1 << 20
"""Outside of the vocabulary, so that Gather fails."""


def words(count: int, seed: int = 1) -> list[int]:
    return [int(word) for word in np.random.default_rng(seed).integers(0, SIZE.words, count)]


def ids(*rows: list[int]) -> dict[str, NDArray[np.int64]]:
    return {"input_ids": np.array(rows, np.int64)}


@pytest.fixture(scope="module")
def decoder() -> onnx.ModelProto:
    return Scattering(SIZE).model()


@pytest.fixture(scope="module")
def device() -> Iterator[sdk.Device]:
    with process_rig() as rig, rig.device() as device:
        yield device


@pytest.fixture
def loaded(device: sdk.Device, decoder: onnx.ModelProto) -> Iterator[Model]:
    """With room for 16 blocks."""
    lm = device.load(decoder, shapes={"input_ids": [(1, 8), (1, 1), (3, 1)]}, state_memory=16 * BLOCK_BYTES)
    yield lm
    lm.close()


def expect(decoder: onnx.ModelProto, text: list[int], found: NDArray[Any], start: int) -> None:
    """`found` are the logits of the tokens from `start` on."""
    expected = whole(decoder, text)[start : start + len(found)]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def fed(lm: Model, text: list[int], **options: Any) -> State:
    """A state that holds a text."""
    state = lm.state(**options)
    lm(ids(text), state=state)
    return state


# --- what runs give ---------------------------------------------------------------------------------------------------


def test_a_text_in_chunks_and_then_word_by_word_is_what_it_is_at_once(loaded: Model, decoder: onnx.ModelProto) -> None:
    text = words(25)
    state = loaded.state()
    out = loaded(ids(text[:21]), state=state)
    assert out["logits"].shape == (1, 21, SIZE.words)
    expect(decoder, text, out["logits"][0], 0)
    for at in range(21, 25):
        expect(decoder, text, loaded(ids([text[at]]), state=state)["logits"][0], at)
    assert state.length == 25


def test_a_state_tells_what_its_chunks_were_filled_up_with(loaded: Model) -> None:
    state = fed(loaded, words(21))
    assert state.masked_tokens == 3
    loaded(ids([1]), state=state)
    assert state.masked_tokens == 0


@pytest.mark.parametrize("form", [Concatenating, CountingPlaces, Owning, SlidingGrouping])
def test_other_forms_in_which_models_keep_states_give_the_same_as_without(
    device: sdk.Device, form: type[Decoder]
) -> None:
    model, text = form(SIZE).model(), words(11)
    lm = device.load(model, shapes={"input_ids": [(1, 8), (1, 1)]}, state_memory=16 * BLOCK_BYTES)
    state = lm.state()
    expect(model, text, lm(ids(text[:9]), state=state)["logits"][0], 0)
    for at in (9, 10):
        expect(model, text, lm(ids([text[at]]), state=state)["logits"][0], at)
    lm.close()


def test_a_context_is_filled_to_its_end_by_a_shape_that_is_wider_than_what_is_left(
    loaded: Model, decoder: onnx.ModelProto
) -> None:
    text = words(SIZE.context)
    state = fed(loaded, text[:-3], max_tokens=SIZE.context)
    expect(decoder, text, loaded(ids(text[-3:]), state=state)["logits"][0], SIZE.context - 3)


def test_a_model_whose_tables_end_before_its_memory_does_is_refused_with_what_to_say(device: sdk.Device) -> None:
    model = CountingPlaces(SIZE).model()
    with pytest.raises(sdk.UnsupportedModel, match=r"compiled for a context of 512 tokens.*as context_length"):
        device.load(model, shapes={"input_ids": [(1, 1)]}, state_memory=32 * BLOCK_BYTES)
    onnx.helper.set_model_props(model, {"context_length": str(SIZE.context)})
    lm = device.load(model, shapes={"input_ids": [(1, 1)]}, state_memory=32 * BLOCK_BYTES)
    assert lm.state().max_tokens == SIZE.context
    lm.close()


def test_the_report_says_what_each_state_is_and_how_it_was_found(loaded: Model) -> None:
    lines = [entry for entry in loaded.report if entry.op == "state"]
    assert len(lines) == 2 * SIZE.layers
    assert lines[0].node == "past_key_values.0.key -> present.0.key"
    assert lines[0].reason == "append, found by name, 64 bytes a token"


def test_rows_of_one_step_give_what_each_gives_alone(loaded: Model, decoder: onnx.ModelProto) -> None:
    texts = [words(count, seed) for seed, count in ((1, 20), (2, 3), (3, 33))]
    states = [fed(loaded, text[:-1]) for text in texts]
    out = loaded(ids(*[[text[-1]] for text in texts]), states=states)
    for row, text in enumerate(texts):
        expect(decoder, text, out["logits"][row], len(text) - 1)
    assert [state.length for state in states] == [20, 3, 33]


def test_a_rewound_state_goes_on_as_if_nothing_had_followed(loaded: Model, decoder: onnx.ModelProto) -> None:
    text, other = words(30), words(12, 9)
    state = fed(loaded, text)
    state.rewind(18)
    assert state.length == 18
    joined = text[:18] + other
    expect(decoder, joined, loaded(ids(other), state=state)["logits"][0], 18)


@pytest.mark.parametrize("length", [1, 15, 16, 17, 31, 32, 33])
def test_forks_share_what_there_is_and_go_on_apart(loaded: Model, decoder: onnx.ModelProto, length: int) -> None:
    text = words(length)
    first = fed(loaded, text)
    free = loaded.state_memory_free_bytes
    second = first.fork()
    assert loaded.state_memory_free_bytes == free
    tails = words(3, 5), words(3, 6)
    for state, tail in zip((first, second), tails, strict=True):
        expect(decoder, text + tail, loaded(ids(tail), state=state)["logits"][0], length)
    more = words(2, 7)
    expect(decoder, text + tails[0] + more, loaded(ids(more), state=first)["logits"][0], length + 3)


def test_a_saved_state_is_restored_in_another_model_of_the_same_network(
    device: sdk.Device, loaded: Model, decoder: onnx.ModelProto
) -> None:
    text, tail = words(37), words(4, 3)
    saved = fed(loaded, text).save()
    other = device.load(decoder, state_memory=8 * BLOCK_BYTES)
    state = other.state(restore=saved)
    assert state.length == 37
    expect(decoder, text + tail, other(ids(tail), state=state)["logits"][0], 37)
    assert state.fork().save()[: len(saved)] != saved
    other.close()


def test_a_program_of_more_rows_runs_fewer_where_idle_rows_are_allowed(
    device: sdk.Device, decoder: onnx.ModelProto
) -> None:
    lm = device.load(decoder, shapes={"input_ids": [(4, 1)]}, state_memory=16 * BLOCK_BYTES, idle_rows=True)
    texts = [words(1, 1), words(1, 2)]
    states = [lm.state() for _ in texts]
    out = lm(ids(*texts), states=states)
    assert out["logits"].shape == (2, 1, SIZE.words)
    for row, text in enumerate(texts):
        expect(decoder, text, out["logits"][row], 0)
    lm.close()


def test_tasks_of_a_loop_go_on_each_with_a_state_of_its_own(loaded: Model, decoder: onnx.ModelProto) -> None:
    async def talk(text: list[int]) -> list[NDArray[Any]]:
        with loaded.state() as state:
            return [(await loaded.run_async(ids([word]), state=state))["logits"][0, 0] for word in text]

    async def all_of_them() -> list[list[NDArray[Any]]]:
        return await asyncio.gather(*(talk(text) for text in texts))

    texts = [words(6, seed) for seed in range(6)]
    for text, logits in zip(texts, asyncio.run(all_of_them()), strict=True):
        expect(decoder, text, np.array(logits), 0)
    assert loaded.state_memory_free_bytes == 16 * BLOCK_BYTES


# --- what is known beforehand -----------------------------------------------------------------------------------------


def test_the_plan_tells_what_states_take_and_how_many_tokens_fit(device: sdk.Device, decoder: onnx.ModelProto) -> None:
    free = device._function.free_bytes
    lm = device.load(decoder, shapes={"input_ids": [(1, 1)]}, state_memory=16 * BLOCK_BYTES)
    assert lm.plan is not None
    assert lm.plan.state_capacity_tokens == 16 * BLOCK
    assert lm.plan.states_bytes == 16 * BLOCK_BYTES + 4 * 16 * 16
    assert device._function.free_bytes == free - lm.plan.peak_bytes
    lm.close()


def test_a_step_takes_what_was_estimated_for_its_context(device: sdk.Device, decoder: onnx.ModelProto) -> None:
    lm = device.load(decoder, shapes={"input_ids": [(1, 8), (1, 1)]}, state_memory=16 * BLOCK_BYTES)
    state = fed(lm, words(40))
    event = lm.submit(ids([1]), state=state).wait()
    estimate = lm.estimate(tokens=1, context=41)
    assert estimate is not None
    assert event.start_tick is not None
    assert event.end_tick is not None
    exec_ticks = [event.end_tick - event.start_tick]
    longer = lm.estimate(tokens=1, context=200)
    assert longer is not None
    assert longer.latency_ticks > estimate.latency_ticks
    assert exec_ticks[0] >= estimate.latency_ticks  # with the copies of its operands
    with pytest.raises(ValueError, match="a context of 300 tokens; 0 to 256 are possible"):
        lm.estimate(tokens=1, context=300)
    lm.close()


# --- what does not fit ------------------------------------------------------------------------------------------------


def test_what_is_longer_than_a_state_is_refused_with_the_numbers(loaded: Model, decoder: onnx.ModelProto) -> None:
    text = words(20)
    state = fed(loaded, text, max_tokens=22)
    taken = state.memory_bytes
    with pytest.raises(sdk.StateFull, match=r"20 of 22 tokens; 3 more do not fit.*at most 2"):
        loaded(ids(words(3)), state=state)
    assert (state.length, state.memory_bytes) == (20, taken)
    expect(decoder, text + words(2), loaded(ids(words(2)), state=state)["logits"][0], 20)


def test_memory_that_runs_out_says_how_many_tokens_would_have_fitted_and_others_go_on(
    loaded: Model, decoder: onnx.ModelProto
) -> None:
    text = words(10)
    first, second, third = fed(loaded, text), fed(loaded, words(10 * BLOCK, 2)), fed(loaded, words(4 * BLOCK, 3))
    with pytest.raises(sdk.OutOfDeviceMemory, match=r"40 more tokens take 3 blocks of 16; 1 of 16 are free: 16 would"):
        loaded(ids(words(40)), state=second)
    assert (second.length, third.length) == (10 * BLOCK, 4 * BLOCK)
    expect(decoder, text + words(3), loaded(ids(words(3)), state=first)["logits"][0], 10)
    loaded(ids(words(16)), state=second)
    assert loaded.state_memory_free_bytes == 0


def test_every_run_of_many_states_is_refused_whole(loaded: Model) -> None:
    states = [fed(loaded, words(5 * BLOCK, seed)) for seed in range(3)]
    assert loaded.state_memory_free_bytes == BLOCK_BYTES
    with pytest.raises(sdk.OutOfDeviceMemory, match="1 more tokens in each of the states take 3 blocks"):
        loaded(ids([1], [2], [3]), states=states)
    assert loaded.state_memory_free_bytes == BLOCK_BYTES
    assert [state.length for state in states] == [5 * BLOCK] * 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lm, s: lm(ids([1], [2]), state=s), "1 states for 2 rows"),
        (lambda lm, s: lm(ids([1], [2], [3]), states=[s, s, lm.state()]), "one state is given for two rows"),
        (lambda lm, s: lm(ids([]), state=s), "has no tokens"),
        (lambda lm, s: lm({"input_ids": np.ones((1, 1), np.int32)}, state=s), "expected int64"),
        (lambda lm, s: lm({}, state=s), "input 'input_ids' is missing"),
        (lambda lm, s: lm(ids([1]), states=[]), "a state for each row"),
        (lambda lm, s: lm(ids([1]), states=[s, 3]), "a state for each row"),
        (lambda lm, s: lm(ids([1]), state=None), r"state= takes what model\.state\(\) gave, got NoneType"),
        (lambda lm, s: lm(ids([1]), state=[s]), r"state= takes what model\.state\(\) gave, got list"),
        (lambda lm, s: lm(ids([1]), states=s), "states= takes a list of .* one for each row, got State"),
        (lambda lm, s: lm(ids([1])), r"'write_indices' is missing; give state=model\.state\(\)"),
        (lambda lm, s: lm.estimate(tokens=0), "tokens=0: from 1 on"),
        (lambda lm, s: lm.estimate(rows=1.5), "rows takes a whole number, got 1.5"),
        (lambda lm, s: lm.estimate(tokens=1, context="all"), "context takes a whole number, got 'all'"),
        (lambda lm, s: lm(ids([1]), state=s, states=[s]), "not both"),
        (lambda lm, s: lm(ids([1]), state=s, out={"logits": None}), "out= does not go with states"),
        (lambda lm, s: lm(ids([1], [2]), states=[s, lm.state()]), "programs are loaded for"),
        (lambda lm, s: s.rewind(4), "it has 3 tokens|has 3 tokens"),
        (lambda lm, s: s.rewind(-1), "has 3 tokens"),
        (lambda lm, s: s.rewind(1.5), "a number of tokens"),
        (lambda lm, s: lm.state(max_tokens=0), "from 1 to 256"),
        (lambda lm, s: lm.state(max_tokens="9"), "takes a number of tokens"),
        (lambda lm, s: lm.state(restore=b"nonsense"), "not a saved state"),
        (lambda lm, s: lm.state(restore=3), "takes the bytes"),
        (lambda lm, s: lm.state(restore=s.save()[:-1]), "damaged or cut short"),
        (lambda lm, s: lm.state(max_tokens=2, restore=s.save()), "has 3 tokens; max_tokens is 2"),
        (lambda lm, s: pickle.dumps(s), "cannot be pickled"),
    ],
)
def test_a_wrong_use_is_refused_and_changes_nothing(loaded: Model, change: Any, message: str) -> None:
    state = fed(loaded, words(3))
    with pytest.raises((TypeError, ValueError), match=message):
        change(loaded, state)
    assert state.length == 3
    del state
    gc.collect()
    assert loaded.state_memory_free_bytes == 16 * BLOCK_BYTES


@pytest.mark.parametrize(
    ("keyword", "reason"),
    [
        ("tensor_parallel", "a model runs on one device"),
        ("num_beams", r"state\.fork\(\)"),
        ("fp8", "has no 8-bit floats"),
        ("evict", "never drops tokens by itself"),
        ("tokenizer", r"sdk\.chat reads"),
    ],
)
def test_what_is_not_built_is_refused_by_name_with_the_reason(
    device: sdk.Device, decoder: onnx.ModelProto, keyword: str, reason: str
) -> None:
    unbuilt: dict[str, Any] = {keyword: 2}
    with pytest.raises(
        TypeError, match=rf"^Device\.load\(\) got an unexpected keyword argument '{keyword}': .*{reason}"
    ):
        device.load(decoder, **unbuilt)
    with pytest.raises(TypeError, match=r"^Device\.load\(\) got an unexpected keyword argument 'shape'$"):
        device.load(decoder, shape=2)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("memory", "message"),
    [
        ("much", 'use bytes above 0, or a text as "256MiB"'),
        (0, "use bytes above 0"),
        (1.5, "takes bytes"),
        (100, "block"),
    ],
)
def test_state_memory_that_cannot_be_is_refused_at_load(
    device: sdk.Device, decoder: onnx.ModelProto, memory: Any, message: str
) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        device.load(decoder, state_memory=memory)


def test_more_state_memory_than_the_device_has_is_refused_at_load(device: sdk.Device, decoder: onnx.ModelProto) -> None:
    with pytest.raises(sdk.OutOfDeviceMemory):
        device.load(decoder, state_memory="64GiB")


def test_states_for_which_no_memory_is_left_are_out_of_device_memory(
    device: sdk.Device, decoder: onnx.ModelProto
) -> None:
    lm = device.load(decoder)
    rest = device.buffer((device._function.free_bytes - BLOCK_BYTES,), "int8")
    with pytest.raises(sdk.OutOfDeviceMemory, match=f"a block of {BLOCK} tokens takes {BLOCK_BYTES} bytes"):
        lm.state()
    rest.free()
    assert lm.state().length == 0
    lm.close()


@pytest.mark.parametrize("shape", [(0, 1), (1, 0)])
def test_a_shape_without_tokens_is_refused_at_load(
    device: sdk.Device, decoder: onnx.ModelProto, shape: tuple[int, int]
) -> None:
    with pytest.raises(ValueError, match="takes a row and a token at least"):
        device.load(decoder, shapes={"input_ids": [shape]}, state_memory=BLOCK_BYTES)


def test_numbers_may_be_numpys(device: sdk.Device, decoder: onnx.ModelProto) -> None:
    shape = tuple(np.array([1, 2]))
    lm = device.load(decoder, shapes={"input_ids": [shape]}, state_memory=np.int64(2 * BLOCK_BYTES))  # type: ignore[arg-type]
    assert lm(ids([1, 2]), state=lm.state())["logits"].shape == (1, 2, SIZE.words)
    lm.close()


@pytest.mark.parametrize("name", ["state.rows", "state.tables"])
def test_a_model_with_an_input_of_the_devices_own_is_refused_by_its_name(device: sdk.Device, name: str) -> None:
    model = Scattering(SIZE).model()
    model.graph.input[0].name = name
    for each in model.graph.node:
        each.input[:] = [name if read == "input_ids" else read for read in each.input]
    with pytest.raises(sdk.UnsupportedModel, match=f"an input {name!r} of its own"):
        device.load(model, shapes={name: [(1, 1)]}, state_memory=BLOCK_BYTES)


def test_a_model_that_remembers_nothing_has_no_states(device: sdk.Device) -> None:
    net = model_of([node("Relu", ["x"], ["y"])], {"x": (np.float32, (1, 4))}, {"y": np.float32})
    plain = device.load(net)
    assert plain.states == ()
    with pytest.raises(TypeError, match="has no states"):
        plain.state()
    with pytest.raises(TypeError, match="has no states"):
        device.load(net, state_memory="1MiB")


def test_an_input_called_state_is_one_unless_a_state_is_given(device: sdk.Device) -> None:
    net = model_of([node("Relu", ["state"], ["y"])], {"state": (np.float32, (1, 4))}, {"y": np.float32})
    x = np.array([[-1, 0, 1, 2]], np.float32)
    np.testing.assert_array_equal(device.load(net)(state=x)["y"], [[0, 0, 1, 2]])


# --- what ends half way -----------------------------------------------------------------------------------------------


def test_a_run_that_fails_leaves_the_state_at_its_old_length(loaded: Model, decoder: onnx.ModelProto) -> None:
    text, tail = words(14), words(5, 4)
    state = fed(loaded, text)
    taken = loaded.state_memory_free_bytes
    with pytest.raises(sdk.CommandFailed, match="index-out-of-range"):
        loaded(ids([*words(19, 8), NO_WORD]), state=state)
    assert (state.length, state.memory_bytes) == (14, BLOCK_BYTES) or state.length == 14
    expect(decoder, text + tail, loaded(ids(tail), state=state)["logits"][0], 14)
    assert loaded.state_memory_free_bytes <= taken


def test_a_run_whose_engine_dies_leaves_the_state_at_its_old_length(decoder: onnx.ModelProto) -> None:
    with process_rig() as rig, rig.device() as device:
        assert rig.pid is not None
        lm = device.load(decoder, state_memory=16 * BLOCK_BYTES)
        text, tail = words(20), words(3, 4)
        state = fed(lm, text)
        for _ in range(3):
            event = lm.submit(ids(words(60, 5)), state=state)
            for engine in children_that_run(rig.pid, "emulator.engines.worker"):
                os.kill(engine, signal.SIGKILL)
            try:
                event.wait()
                state.rewind(20)
            except sdk.CommandFailed as error:
                assert error.code == "engine-lost"
            assert state.length == 20
        expect(decoder, text + tail, lm(ids(tail), state=state)["logits"][0], 20)


def test_a_state_that_a_run_works_on_is_nobody_elses(loaded: Model) -> None:
    state = fed(loaded, words(3))
    event = loaded.submit(ids(words(200, 5)), state=state)
    held: list[Callable[[], object]] = [
        state.free,
        state.fork,
        state.save,
        lambda: state.rewind(0),
        lambda: loaded(ids([1]), state=state),
    ]
    if not event.done():
        for each in held:
            with pytest.raises(sdk.BufferInUse):
                each()
            if event.done():
                break
    event.wait()
    assert state.length == 203


@pytest.mark.parametrize("how", ["reset", "model closed", "freed", "left"])
def test_states_end_with_what_they_are_of(decoder: onnx.ModelProto, how: str) -> None:
    with in_process_rig() as rig, rig.device() as device:
        lm = device.load(decoder, state_memory=16 * BLOCK_BYTES)
        state = fed(lm, words(3))
        other = fed(lm, words(3))
        if how == "reset":
            device.reset()
        elif how == "model closed":
            lm.close()
        elif how == "freed":
            state.free()
            state.free()
        else:
            with state:
                pass
        assert state.closed
        for use in (lambda: state.length, lambda: state.fork(), lambda: lm(ids([1]), state=state)):
            with pytest.raises(sdk.Closed):
                use()
        assert other.closed == (how in ("reset", "model closed"))
        assert "closed" in repr(state)


def test_states_that_are_let_go_give_their_memory_back(loaded: Model) -> None:
    states = [fed(loaded, words(20, seed)) for seed in range(4)]
    states += [state.fork() for state in states]
    assert loaded.state_memory_free_bytes == 8 * BLOCK_BYTES
    event = loaded.submit(ids(words(30)), state=states[0])
    del states
    gc.collect()
    event.wait()
    assert loaded.state_memory_free_bytes == 16 * BLOCK_BYTES


def test_a_closed_model_gives_back_what_its_states_had_whoever_still_refers_to_them(
    device: sdk.Device, decoder: onnx.ModelProto
) -> None:
    gc.collect()
    free = device._function.free_bytes
    lm = device.load(decoder, shapes={"input_ids": [(1, 8)]}, state_memory="64MiB")
    state = fed(lm, words(8))
    lm.close()
    gc.collect()
    assert state.closed
    assert device._function.free_bytes == free


def test_memory_is_erased_before_another_state_has_it(device: sdk.Device, loaded: Model) -> None:
    secret = fed(loaded, words(16 * BLOCK))
    secret.free()
    fed(loaded, words(1))
    memory = loaded._stateful.states.memory  # type: ignore[attr-defined]
    (cache,) = memory.caches
    host = device.host_buffer(cache.buffer.shape, cache.buffer.dtype)
    with device.queue() as queue:
        queue.copy(host, cache.buffer).wait()
    (block,) = np.flatnonzero(memory._blocks._holders)
    taken = host.array.reshape(cache.planes, 16, BLOCK, -1)[:, block]
    assert taken[:, 0].any()
    assert not taken[:, 1:].any()
