"""One run of a model: its event, and who is told of the commands that it is made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from driver_shim.errors import CommandFailed, NpuError
from driver_shim.protocol.commands import DATA_FAULTS, status_slug
from sdk.memory.buffers import Buffer
from sdk.model.programs import ModelProgram
from sdk.queue.events import Event
from sdk.queue.port import EventQueue
from sdk.queue.queue import Entry

Outputs = dict[str, Any]
"""Arrays by name; the buffer, where the run was given one for the output."""


class Command(NamedTuple):
    """One command of a run."""

    entry: Entry
    what: str
    """It in a word, for errors."""
    nodes: tuple[str, ...] = ()
    """Of an exec: the node of the model that each command of its program comes from."""


class RunOwner(Protocol):
    """What is told of a run's end."""

    def ended(self, run: RunEvent, programs: Sequence[ModelProgram], staging: Any, failed: bool) -> None:
        """No command of it is in flight any more. Called with the queue's lock held."""


class _InFlight(NamedTuple):
    """What a run needs until its last command has completed, and lets go of then."""

    owner: RunOwner
    programs: Sequence[ModelProgram]
    staging: Any
    """Where the owner keeps its operands."""


class RunEvent(Event[Outputs]):
    """The end of a model's run: its last command's, failed if any command of it failed."""

    __slots__ = ("_before", "_began", "_held", "_in_flight", "_nodes", "_then", "output_bytes")

    def __init__(
        self,
        queue: EventQueue,
        owner: RunOwner,
        programs: Sequence[ModelProgram],
        staging: Any,
        convert: Callable[[], Outputs],
        answered: bool,
        output_bytes: int,
    ) -> None:
        super().__init__(queue, "model run", (), convert)
        self._answered = answered
        self.output_bytes = output_bytes
        self._in_flight = [_InFlight(owner, programs, staging)]
        """Empty once nothing is. Whoever pops it says so: `list.pop` is atomic."""
        self._held: tuple[Buffer, ...] = ()
        self._before: NpuError | None = None
        """How a command before the last one failed."""
        self._began: int | None = None
        self._nodes: tuple[str, ...] = ()
        self._then: Callable[[bool], None] | None = None

    def then(self, call: Callable[[bool], None] | None) -> None:
        """Have this called at its end, with whether it ended well. The queue's lock is held then."""
        self._then = call

    def ends_with(self, command: Command) -> None:
        """Its last command is this."""
        self._nodes = command.nodes

    def hold(self, buffers: tuple[Buffer, ...]) -> None:
        """It works on these until its last command has completed."""
        self._held = buffers

    def discard(self) -> None:
        """Nothing of it was submitted, or nobody has it."""
        self._answered = True
        self._fail(CommandFailed("the run was not submitted", code="not-submitted", device=self._queue.address))

    def give_up(self, error: NpuError) -> None:
        """Whoever waits is told this now; the device may work on it yet. Called with the queue's lock held."""
        super()._fail(error)

    def step_ended(self, command: Command, status: int, result: int, start_tick: int) -> None:
        """A command before the last one completed."""
        if self._began is None:
            self._began = start_tick
        if status and self._before is None:
            self._before = self._error(command.what, command.nodes, status, result)

    def _finish(self, status: int, start_tick: int, end_tick: int, result: int = 0) -> None:
        """The last command completed; those before it had already, queues being in order."""
        if status and self._before is None:
            self._before = self._error("its last command", self._nodes, status, result)
        self._start = self._began if self._began is not None else start_tick
        self._end = end_tick
        if self._before is not None:
            super()._fail(self._before)
        if self._failure is None:
            self._tell(ended_well=True)  # before anybody sees that it is done
            self._done = True
        self._leave()

    def _fail(self, error: NpuError) -> None:
        super()._fail(error)
        self._leave()

    def _tell(self, *, ended_well: bool) -> None:
        then, self._then = self._then, None
        if then is not None:
            then(ended_well)

    def _leave(self) -> None:
        """Nothing of it is in flight any more."""
        try:
            in_flight = self._in_flight.pop()
        except IndexError:
            return
        self._held = ()
        failed = self._failure is not None
        self._tell(ended_well=not failed)
        in_flight.owner.ended(self, in_flight.programs, in_flight.staging, failed)

    def _keeps(self, thing: object) -> bool:
        return any(held is thing for held in self._held)

    def _check_kept(self) -> None:
        for buffer in self._held:
            buffer._base_address()

    def _error(self, what: str, nodes: tuple[str, ...], status: int, result: int) -> NpuError:
        if status not in DATA_FAULTS or not result < len(nodes):
            return self._queue.command_error(f"model run ({what})", status)
        node = nodes[result]
        slug = status_slug(status)
        return CommandFailed(
            f"model run failed: {slug} in node {node!r}" if node else f"model run failed: {slug}",
            status=status,
            code=slug,
            node=node or None,
            device=self._queue.address,
            subsystem="model",
            remedy="the inputs hold what that node cannot work on; the device's error log says more: dev.errors()",
        )


class RunStep:
    """Owner of a command before the last one. Whatever ends the queue ends the run itself, which is in there, too."""

    __slots__ = ("command", "run")

    def __init__(self, run: RunEvent, command: Command) -> None:
        self.run = run
        self.command = command

    def _finish(self, status: int, start_tick: int, end_tick: int, result: int = 0) -> None:
        self.run.step_ended(self.command, status, result, start_tick)

    def _fail(self, error: NpuError) -> None:
        pass

    def _drop(self, error: NpuError) -> None:
        pass

    def _keeps(self, thing: object) -> bool:
        return False
