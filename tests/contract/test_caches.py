"""Caches over the bus: what CACHE_APPEND leaves in device memory, CACHE_ATTENTION finds in a later exec.

The program is made by hand: it appends keys and values of a step, then attends them; blocks are given out of order.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from driver_shim.protocol import commands as c
from driver_shim.protocol.commands import AdminOpcode, IoOpcode, Status
from driver_shim.protocol.types import WireType
from emulator.model.profile import load_profile
from sdk.compiler.estimate import estimate
from tests.support.bus_client import BusClient, text
from tests.support.cache_programs import CacheProgram
from tests.support.caches import Tokens, attend_whole
from tests.support.rigs import process_rig

Array = NDArray[Any]
Rows = Sequence[tuple[int, int, int]]
F32 = np.float32
TABLES = [[5, 1], [0, 4], [3, 2]]
TOLERANCES = {WireType.FLOAT32: 1e-5, WireType.FLOAT16: 4e-3, WireType.BFLOAT16: 3e-2}
OLD = 9
"""What is in the output before anything runs."""


@pytest.fixture(scope="module", params=["auto", "golden"])
def client(request: pytest.FixtureRequest) -> Iterator[BusClient]:
    with process_rig(request.param) as rig:
        yield BusClient(rig.transport).enable()


@pytest.fixture
def device(client: BusClient) -> Iterator[Device]:
    opened = Device(client)
    yield opened
    opened.close()


class Device:
    """A device with a queue, whose memory is written and read through its aperture."""

    def __init__(self, client: BusClient) -> None:
        self.client = client
        self.memory = np.frombuffer(client.transport.map_region(4, 0, 1 << 20), np.uint8)
        self.queue = client.queue(1)

    def close(self) -> None:
        done = self.client.admin(c.DELETE_QUEUE, AdminOpcode.DELETE_QUEUE, queue=1)
        assert done.status == 0, text(self.client.newest_error())

    def load(self, program: CacheProgram, tables: Sequence[Sequence[int]] = TABLES) -> Loaded:
        image = program.image()
        iova, view = self.client.allocate(len(image))
        view[:] = image
        done = self.client.admin(c.LOAD_PROGRAM, AdminOpcode.LOAD_PROGRAM, source=iova, size=len(image))
        assert done.status == 0, text(self.client.newest_error())
        return Loaded(self, program, int(done.result), np.array(tables, np.int32))


class Loaded:
    """A program, and device memory for what it is bound to: a cache of zeros."""

    def __init__(self, device: Device, program: CacheProgram, handle: int, tables: Array) -> None:
        self._device = device
        self.program = program
        self._handle = handle
        self._places: dict[str, Array] = {}
        at = 0x1000
        self._table = b""
        for name in ("query", "key", "value", "tables", "rows", "y", "cache"):
            kind = program.type_of(name)
            place = device.memory[at : at + kind.size_bytes]
            self._places[name] = place.view(kind.dtype.dtype).reshape(kind.shape)
            self._table += c.BINDING.build(address=at, size=kind.size_bytes)
            at += -(-kind.size_bytes // 0x1000) * 0x1000
        self.cache, self.tables, self.y = (self._places[name] for name in ("cache", "tables", "y"))
        self.cache[...], self.tables[...], self.y[...] = 0, tables, OLD

    def step(self, query: Array, key: Array, value: Array, rows: Rows) -> Any:
        """One exec; its completion."""
        for name, array in zip(("query", "key", "value", "rows"), (query, key, value, rows), strict=True):
            self._places[name][...] = array
        iova, view = self._device.client.allocate(4096)
        view[: len(self._table)] = self._table
        count = len(self._table) // c.BINDING.size
        fields = {"program": self._handle, "binding_count": count, "bindings": iova, "workspace": 0}
        return self._device.queue.run(c.EXEC.build(opcode=IoOpcode.EXEC, **fields))[0]


class Sequences:
    """Random tokens of several sequences, one for each slot, and what a cache was told of them."""

    def __init__(self, loaded: Loaded, seed: int) -> None:
        self.loaded = loaded
        self.told: list[Tokens] = [[] for _ in range(loaded.program.slots)]
        self._random = np.random.default_rng(seed)

    def step(self, rows: Sequence[tuple[int, int]]) -> tuple[Any, Rows]:
        """Give each row (slot, count) new tokens."""
        kind = self.loaded.program
        query, key, value = (
            self._random.standard_normal(kind.type_of(name).shape).astype(kind.dtype.dtype)
            for name in ("query", "key", "value")
        )
        given = []
        for row, (slot, count) in enumerate(rows):
            given.append((slot, len(self.told[slot]), count))
            for token in range(count):
                self.told[slot].append((query[row, :, token], key[row, :, token], value[row, :, token]))
        return self.loaded.step(query, key, value, given), given

    def check(self, rows: Rows) -> None:
        """The output is that of ATTENTION over each sequence without a cache; tokens that do not count give 0."""
        kind = self.loaded.program
        tolerance = TOLERANCES[kind.dtype]
        options = {"causal": kind.causal, "left_window": kind.left_window, "scale": kind.size**-0.5}
        for y, (slot, _, count) in zip(self.loaded.y, rows, strict=True):
            assert not y[:, count:].any()
            if count:
                expected = attend_whole(self.told[slot], count, options)
                assert np.allclose(y[:, :count].astype(F32), expected, rtol=tolerance, atol=tolerance)


STEPS = [[(0, 2), (2, 1)], [(1, 2), (0, 1)], [(2, 2), (1, 0)], [(0, 2), (2, 2)], [(0, 1), (1, 1)], [(2, 0), (2, 0)]]


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize(
    "options",
    [{}, {"causal": 0}, {"left_window": 3}, {"left_window": 3, "ring": 5}],
    ids=["causal", "all", "window", "ring"],
)
def test_steps_equal_attention_over_the_whole_sequence(
    device: Device, dtype: WireType, options: dict[str, Any]
) -> None:
    sequences = Sequences(device.load(CacheProgram(dtype=dtype, **options)), seed=1)
    for rows in STEPS:
        done, given = sequences.step(rows)
        assert done.status == Status.SUCCESS, text(device.client.newest_error())
        sequences.check(given)


def test_a_ring_takes_more_tokens_than_it_holds(device: Device) -> None:
    sequences = Sequences(device.load(CacheProgram(left_window=3, ring=5)), seed=2)
    for _ in range(20):
        done, given = sequences.step([(1, 1), (0, 2)])
        assert done.status == Status.SUCCESS
        sequences.check(given)


def test_a_wrong_entry_of_a_table_changes_the_answer(device: Device) -> None:
    sequences = Sequences(device.load(CacheProgram()), seed=3)
    for _ in range(3):
        sequences.step([(0, 2), (1, 2)])
    done, given = sequences.step([(0, 1), (1, 1)])
    sequences.check(given)
    sequences.loaded.tables[0, 0] = TABLES[2][0]
    done, given = sequences.step([(0, 1), (1, 1)])
    assert done.status == Status.SUCCESS
    with pytest.raises(AssertionError):
        sequences.check(given)


def test_two_rows_share_the_block_that_their_tables_both_name(device: Device) -> None:
    loaded = device.load(CacheProgram(), tables=[[5, 1], [5, 4], [3, 2]])
    sequences = Sequences(loaded, seed=4)
    for _ in range(2):
        sequences.step([(0, 2), (2, 1)])
    sequences.told[1] = list(sequences.told[0])
    for _ in range(2):
        done, given = sequences.step([(0, 1), (1, 2)])
        assert done.status == Status.SUCCESS
        sequences.check(given)


def test_idle_rows_touch_nothing(device: Device) -> None:
    loaded = device.load(CacheProgram(), tables=[[-1, 99], [-1, -1], [3, 2]])
    loaded.cache[...] = 7
    done, _ = Sequences(loaded, seed=5).step([(0, 0), (1, 0)])
    assert done.status == Status.SUCCESS
    assert (loaded.cache == 7).all() and not loaded.y.any()


BAD = {
    "slot beyond": ((3, 0, 1), TABLES),
    "slot below": ((-1, 0, 1), TABLES),
    "past below": ((0, -1, 1), TABLES),
    "count below": ((0, 0, -1), TABLES),
    "count beyond": ((0, 0, 3), TABLES),
    "past and count beyond": ((0, 7, 2), TABLES),
    "past beyond everything": ((0, 2**31 - 1, 1), TABLES),
    "block beyond": ((1, 4, 1), [[5, 1], [0, 6], [3, 2]]),
    "block below": ((1, 3, 2), [[5, 1], [0, -1], [3, 2]]),
}


@pytest.mark.parametrize("what", BAD)
def test_what_is_out_of_range_fails_before_anything_is_written(device: Device, what: str) -> None:
    bad, tables = BAD[what]
    loaded = device.load(CacheProgram(), tables)
    sequences = Sequences(loaded, seed=6)
    for _ in range(2):
        assert sequences.step([(0, 2), (2, 1)])[0].status == Status.SUCCESS
    before, y = loaded.cache.copy(), loaded.y.copy()
    new = np.ones(loaded.program.type_of("query").shape, F32)
    done = loaded.step(new, new[:, :2], new[:, :2], [(2, 2, 2), bad])
    assert (done.status, done.result) == (Status.INDEX_OUT_OF_RANGE, 0)
    assert (loaded.cache == before).all() and (loaded.y == y).all()
    done, given = sequences.step([(0, 2), (2, 1)])
    assert done.status == Status.SUCCESS
    sequences.check(given)


def test_planes_are_apart(device: Device) -> None:
    """Two layers in one cache: what one program writes to its planes, another with other planes does not see."""
    first = CacheProgram(planes=4)
    tokens = np.ones(first.type_of("query").shape, F32)
    loaded = device.load(dataclasses.replace(first, key_plane=3, value_plane=2))
    assert loaded.step(tokens, 2 * tokens[:, :2], 3 * tokens[:, :2], [(0, 0, 2), (1, 0, 2)]).status == Status.SUCCESS
    written = [plane for plane, block in itertools.product(range(4), (5, 0)) if loaded.cache[plane, block].any()]
    assert written == [2, 2, 3, 3]
    assert (loaded.cache[3, 5, :2] == 2).all() and (loaded.cache[2, 5, :2] == 3).all()
    assert not loaded.cache[:, :, 2:].any()


LONG = CacheProgram(blocks=64, entries=32, tokens=4)
"""Tables of 128 tokens; 512 bytes of keys and values a block; 2048 bytes of queries and results; 16 · 4 a key."""
APART = [list(range(32)), list(range(32, 64)), [0] * 32]


@pytest.mark.parametrize(
    ("rows", "moved", "macs"),
    [
        ([(0, 0, 0), (1, 0, 0)], 2048, 0),
        ([(0, 0, 1), (1, 0, 4)], 2048 + 2 * 512, 64 * (1 + 10)),
        ([(0, 99, 1), (1, 60, 4)], 2048 + (25 + 16) * 512, 64 * (100 + 61 + 62 + 63 + 64)),
        ([(0, 124, 4), (1, 124, 4)], 2048 + 64 * 512, 64 * 2 * (125 + 126 + 127 + 128)),
        ([(0, 500, 1), (1, 0, 0)], 2048 + 32 * 512, 64 * 128),
    ],
)
def test_an_exec_takes_what_its_rows_demand(device: Device, rows: Rows, moved: int, macs: int) -> None:
    """Each append moves 512 bytes twice; the last case fails, by a row that has no place, and takes what it would."""
    profile = load_profile("generic")
    loaded = device.load(LONG, APART)
    new = np.ones(LONG.type_of("query").shape, F32)
    done = loaded.step(new, new[:, :2], new[:, :2], rows)
    assert done.status == (Status.INDEX_OUT_OF_RANGE if rows[0][1] > 128 else Status.SUCCESS)
    attention = max(-(-moved // 256), -(-macs // (2 * 1024)))  # two engines share it
    appends = 2 * (2 * 512 // 256)
    fixed = profile.exec_fixed_ticks + 3 * profile.command_fixed_ticks
    assert done.end_tick - done.start_tick == fixed + appends + attention


@pytest.mark.parametrize(("context", "rows"), [(0, 2), (3, 1), (64, 2), (101, 1), (128, 2)])
def test_an_exec_takes_what_the_estimate_of_its_context_says(device: Device, context: int, rows: int) -> None:
    count = min(context, LONG.tokens)
    given = [(slot, context - count, count) if slot < rows else (slot, 0, 0) for slot in range(2)]
    new = np.ones(LONG.type_of("query").shape, F32)
    done = device.load(LONG, APART).step(new, new[:, :2], new[:, :2], given)
    assert done.status == Status.SUCCESS
    expected = estimate(LONG.compiled(), "generic", context=context, rows=rows)
    assert done.end_tick - done.start_tick == expected.latency_ticks
