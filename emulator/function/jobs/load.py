"""The load_program command: a container is verified, then handed to the engines."""

from __future__ import annotations

from driver_shim.protocol.commands import FaultSource, Status
from emulator.engines.verdict import Verdict
from emulator.function.command_error import CommandError
from emulator.function.programs import Programs


class LoadJob:
    """load_program, from the container's copy on. The admin queue waits for it, everything else goes on."""

    on_engine = False

    def __init__(self, programs: Programs, image: bytes, constants: list[tuple[int, int]], cost: int) -> None:
        self.cost = cost
        self.runnable = True
        self._programs = programs
        self._image = image
        self._constants = constants
        self._number: int | None = None
        self._verdict: Verdict | None = None

    def advance(self) -> int | None:
        """Have it verified; when it was, load it. The result is the program's handle."""
        if self._number is None:
            self.runnable = False
            self._number = self._programs.verify(self._image, self._take_verdict)
        verdict = self._verdict
        if verdict is None:
            return None
        if verdict.facts is None:
            lost = verdict.status is Status.ENGINE_LOST
            source = FaultSource.ENGINE if lost else FaultSource.COMMAND
            raise CommandError(verdict.status, verdict.message, source=source)
        return self._programs.load(self._image, self._constants, verdict.facts)

    def discard(self) -> None:
        """Nobody wants the verdict any more."""
        if self._number is not None:
            self._programs.forget_verdict(self._number)

    def _take_verdict(self, verdict: Verdict) -> None:
        self._verdict = verdict
        self.runnable = True
