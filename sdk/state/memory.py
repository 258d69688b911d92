"""The device memory of a model's states: caches in blocks, and the tables that say which block is whose."""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

from driver_shim.errors import BufferInUse, Closed, NpuError, OutOfDeviceMemory
from sdk.compiler import TensorInfo
from sdk.compiler.states import StateLayout
from sdk.memory.buffers import DeviceBuffer, Span
from sdk.queue.queue import Queue
from sdk.state.blocks import Blocks, OutOfBlocks, runs
from sdk.state.holding import Holding
from sdk.state.port import FunctionOwner
from sdk.state.preparations import Preparations


class Cache(NamedTuple):
    """One cache: the blocks of every plane, plane after plane."""

    buffer: DeviceBuffer
    """[planes · blocks, elements of a block]."""
    planes: int
    block_shape: tuple[int, ...]
    """[tokens, heads, size]."""

    @property
    def block_bytes(self) -> int:
        """Of one block, in all planes."""
        return self.planes * self.buffer[0].nbytes


class StateMemory:
    """What all states of one model have. Members are called with `lock` held, unless they say otherwise."""

    def __init__(self, owner: FunctionOwner, layout: StateLayout, caches: Sequence[TensorInfo]) -> None:
        """Take it from the device. Raises OutOfDeviceMemory."""
        self._owner = owner
        self.layout = layout
        self.lock = threading.Lock()
        self.closed: NpuError | None = None
        """Why no state can be used any more."""
        self.caches = [_cache(owner, layout, cache) for cache in caches]
        self.tables = owner.device_buffer((layout.slots * layout.entries,), "int32")
        self._blocks = Blocks(layout.blocks)
        self._slots = list(range(layout.slots))[::-1]
        self._of_blocks, self._of_tables = Preparations(), Preparations()
        self._left: deque[Holding] = deque()
        """Of states that were let go."""

    @property
    def block_bytes(self) -> int:
        """Device memory of a block, for all layers; 0 where nothing grows."""
        return sum(cache.block_bytes for cache in self.caches)

    @property
    def total_bytes(self) -> int:
        """Device memory of all blocks."""
        return self.block_bytes * len(self._blocks)

    @property
    def free_bytes(self) -> int:
        """Device memory of the blocks that no state has."""
        self._reclaim()
        return self.block_bytes * self._blocks.free

    def blocks_for(self, tokens: int) -> int:
        """Blocks that so many tokens lie in."""
        return -(-tokens // self.layout.block_tokens)

    def invalidate(self, error: NpuError) -> None:
        """The device was reset or closed, or the model was: nothing of it is there any more. Needs no lock."""
        if self.closed is None:
            self.closed = error

    def release(self) -> None:
        """Give the device memory back once it is invalid; what commands in flight use goes with this object."""
        for buffer in (self.tables, *(cache.buffer for cache in self.caches)):
            with suppress(BufferInUse):
                buffer.free()

    def abandon_in_child(self, error: NpuError) -> None:
        """In a forked child; the lock may be held by a thread that does not exist here."""
        self.lock = threading.Lock()
        self.invalidate(error)

    def check_open(self) -> None:
        """Raise what it ended with, if it has. Needs no lock."""
        if self.closed is not None:
            raise self.closed.again()

    # --- what states have --------------------------------------------------------------------------------------

    def new(self) -> Holding:
        """What a new state has: nothing but a table. Raises OutOfDeviceMemory."""
        self._reclaim()
        if not self._slots:
            raise OutOfDeviceMemory(
                f"{self.layout.slots} states are there already, the most that a model has",
                device=self._owner.address,
                subsystem="memory",
                remedy="free states that are no longer needed",
            )
        return Holding(self._slots.pop())

    def give_back(self, holding: Holding) -> None:
        """A state ends, which no run works on."""
        self._blocks.give(holding.blocks)
        self._slots.append(holding.slot)
        holding.blocks, holding.length, holding.replaced = [], 0, {}

    def let_go(self, holding: Holding) -> None:
        """A state was let go; a run may work on it yet. Needs no lock, so that finalisers can."""
        self._left.append(holding)

    def _reclaim(self) -> None:
        for _ in range(len(self._left)):
            holding = self._left.popleft()
            if holding.in_flight:
                self._left.append(holding)
            else:
                self.give_back(holding)

    def fork(self, holding: Holding, queue: Queue) -> Holding:
        """What a second state has that goes on from here: the same blocks. Its table is written by `queue`."""
        twin = self.new()
        try:
            self.trim(holding)
            self._enter(queue, twin.slot, 0, holding.blocks)
        except BaseException:
            self.give_back(twin)
            raise
        self._blocks.share(holding.blocks)
        twin.blocks, twin.length = list(holding.blocks), holding.length
        return twin

    def trim(self, holding: Holding) -> None:
        """Give back the blocks behind the last token: a run that failed may have left some."""
        keep = self.blocks_for(holding.length)
        if len(holding.blocks) > keep:
            self._blocks.give(holding.blocks[keep:])
            del holding.blocks[keep:]

    def extend(self, holdings: Sequence[Holding], tokens: int, queue: Queue) -> None:
        """Have room for so many more tokens in each, all or none; `queue` carries out what that takes.

        A block that is shared with another state and is to be written becomes one of its own. Raises OutOfDeviceMemory.
        """
        self._reclaim()
        if not self.caches:
            return
        for holding in holdings:
            self.trim(holding)
        wanted = [self._wanted(holding, tokens) for holding in holdings]
        if sum(wanted) > self._blocks.free:
            raise self._no_room(holdings, tokens, OutOfBlocks(sum(wanted), self._blocks.free))
        for holding in holdings:
            self._of_tables.await_others([holding.slot], queue)  # where nothing is entered now, too
            self._of_blocks.await_others(holding.blocks[-1:], queue)
            self._part(holding, queue)
            self._grow(holding, tokens, queue)

    def _wanted(self, holding: Holding, tokens: int) -> int:
        """Free blocks that it takes."""
        more = self.blocks_for(holding.length + tokens) - len(holding.blocks)
        return more + (self._shared_tail(holding) is not None)

    def _shared_tail(self, holding: Holding) -> int | None:
        """The block that the next token goes into, where another state has it, too."""
        if not holding.length % self.layout.block_tokens:
            return None
        block = holding.blocks[-1]
        return block if self._blocks.is_shared(block) else None

    def _part(self, holding: Holding, queue: Queue) -> None:
        """Give it a last block of its own, with the same in it."""
        shared = self._shared_tail(holding)
        if shared is None:
            return
        (own,) = self._take(1, None, queue)
        try:
            for cache in self.caches:
                for plane in _planes(cache, self.layout):
                    self._of_blocks.note([own, shared], queue, queue.copy(plane[own], plane[shared]))
        except BaseException:
            self._blocks.give([own])
            raise
        self._blocks.give([shared])
        holding.blocks[-1] = own
        self._enter(queue, holding.slot, len(holding.blocks) - 1, [own])

    def _grow(self, holding: Holding, tokens: int, queue: Queue) -> None:
        count = self.blocks_for(holding.length + tokens) - len(holding.blocks)
        if count > 0:
            new = self._take(count, holding.blocks[-1] if holding.blocks else None, queue)
            first = len(holding.blocks)
            holding.blocks += new  # before anything can fail, so that they are given back with the others
            self._enter(queue, holding.slot, first, new)

    def _take(self, count: int, behind: int | None, queue: Queue) -> list[int]:
        """Free blocks; what another state left in them is erased."""
        blocks = self._blocks.take(count, behind)
        used = self._blocks.used_from(blocks)
        try:
            self._of_blocks.await_others({*blocks, *used}, queue)
            self._erase(used, queue)
        except BaseException:
            self._blocks.still_used(used)
            self._blocks.give(blocks)
            raise
        return blocks

    def _erase(self, blocks: Sequence[int], queue: Queue) -> None:
        for run in runs(blocks):
            for cache in self.caches:
                for plane in _planes(cache, self.layout):
                    self._of_blocks.note(run, queue, queue.fill(plane[run.start : run.stop], 0))

    def _enter(self, queue: Queue, slot: int, first: int, blocks: Sequence[int]) -> None:
        """Write entries of a table: each is a command, which is less than what a copy from the host moves."""
        self._of_tables.await_others([slot], queue)
        start = slot * self.layout.entries + first
        for at, block in enumerate(blocks, start):
            self._of_tables.note([slot], queue, queue.fill(self.tables[at : at + 1], block))

    def _no_room(self, holdings: Sequence[Holding], tokens: int, cause: OutOfBlocks) -> OutOfDeviceMemory:
        """The error that says how many tokens would have fitted."""
        fit = tokens
        while fit and sum(self._wanted(holding, fit) for holding in holdings) > self._blocks.free:
            fit -= 1
        each = " in each of the states" if len(holdings) > 1 else ""
        return OutOfDeviceMemory(
            f"{tokens} more tokens{each} take {cause.wanted} blocks of {self.layout.block_tokens}; {cause.free} of"
            f" {len(self._blocks)} are free: {fit} would have fitted",
            device=self._owner.address,
            subsystem="memory",
            remedy="free or rewind states, or load the model with more state_memory",
            requested=cause.wanted * self.block_bytes,
            available=cause.free * self.block_bytes,
            largest=cause.free * self.block_bytes,
        )

    def await_prepared(self, holding: Holding, queue: Queue) -> None:
        """Wait until all of its blocks are what `queue` may read. Raises Timeout, DeviceLost, Closed."""
        self._of_blocks.await_others(holding.blocks, queue)

    def pieces(self, holding: Holding) -> list[list[list[Span]]]:
        """The places of its tokens: by cache and plane, whole blocks, adjacent ones together."""
        blocks = runs(holding.blocks[: self.blocks_for(holding.length)])
        return [
            [[plane[run.start : run.stop] for run in blocks] for plane in _planes(cache, self.layout)]
            for cache in self.caches
        ]


def closed_by_user(device: str) -> Closed:
    """What a freed state raises."""
    return Closed("the state was freed", device=device, remedy="take another from the model")


def _cache(owner: FunctionOwner, layout: StateLayout, info: TensorInfo) -> Cache:
    planes, blocks, *block = (int(extent) for extent in info.shape)
    if blocks != layout.blocks:
        raise ValueError(f"{info} has {blocks} blocks; the layout has {layout.blocks}")
    return Cache(owner.device_buffer((planes * blocks, math.prod(block)), info.dtype), planes, tuple(block))


def _planes(cache: Cache, layout: StateLayout) -> list[Span]:
    return [cache.buffer[at * layout.blocks : (at + 1) * layout.blocks] for at in range(cache.planes)]
