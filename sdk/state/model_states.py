"""The states of one model: how much memory they have, and how each comes to be."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sdk.compiler.graph import Graph
from sdk.compiler.states import StateInfo, StateKind, StateLayout, cache_places, caches_of, context_of
from sdk.memory.buffers import DeviceBuffer, HostBuffer, Span
from sdk.queue.queue import Queue
from sdk.state.holding import Holding
from sdk.state.memory import StateMemory
from sdk.state.port import FunctionOwner
from sdk.state.saved import SavedState, decode
from sdk.state.state import State

UNBOUNDED_TOKENS = (1 << 31) - 1
"""Of a state that does not grow."""


class ReplacedRow(NamedTuple):
    """Where the value of a replaced state lies, of one row: what a run reads, and where it leaves the next."""

    past: str
    present: str
    axis: int | None
    """Along which the program's tensors have their rows; None where one row is all there is."""
    current: DeviceBuffer
    following: DeviceBuffer


class ModelStates:
    """The states of one model on one device. Thread-safe."""

    def __init__(
        self,
        owner: FunctionOwner,
        states: tuple[StateInfo, ...],
        layout: StateLayout,
        graph: Graph,
    ) -> None:
        """Take the memory that `layout` says. Raises OutOfDeviceMemory."""
        self._owner = owner
        self.states = states
        self.memory = StateMemory(owner, layout, caches_of(states, layout))
        self.context = context_of(graph)
        """Tokens of a sequence at most, where the model says so."""

    @property
    def address(self) -> str:
        """How a user names the device."""
        return self._owner.address

    @property
    def capacity_tokens(self) -> int:
        """Tokens that fit, of all states together."""
        return self.memory.layout.blocks * self.memory.layout.block_tokens

    @property
    def most_tokens(self) -> int:
        """Tokens that one state may have."""
        layout = self.memory.layout
        if not self.memory.caches:
            return self.context or UNBOUNDED_TOKENS
        return min(layout.max_tokens, self.context or self.capacity_tokens)

    def new(self, max_tokens: int | None, restore: bytes | None) -> State:
        """A new state, empty or as it was saved. Raises OutOfDeviceMemory, ValueError, TypeError, Closed."""
        most = self.most_tokens
        if max_tokens is None:
            max_tokens = most
        if isinstance(max_tokens, bool) or not isinstance(max_tokens, (int, np.integer)):
            raise TypeError(f"max_tokens takes a number of tokens, got {max_tokens!r}")
        if not 1 <= max_tokens <= most:
            limit = f"the model's context is {self.context}" if most == self.context else f"{most} fit in state_memory"
            raise ValueError(f"max_tokens={max_tokens}: from 1 to {most} are possible ({limit})")
        saved = None if restore is None else decode(restore, self.states)
        if saved is not None and saved.length > max_tokens:
            raise ValueError(f"restore: the saved state has {saved.length} tokens; max_tokens is {max_tokens}")
        memory = self.memory
        with memory.lock:
            memory.check_open()
            holding = memory.new()
            try:
                self._make_replaced(holding)
                if saved is not None:
                    self._write(holding, saved)
            except BaseException:
                memory.give_back(holding)
                raise
        return State(self, memory, holding, int(max_tokens))

    def replaced_rows(
        self, holdings: Sequence[Holding], axis_of: Callable[[str], int | None]
    ) -> list[list[ReplacedRow]]:
        """Where the rows of each replaced state are; `axis_of` says along which axis a program has them."""
        return [
            [
                ReplacedRow(info.name, info.present, axis_of(info.name), *holding.replaced[info.name])
                for holding in holdings
            ]
            for info in self._replaced
        ]

    @property
    def _replaced(self) -> list[StateInfo]:
        """Those of `states` that are replaced."""
        return [info for info in self.states if info.kind is StateKind.REPLACE]

    @staticmethod
    def commit(holdings: Sequence[Holding], tokens: int, ended_well: bool) -> None:
        """A run has ended: what it appended counts, if it ended well. Needs no lock."""
        if ended_well:
            for holding in holdings:
                holding.commit(tokens)

    def fork(self, holding: Holding) -> Holding:
        """What a second state has that goes on from here; called with the memory's lock held."""
        with self.queue() as queue:
            twin = self.memory.fork(holding, queue)
            try:
                for name, (current, following) in holding.replaced.items():
                    twin.replaced[name] = [self._owner.device_buffer(b.shape, b.dtype) for b in (current, following)]
                    queue.copy(twin.replaced[name][0], current)
            except BaseException:
                self.memory.give_back(twin)
                raise
        return twin

    def _make_replaced(self, holding: Holding) -> None:
        """The memory of replaced states, which begin as zeros."""
        if not self._replaced:
            return
        with self.queue() as queue:
            for info in self._replaced:
                pair = [self._owner.device_buffer(info.shape, info.dtype) for _ in range(2)]
                holding.replaced[info.name] = pair
                queue.fill(pair[0], 0)

    def check_rewindable(self) -> None:
        """Raise ValueError where what was overwritten cannot come back."""
        fixed = next((each for each in self.states if each.kind is not StateKind.APPEND), None)
        if fixed is not None:
            raise ValueError(
                f"the state cannot be rewound: {fixed.name!r} is of kind {fixed.kind}, which overwrites what it"
                " remembers; fork it before what may have to be undone"
            )

    @contextmanager
    def queue(self) -> Iterator[Queue]:
        """A queue for some commands, which are done at the block's end."""
        queue = self._owner.take_queue()
        try:
            yield queue
            queue.nop().wait()
        finally:
            self._owner.give_queue(queue)

    # --- over the bus ------------------------------------------------------------------------------------------

    def read(self, holding: Holding) -> list[NDArray[Any]]:
        """What each of `states` holds: [length, heads, size], or the value of one that is replaced.

        Called with the memory's lock held.
        """
        planes = [
            (cache, pieces)
            for cache, places in zip(self.memory.caches, self.memory.pieces(holding), strict=True)
            for pieces in places
        ]
        tensors = {}
        with self.queue() as queue:
            self.memory.await_prepared(holding, queue)
            for info, (cache, pieces) in zip(self._by_plane(), planes, strict=True):
                rows = [self._moved(queue, piece) for piece in pieces]
                empty = np.empty((0, *cache.block_shape[1:]), cache.buffer.dtype)
                whole = [row.reshape(-1, *cache.block_shape[1:]) for row in rows]
                tensors[info.name] = np.concatenate([empty, *whole])[: holding.length]
            for info in self._replaced:
                tensors[info.name] = self._moved(queue, holding.replaced[info.name][0])
        return [tensors[info.name] for info in self.states]

    def _moved(self, queue: Queue, piece: Span) -> NDArray[Any]:
        with _host(self._owner, piece) as staging:
            queue.copy(staging, piece).wait()
            return staging.array.copy()

    def _write(self, holding: Holding, saved: SavedState) -> None:
        tensors = {info.name: tensor for info, tensor in zip(self.states, saved.tensors, strict=True)}
        with self.queue() as queue:
            self.memory.extend([holding], saved.length, queue)
            holding.length = saved.length
            places = [pieces for planes in self.memory.pieces(holding) for pieces in planes]
            for info, pieces in zip(self._by_plane(), places, strict=True):
                tensor, at = tensors[info.name], 0
                for piece in pieces:
                    count = min(len(piece) * self.memory.layout.block_tokens, saved.length - at)
                    self._send(queue, piece, tensor[at : at + count])
                    at += count
            for info in self._replaced:
                self._send(queue, holding.replaced[info.name][0], tensors[info.name])

    def _send(self, queue: Queue, piece: Span, tokens: NDArray[Any]) -> None:
        with _host(self._owner, piece) as staging:
            staging.array.reshape(-1)[: tokens.size] = tokens.reshape(-1)
            queue.copy(piece, staging).wait()

    def _by_plane(self) -> list[StateInfo]:
        """Those of `states` that lie in caches, in the order of caches and planes."""
        places = cache_places(self.states)
        return sorted((each for each in self.states if each.name in places), key=lambda each: places[each.name])


@contextmanager
def _host(owner: FunctionOwner, piece: Span) -> Iterator[HostBuffer]:
    """Host memory for a piece of a cache."""
    staging = owner.host_buffer(piece.shape, piece.dtype)
    try:
        yield staging
    finally:
        staging.free()
