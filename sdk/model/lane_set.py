"""Which lane a run takes: a model has as many as the device has engines, a few at most, where memory suffices."""

from __future__ import annotations

import logging
from functools import partial

from driver_shim.errors import HostMemoryLimit, OutOfDeviceMemory
from sdk.model.lanes import Lane
from sdk.model.parts import DeviceParts
from sdk.model.port import ModelOwner
from sdk.model.programs import ModelProgram

_log = logging.getLogger("npu")


MOST_LANES = 8
"""More would take memory and speed nothing up: each run has all engines, and few copies go on meanwhile."""


class LaneSet:
    """The lanes of one model. Thread-safe."""

    def __init__(self, owner: ModelOwner, parts: DeviceParts) -> None:
        self._owner = owner
        self._parts = parts

    def at_once(self) -> Lane | None:
        """The lane with the fewest runs; None while all are in use and there are engines without one."""
        lane = self._least_used()
        return None if lane is None or (lane.runs and self._may_grow()) else lane

    def take(self, program: ModelProgram) -> Lane:
        """The lane with the fewest runs; a new one while all are in use and there are engines without one."""
        lane = self.at_once()
        if lane is not None:
            return lane
        with self._parts.lock:
            self._parts.check_open()
            return self.at_once() or self._add(program)  # another run may have made one meanwhile

    def prepare(self, program: ModelProgram) -> None:
        """Have a program on the device and a lane with memory for its runs. Raises as `make_room`."""
        while not self.make_room(self.take(program), program):
            pass

    def make_room(self, lane: Lane, program: ModelProgram) -> bool:
        """Have a program on the device and memory for its runs in a lane.

        False where memory does not suffice for that many lanes: this one is gone then, and another is to be taken.
        Raises OutOfDeviceMemory where it is the only one, HostMemoryLimit, CommandFailed, Timeout, DeviceLost, Closed.
        """
        self._owner.make_resident(program)
        try:
            lane.reserve(program)
        except OutOfDeviceMemory:
            if not self._retire(lane):
                raise
            return False
        return True

    def _retire(self, lane: Lane) -> bool:
        """Do without a lane that has not the memory it needs; False where it is the only one."""
        parts = self._parts
        with parts.lock:
            if lane not in parts.lanes:
                return True
            if len(parts.lanes) == 1:
                return False
            parts.lanes.remove(lane)
            parts.growing = False
        self._owner.when_idle(lane.idle, partial(self._owner.give_queue, lane.queue), parts.reset_count)
        return True

    def _least_used(self) -> Lane | None:
        return min(self._parts.lanes, key=lambda lane: len(lane.runs), default=None)

    def _may_grow(self) -> bool:
        return self._parts.growing and len(self._parts.lanes) < min(self._owner.engines, MOST_LANES)

    def _add(self, program: ModelProgram) -> Lane:
        """One more lane; another one's where memory does not suffice for it. Called with the lock held."""
        parts = self._parts
        try:
            new = self._new(program)
        except (OutOfDeviceMemory, HostMemoryLimit) as error:
            least_used = self._least_used()
            if least_used is None:
                raise
            parts.growing = False
            _log.debug("no further lane: %s", error)
            return least_used
        if parts.closed is not None:  # a reset came meanwhile
            self._owner.give_queue(new.queue)
            parts.check_open()
        parts.lanes.append(new)
        return new

    def _new(self, program: ModelProgram) -> Lane:
        """A lane that has what the program needs. Raises OutOfDeviceMemory, HostMemoryLimit, CommandFailed."""
        new = Lane(self._owner, self._owner.take_queue())
        try:
            new.reserve(program)
        except BaseException:
            self._owner.give_queue(new.queue)
            raise
        return new
