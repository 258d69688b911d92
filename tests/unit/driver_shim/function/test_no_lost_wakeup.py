"""No interleaving of host and device loses a wake-up; every fence and re-check is needed for that.

An exhaustive exploration: both sides are small programs over shared words, every load, store and fence a step of its
own. A store goes into its side's buffer and reaches memory at any later time; `Full` waits until the buffer is empty.
In the model `TSO` a buffer drains in order (x86-64); in `WEAK` stores to different words drain in any order (AArch64).
Bells are words too: they may be delayed or overtake other stores. `docs/wakeups.md` tells the same protocols in words.

A wake-up is lost when nothing can move any more (all buffers empty, no bell on the way) and yet a side sleeps while
there is work for it. Indices count modulo 4 here, so that all of them wrap.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest

from driver_shim.protocol import ring
from driver_shim.protocol.ring import advance, need_event, occupied, phase_of

MODULUS = 4
ENTRIES = 2
BUFFER_STORES = 3
"""A further store waits for one of these to drain, so that the exploration is finite."""
STATE_LIMIT = 1_000_000
"""Keeps a mistake in a program from filling the memory."""
TSO, WEAK = "TSO", "WEAK"


class Words(dict[str, int]):
    """Registers or shared memory by name; whatever was never stored is 0."""

    def __missing__(self, name: str) -> int:
        return 0

    def having(self, name: str, value: int) -> Words:
        """The same with one word replaced."""
        return Words({**self, name: value})

    def frozen(self) -> tuple[tuple[str, int], ...]:
        """A hashable form, the same for equal contents."""
        return tuple(sorted((name, value) for name, value in self.items() if value))


Name = str | Callable[[Words], str]
"""A shared word, or how to compute which one from the registers."""
Compute = Callable[[Words], int]


class Store(NamedTuple):
    """Put a value into the store buffer."""

    word: Name
    value: Compute


class Load(NamedTuple):
    """Read a word: the youngest store of one's own still in the buffer, else memory."""

    register: str
    word: Name


class Full(NamedTuple):
    """Go on only with an empty store buffer."""

    who: str


class Choose(NamedTuple):
    """Continue with each of these values."""

    register: str
    values: tuple[int, ...]


class TakeBell(NamedTuple):
    """Clear a bell, whether or not it rang."""

    bell: str


class Sleep(NamedTuple):
    """Wait until a bell rings, and clear it."""

    bell: str


class Poll(NamedTuple):
    """Wait, awake, until a shared word satisfies a condition."""

    word: str
    condition: Callable[[Words, int], bool]


class Let(NamedTuple):
    """Compute a register (touches nothing shared: no step of its own)."""

    register: str
    value: Compute


class Jump(NamedTuple):
    """Continue at a label if the condition holds."""

    label: str
    condition: Compute = lambda _: True


class Stop(NamedTuple):
    """Nothing more to do."""


class Program:
    """Instructions, with labels (plain strings) resolved.

    `without` drops the fence of that name; `keeps` are the registers that live on when the side is back at its first
    instruction (forgetting the others keeps the exploration small).
    """

    def __init__(self, *lines: Any, keeps: tuple[str, ...], without: str = "") -> None:
        self.keeps = keeps
        self.code: list[Any] = []
        self.labels: dict[str, int] = {}
        for line in lines:
            if isinstance(line, str):
                self.labels[line] = len(self.code)
            elif line != Full(without):
                self.code.append(line)


class Side(NamedTuple):
    """One side's progress: next instruction, registers, store buffer (oldest first)."""

    at: int
    registers: tuple[tuple[str, int], ...]
    buffer: tuple[tuple[str, int], ...]


class State(NamedTuple):
    """Everything there is at one instant."""

    memory: tuple[tuple[str, int], ...]
    sides: tuple[Side, ...]


def settled(program: Program, at: int, registers: Words, buffer: tuple[tuple[str, int], ...]) -> Side:
    """The side after all instructions from `at` on that touch nothing shared."""
    while isinstance(line := program.code[at], (Let, Jump)):
        if isinstance(line, Let):
            registers = registers.having(line.register, line.value(registers))
            at += 1
        else:
            at = program.labels[line.label] if line.condition(registers) else at + 1
    if at == 0:
        registers = Words({name: registers[name] for name in program.keeps})
    return Side(at, registers.frozen(), buffer)


def execute(program: Program, side: Side, memory: Words) -> Iterator[tuple[Side, Words]]:
    """What the side's next instruction can lead to; nothing while it waits."""
    registers, buffer = Words(side.registers), side.buffer
    outcomes: list[tuple[Words, tuple[tuple[str, int], ...], Words]] = []
    match program.code[side.at]:
        case Store(name, value) if len(buffer) < BUFFER_STORES:
            word = name if isinstance(name, str) else name(registers)
            outcomes = [(registers, (*buffer, (word, value(registers))), memory)]
        case Load(register, name):
            word = name if isinstance(name, str) else name(registers)
            own = [value for stored, value in buffer if stored == word]
            outcomes = [(registers.having(register, own[-1] if own else memory[word]), buffer, memory)]
        case Full() if not buffer:
            outcomes = [(registers, buffer, memory)]
        case Choose(register, values):
            outcomes = [(registers.having(register, value), buffer, memory) for value in values]
        case TakeBell(bell):
            outcomes = [(registers, buffer, memory.having(bell, 0))]
        case Sleep(bell) if memory[bell]:
            outcomes = [(registers, buffer, memory.having(bell, 0))]
        case Poll(word, condition) if condition(registers, memory[word]):
            outcomes = [(registers, buffer, memory)]
    for after, stores, shared in outcomes:
        yield settled(program, side.at + 1, after, stores), shared


def drain(side: Side, memory: Words, model: str) -> Iterator[tuple[Side, Words]]:
    """A buffered store reaches memory: the oldest (TSO), or the oldest of any word (WEAK)."""
    words: set[str] = set()
    for position, (word, value) in enumerate(side.buffer):
        if position == 0 or (model == WEAK and word not in words):
            rest = side.buffer[:position] + side.buffer[position + 1 :]
            yield side._replace(buffer=rest), memory.having(word, value)
        words.add(word)


WorkLeft = Callable[[Words, Words], bool]
"""Whether, from the registers of host and device at rest, one of them sleeps although it has work."""


class Protocol(NamedTuple):
    """Both sides and what would be a lost wake-up."""

    host: Program
    device: Program
    work_left: WorkLeft


def lost_wakeup(protocol: Protocol, model: str) -> State | None:
    """A reachable state of rest with work left, or None after every state has been visited."""
    programs = (protocol.host, protocol.device)
    start = State((), tuple(settled(program, 0, Words(), ()) for program in programs))
    seen, agenda = {start}, deque([start])
    while agenda:
        state = agenda.popleft()
        memory, at_rest = Words(state.memory), True
        for number, program in enumerate(programs):
            side = state.sides[number]
            for moved, shared in (*execute(program, side, memory), *drain(side, memory, model)):
                at_rest = False
                following = State(shared.frozen(), (*state.sides[:number], moved, *state.sides[number + 1 :]))
                if following not in seen:
                    seen.add(following)
                    agenda.append(following)
        if at_rest and protocol.work_left(*(Words(side.registers) for side in state.sides)):
            return state
        if len(seen) > STATE_LIMIT:
            raise RuntimeError(f"more than {STATE_LIMIT} states")
    return None


@pytest.fixture(autouse=True)
def tiny_indices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ring, "INDEX_MASK", MODULUS - 1)


def slot(register: str) -> Callable[[Words], str]:
    """The phase byte of the completion at this register's index."""
    return lambda r: f"phase{r[register] % ENTRIES}"


def submission(without: str = "", rechecks: bool = True) -> Protocol:
    """The host submits 1 or 2 commands at a time, as often as it likes; the device sleeps when it has seen them all."""
    host = Program(
        "idle",
        Choose("count", (0, 1, 2)),
        Jump("stop", lambda r: not r["count"]),
        Poll("sq_head", lambda r, head: occupied(r["tail"], head) + r["count"] <= ENTRIES),
        Let("old", lambda r: r["tail"]),
        Let("tail", lambda r: advance(r["tail"], r["count"])),
        Store("sq_tail", lambda r: r["tail"]),
        Full("host"),
        Load("event", "sq_event"),
        Jump("idle", lambda r: not need_event(r["event"], r["tail"], r["old"])),
        Store("bell", lambda _: 1),
        Jump("idle"),
        "stop",
        Stop(),
        keeps=("tail",),
        without=without,
    )
    device = Program(
        "awake",
        TakeBell("bell"),
        Load("tail", "sq_tail"),
        Jump("work", lambda r: r["tail"] != r["head"]),
        Store("sq_event", lambda r: r["head"]),
        Full("device"),
        Load("tail", "sq_tail"),
        Jump("work", lambda r: rechecks and r["tail"] != r["head"]),
        Sleep("bell"),
        Jump("awake"),
        "work",
        Let("head", lambda r: r["tail"]),
        Store("sq_head", lambda r: r["head"]),
        Jump("awake"),
        keeps=("head",),
        without=without,
    )
    return Protocol(host, device, lambda h, d: h["tail"] != d["head"])


def completion_room(without: str = "", rechecks: bool = True) -> Protocol:
    """The device completes whenever there is room and sleeps when there is none; the host reaps 1 or 2 at a time."""
    host = Program(
        "idle",
        Choose("count", (0, 1, 2)),
        Jump("stop", lambda r: not r["count"]),
        Poll("cq_tail", lambda r, tail: occupied(tail, r["head"]) >= r["count"]),
        Let("old", lambda r: r["head"]),
        Let("head", lambda r: advance(r["head"], r["count"])),
        Store("cq_head", lambda r: r["head"]),
        Full("host"),
        Load("event", "cq_event"),
        Jump("idle", lambda r: not need_event(r["event"], r["head"], r["old"])),
        Store("bell", lambda _: 1),
        Jump("idle"),
        "stop",
        Stop(),
        keeps=("head",),
        without=without,
    )
    device = Program(
        "awake",
        TakeBell("bell"),
        Load("head", "cq_head"),
        Jump("post", lambda r: occupied(r["tail"], r["head"]) < ENTRIES),
        Store("cq_event", lambda r: r["head"]),
        Full("device"),
        Load("head", "cq_head"),
        Jump("post", lambda r: rechecks and occupied(r["tail"], r["head"]) < ENTRIES),
        Sleep("bell"),
        Jump("awake"),
        "post",
        Let("tail", lambda r: advance(r["tail"])),
        Store("cq_tail", lambda r: r["tail"]),
        Jump("awake"),
        keeps=("tail",),
        without=without,
    )
    return Protocol(host, device, lambda h, d: occupied(d["tail"], h["head"]) < ENTRIES)


def interrupt(without: str = "", rechecks: bool = True) -> Protocol:
    """The device completes 1 or 2 commands at a time, as often as it likes; the host sleeps when it has reaped them."""
    device = Program(
        "idle",
        Choose("count", (0, 1, 2)),
        Jump("stop", lambda r: not r["count"]),
        Poll("cq_head", lambda r, head: occupied(r["tail"], head) + r["count"] <= ENTRIES),
        Let("old", lambda r: r["tail"]),
        "post",
        Store(slot("tail"), lambda r: phase_of(r["tail"], ENTRIES)),
        Let("tail", lambda r: advance(r["tail"])),
        Let("count", lambda r: r["count"] - 1),
        Jump("post", lambda r: r["count"]),
        Full("device"),
        Load("wanted", "interrupt_index"),
        Jump("idle", lambda r: not need_event(r["wanted"], r["tail"], r["old"])),
        Store("interrupt", lambda _: 1),
        Jump("idle"),
        "stop",
        Stop(),
        keeps=("tail",),
        without=without,
    )
    host = Program(
        "awake",
        TakeBell("interrupt"),
        Load("phase", slot("head")),
        Jump("reap", lambda r: r["phase"] == phase_of(r["head"], ENTRIES)),
        Store("interrupt_index", lambda r: r["head"]),
        Full("host"),
        Load("phase", slot("head")),
        Jump("reap", lambda r: rechecks and r["phase"] == phase_of(r["head"], ENTRIES)),
        Sleep("interrupt"),
        Jump("awake"),
        "reap",
        Let("head", lambda r: advance(r["head"])),
        Store("cq_head", lambda r: r["head"]),
        Jump("awake"),
        keeps=("head",),
        without=without,
    )
    return Protocol(host, device, lambda h, d: h["head"] != d["tail"])


def one_sleep(without: str = "", rechecks: bool = True) -> Protocol:
    """The device sleeps once for both of its reasons, with one bell and one fence: no command, or no room."""

    def can_work(r: Words) -> bool:
        return r["tail"] != r["head"] and occupied(r["posted"], r["room"]) < ENTRIES

    host = Program(
        "idle",
        Choose("what", (0, 1, 2)),
        Jump("stop", lambda r: not r["what"]),
        Jump("reap", lambda r: r["what"] == 2),
        Jump("idle", lambda r: occupied(r["tail"], r["head"]) == MODULUS - 1),
        Let("tail", lambda r: advance(r["tail"])),
        Store("sq_tail", lambda r: r["tail"]),
        Full("host-submits"),
        Load("event", "sq_event"),
        Jump("idle", lambda r: not need_event(r["event"], r["tail"], r["tail"] - 1)),
        Store("bell", lambda _: 1),
        Jump("idle"),
        "reap",
        Jump("idle", lambda r: r["tail"] == r["head"]),
        Poll("cq_tail", lambda r, tail: tail != r["head"]),
        Let("head", lambda r: advance(r["head"])),
        Store("cq_head", lambda r: r["head"]),
        Full("host-reaps"),
        Load("event", "cq_event"),
        Jump("idle", lambda r: not need_event(r["event"], r["head"], r["head"] - 1)),
        Store("bell", lambda _: 1),
        Jump("idle"),
        "stop",
        Stop(),
        keeps=("tail", "head"),
        without=without,
    )
    device = Program(
        "awake",
        TakeBell("bell"),
        Load("tail", "sq_tail"),
        Load("room", "cq_head"),
        Jump("work", can_work),
        Store("sq_event", lambda r: r["tail"]),
        Store("cq_event", lambda r: r["room"]),
        Full("device"),
        Load("tail", "sq_tail"),
        Load("room", "cq_head"),
        Jump("work", lambda r: rechecks and can_work(r)),
        Sleep("bell"),
        Jump("awake"),
        "work",
        Let("head", lambda r: advance(r["head"])),
        Let("posted", lambda r: advance(r["posted"])),
        Store("cq_tail", lambda r: r["posted"]),
        Jump("awake"),
        keeps=("head", "posted"),
        without=without,
    )
    return Protocol(host, device, lambda h, d: h["tail"] != d["head"] and occupied(d["posted"], h["head"]) < ENTRIES)


PROTOCOLS = {
    submission: ("host", "device"),
    completion_room: ("host", "device"),
    interrupt: ("host", "device"),
    one_sleep: ("host-submits", "host-reaps", "device"),
}
"""Each protocol with the names of its full fences."""


@pytest.mark.parametrize(
    "protocol",
    [submission, completion_room, interrupt, pytest.param(one_sleep, marks=pytest.mark.slow)],
    ids=lambda protocol: protocol.__name__,
)
def test_no_wakeup_is_lost(protocol: Callable[..., Protocol]) -> None:
    # WEAK can do whatever TSO can.
    assert lost_wakeup(protocol(), WEAK) is None


@pytest.mark.parametrize(
    ("protocol", "fence"),
    [(protocol, fence) for protocol, names in PROTOCOLS.items() for fence in names],
    ids=lambda part: part if isinstance(part, str) else part.__name__,
)
def test_without_any_one_fence_a_wakeup_is_lost_even_on_x86(protocol: Callable[..., Protocol], fence: str) -> None:
    assert lost_wakeup(protocol(without=fence), TSO) is not None


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=lambda protocol: protocol.__name__)
def test_without_the_second_look_a_wakeup_is_lost(protocol: Callable[..., Protocol]) -> None:
    assert lost_wakeup(protocol(rechecks=False), TSO) is not None
