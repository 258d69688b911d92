"""`State`: what one sequence has of a model in device memory."""

from __future__ import annotations

import weakref
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from driver_shim.errors import BufferInUse, NpuError, StateFull
from sdk.here_only import HereOnly
from sdk.state.holding import Holding
from sdk.state.memory import StateMemory, closed_by_user
from sdk.state.saved import encode

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from sdk.compiler.states import StateInfo


class StateOwner(Protocol):
    """The model that a state is of."""

    @property
    def address(self) -> str:
        """How a user names the device."""

    @property
    def states(self) -> tuple[StateInfo, ...]:
        """What a state holds."""

    def check_rewindable(self) -> None:
        """Raise ValueError where what was overwritten cannot come back."""

    def fork(self, holding: Holding) -> Holding:
        """What a second state has that goes on from here."""

    def read(self, holding: Holding) -> Sequence[NDArray[Any]]:
        """What each of `states` holds, over the bus."""


class State(HereOnly):
    """The memory of one sequence: keys and values of the tokens that a model's runs were given with it. Thread-safe.

    `Model.state` makes it. A run with `state=` appends its tokens when it has ended well; one that failed, was given up
    or never started has changed nothing. One run at a time.
    """

    # `_room_for` is for the runs of `sdk/model`.

    def __init__(self, owner: StateOwner, memory: StateMemory, holding: Holding, max_tokens: int) -> None:
        """Use `Model.state`."""
        self._owner = owner
        self._memory = memory
        self._holding = holding
        self._closed: NpuError | None = None
        self._max_tokens = max_tokens
        self._finalizer = weakref.finalize(self, memory.let_go, holding)
        self._finalizer.atexit = False

    @property
    def length(self) -> int:
        """Tokens that it has."""
        self._check_open()
        return self._holding.length

    @property
    def max_tokens(self) -> int:
        """Tokens that it takes at most."""
        return self._max_tokens

    @property
    def memory_bytes(self) -> int:
        """Device memory of the blocks that its tokens lie in, shared ones included, and of what is replaced."""
        self._check_open()
        replaced = sum(buffer.nbytes for pair in self._holding.replaced.values() for buffer in pair)
        return self._memory.block_bytes * len(self._holding.blocks) + replaced

    @property
    def masked_tokens(self) -> int:
        """Tokens that the chunks of its newest run were filled up with: nobody's, but they cost their time."""
        self._check_open()
        return self._holding.masked_tokens

    @property
    def closed(self) -> bool:
        """Whether it was freed, or its model or device is gone."""
        return (self._closed or self._memory.closed) is not None

    def rewind(self, length: int) -> None:
        """Forget all tokens behind the first `length`; no bytes move.

        Raises TypeError for what is no number, ValueError for a length that it has not or where the model overwrites
        what it remembers, BufferInUse while a run works on it.
        """
        if isinstance(length, bool) or not isinstance(length, (int, np.integer)):
            raise TypeError(f"rewind takes a number of tokens, got {length!r}")
        with self._idle("rewound"):
            have = self._holding.length
            if not 0 <= length <= have:
                raise ValueError(f"the state has {have} tokens; it cannot be rewound to {length}")
            if length < have:
                self._owner.check_rewindable()
                self._holding.length = int(length)
                self._memory.trim(self._holding)

    def fork(self) -> State:
        """A second state that goes on from here. They share what is there; no tokens are copied but the last few.

        Raises OutOfDeviceMemory when the model has as many states as it takes, BufferInUse while a run works on it.
        """
        with self._idle("forked"):
            return State(self._owner, self._memory, self._owner.fork(self._holding), self.max_tokens)

    def save(self) -> bytes:
        """All of it as bytes, for `Model.state(restore=...)`; this moves `length` tokens over the bus."""
        with self._idle("saved"):
            return encode(self._owner.states, self._holding.length, self._owner.read(self._holding))

    def free(self) -> None:
        """Give its memory back. Idempotent. Raises BufferInUse while a run works on it."""
        if self.closed:
            return
        with self._idle("freed"):
            self._closed = closed_by_user(self._owner.address)
            if self._finalizer.detach():
                self._memory.give_back(self._holding)

    def __enter__(self) -> State:
        self._check_open()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        """Free it; once its run has ended, where one works on it."""
        if not self.closed:
            self._closed = closed_by_user(self._owner.address)
            self._finalizer()

    def __repr__(self) -> str:
        if self.closed:
            return "<State closed>"
        return f"<State {self._holding.length} of {self.max_tokens} tokens, {self.memory_bytes} bytes>"

    def _room_for(self, tokens: int, memory: StateMemory) -> Holding:
        """What a run works on that appends so many tokens; it is of the model that `memory` is of.

        Called with the memory's lock held, or to learn early what is wrong. Raises Closed, ValueError for a state of
        another model, BufferInUse, StateFull.
        """
        self._check_open()
        if self._memory is not memory:
            raise ValueError("a state of another model was given")
        holding, device = self._holding, self._owner.address
        if holding.in_flight:
            raise BufferInUse("a run works on the state already", device=device, remedy="wait for its event first")
        if holding.length + tokens > self._max_tokens:
            raise StateFull(
                f"the state has {holding.length} of {self._max_tokens} tokens; {tokens} more do not fit",
                device=device,
                subsystem="model",
                remedy=f"give at most {self._max_tokens - holding.length}, or rewind it, or take a larger one",
            )
        return holding

    def _check_open(self) -> None:
        if self._closed is not None:
            raise self._closed.again()
        self._memory.check_open()

    @contextmanager
    def _idle(self, what: str) -> Iterator[None]:
        """Nobody else changes it meanwhile. Raises BufferInUse while a run works on it, Closed."""
        with self._memory.lock:
            self._check_open()
            if self._holding.in_flight:
                raise BufferInUse(
                    f"a run works on the state; it cannot be {what}",
                    device=self._owner.address,
                    remedy="wait for the run's event first",
                )
            yield
