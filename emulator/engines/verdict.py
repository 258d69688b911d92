"""What verification makes of a container: the facts that the device and its engines need, or why it is refused."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from driver_shim.protocol.commands import Status
from emulator.model import timing
from emulator.model.profile import Profile
from emulator.model.timing import NoRate, Precision
from emulator.model.verify import DeviceLimits, ProgramRejected, VerifiedEntry, VerifiedProgram, verify
from emulator.model.work import RowCost, known_work, row_costs


class EntryFacts(NamedTuple):
    """What an execution of one entry point needs and costs."""

    workspace_bytes: int
    inputs: tuple[int, ...]
    """Byte size of each input."""
    states: tuple[int, ...]
    outputs: tuple[tuple[int, int], ...]
    """(offset in scratch, bytes) of each output."""
    scratch_bytes: int
    """Private memory one execution needs, outputs included."""
    commands: int
    ticks: int
    """Modelled cost of one execution, but for the commands of `row_costs`."""
    row_costs: tuple[RowCost, ...] = ()


class ProgramFacts(NamedTuple):
    """A program that was accepted."""

    constants: tuple[int, ...]
    """Byte size of each constant."""
    entries: tuple[EntryFacts, ...]


class Verdict(NamedTuple):
    """The end of a verification."""

    number: int
    """Of the verification."""
    status: Status
    """SUCCESS, PROGRAM_REJECTED, or ENGINE_LOST when whatever verified it died."""
    message: str
    """Why it is refused."""
    facts: ProgramFacts | None


class Verifier(Protocol):
    """Who verifies containers. Owned by one thread; no call blocks."""

    def start(self, number: int, image: bytes) -> None:
        """Verify a container; one `Verdict` of this number follows. Raises OSError when the system refuses."""

    def poll(self) -> list[Verdict]:
        """Verdicts that came since the last call."""

    def fds(self) -> list[int]:
        """Descriptors that become readable when `poll` has something to say."""

    def next_deadline_ns(self) -> int | None:
        """When `poll` has something to say even if no descriptor told of it, by the monotonic clock."""

    def cancel_all(self) -> None:
        """Nobody wants the verdicts of what was started any more. Does not wait."""

    def close(self) -> None:
        """Leave nothing behind; idempotent."""


def judge(number: int, image: bytes | memoryview, profile: Profile) -> Verdict:
    """Verify a container for a device of this profile."""
    try:
        program = verify(image, device_limits=DeviceLimits(memory_bytes=profile.memory_bytes))
    except ProgramRejected as error:
        return Verdict(number, Status.PROGRAM_REJECTED, f"program rejected: {error}", None)
    try:
        facts = facts_of(program, profile)
    except NoRate as error:
        return Verdict(number, Status.PROGRAM_REJECTED, f"program rejected: {error}", None)
    return Verdict(number, Status.SUCCESS, "", facts)


def facts_of(program: VerifiedProgram, profile: Profile) -> ProgramFacts:
    """The facts of a verified program. Raises NoRate for one that the chip cannot run."""
    on_chip = profile.shared_sram_bytes or 0

    def checked(costs: tuple[RowCost, ...]) -> tuple[RowCost, ...]:
        for each in costs:
            timing.macs_per_tick(profile, Precision(each.cost.precision))
        return costs

    def entry_facts(entry: VerifiedEntry) -> EntryFacts:
        tensors = program.image.tensors
        return EntryFacts(
            entry.workspace_bytes,
            entry.input_sizes,
            entry.state_sizes,
            entry.output_places,
            entry.scratch_bytes,
            entry.command_count,
            timing.program_ticks(profile, known_work(tensors, entry.point, on_chip)),
            checked(row_costs(tensors, entry.point, on_chip)),
        )

    return ProgramFacts(program.constant_sizes, tuple(map(entry_facts, program.entries)))


class InlineVerifier:
    """`Verifier` that has its verdict when `start` returns."""

    def __init__(self, profile: Profile) -> None:
        self._profile = profile
        self._verdicts: list[Verdict] = []

    def start(self, number: int, image: bytes) -> None:
        """Verify it now."""
        self._verdicts.append(judge(number, image, self._profile))

    def poll(self) -> list[Verdict]:
        """Verdicts since the last call."""
        verdicts, self._verdicts = self._verdicts, []
        return verdicts

    def fds(self) -> list[int]:
        """None."""
        return []

    def next_deadline_ns(self) -> int | None:
        """Never."""
        return None

    def cancel_all(self) -> None:
        """Drop verdicts that nobody took."""
        self._verdicts = []

    def close(self) -> None:
        """Nothing to do."""
