"""What a model has that outlives it, or that the open function tells of the device's reset and end."""

from __future__ import annotations

import threading
from functools import partial
from typing import Any

from driver_shim.errors import NpuError
from sdk.model.lanes import Lane
from sdk.model.port import ModelOwner
from sdk.model.programs import ModelProgram
from sdk.model.weights import Weights
from sdk.state.memory import StateMemory

Key = tuple[Any, ...]
"""What a program is found by: the shapes of its inputs, and the values that it was compiled for."""


class Parts:
    """Whether a model may be used still."""

    def __init__(self) -> None:
        self.closed: NpuError | None = None
        """Why the model cannot be used any more."""

    def check_open(self) -> None:
        """Raise why the model cannot be used any more."""
        if self.closed is not None:
            raise self.closed.again()

    def end(self, error: NpuError) -> None:
        """The model is used no more; the first reason stays."""
        if self.closed is None:
            self.closed = error

    def invalidate(self, error: NpuError) -> None:
        """The device was reset or closed, and holds nothing of the model any more."""
        self.end(error)

    def abandon_in_child(self, error: NpuError) -> None:
        """In a forked child, where the device is another process's."""
        self.invalidate(error)


class DeviceParts(Parts):
    """What a model has on the device. Outlives it in its finaliser."""

    def __init__(self, owner: ModelOwner) -> None:
        super().__init__()
        self.lock = threading.Lock()
        """Held while a program is compiled or a lane made: there is one of each. Replaced in a forked child."""
        self.reset_count = owner.reset_count
        self.weights = Weights(owner)
        self.loaded: dict[Key, ModelProgram] = {}
        self.lanes: list[Lane] = []
        self.states: StateMemory | None = None
        """The memory of its states, once there is any."""
        self.growing = True
        """Whether more lanes may be tried: there is one for each engine, unless memory or queues forbid."""

    def take(self) -> tuple[list[ModelProgram], list[Lane]]:
        """All of it, which the caller disposes of. Emptied, not replaced: the finaliser knows this object."""
        loaded, lanes = list(self.loaded.values()), self.lanes
        self.loaded, self.lanes = {}, []
        self.weights.clear()
        self.states = None
        return loaded, lanes

    def invalidate(self, error: NpuError) -> None:
        """The device was reset or closed, and holds nothing of the model any more."""
        self.end(error)
        self.take()

    def end(self, error: NpuError) -> None:
        """The model is used no more, and neither are its states; the first reason stays."""
        super().end(error)
        if self.states is not None:
            self.states.invalidate(error)

    def abandon_in_child(self, error: NpuError) -> None:
        """In a forked child; the lock may be held by a thread that does not exist here."""
        self.lock = threading.Lock()
        if self.states is not None:
            self.states.abandon_in_child(error)
        self.invalidate(error)


def abandon(owner: ModelOwner, parts: DeviceParts) -> None:
    """A model was let go: it is unloaded once its last run has ended."""
    loaded, lanes = parts.take()
    if loaded or lanes:
        owner.when_idle(partial(_all_idle, lanes), partial(unload, owner, loaded, lanes), parts.reset_count)


def unload(owner: ModelOwner, programs: list[ModelProgram], lanes: list[Lane]) -> None:
    """Give back what was taken of a model's parts."""
    for lane in lanes:
        owner.give_queue(lane.queue)
    for program in programs:
        owner.drop_program(program)


def _all_idle(lanes: list[Lane]) -> bool:
    return all(lane.idle() for lane in lanes)
