"""What is left in a program's states: by one that ends, by one that fails, and by whatever else can end it.

`docs/reset.md` has the same as a table. The program is made by hand: it updates one state, computes for long, and
updates another; between the two its engine is ended in every way there is.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from driver_shim.protocol import commands as c
from driver_shim.protocol.commands import AdminOpcode, IoOpcode, Status
from driver_shim.protocol.config_space import DEVICE_CONTROL_INITIATE_FLR, EXPRESS
from driver_shim.protocol.program import (
    Binding,
    Command,
    EntryPoint,
    Program,
    Storage,
    Tensor,
    TensorType,
    build,
    make_attributes,
)
from driver_shim.protocol.program_commands import CommandKind, ScatterMode, UnaryFunction
from driver_shim.protocol.program_parsing import parse
from driver_shim.protocol.types import WireType
from emulator.model.verify import ProgramRejected, verify
from tests.support.bus_client import BusClient, RawQueue, text
from tests.support.children import children_that_run, ends
from tests.support.rigs import Rig, process_rig

BAR4 = 4
ROWS, COLUMNS = 4, 4
LONG = (1024, 1024)
STEPS = 3000
"""Some 10 ms each: far longer than a test may be starved."""
LONG_BYTES = 4 * LONG[0] * LONG[1]
STATE_BYTES = 4 * ROWS * COLUMNS
UPDATE, INDEX, BIG, OUTPUT, FIRST, SECOND, WORKSPACE = (0x1000 * at for at in (1, 2, 0x1000, 0x2000, 3, 4, 0x3000))
OLD = np.full((1, ROWS, COLUMNS), 1.5, np.float32)
NEW = np.full((1, 1, COLUMNS), 7.0, np.float32)
TABLE_TITLE = "What is left in states"
STATES_PAGE = Path(__file__).resolve().parents[2] / "docs/reset.md"

Array = NDArray[Any]


def program(steps: int) -> bytes:
    """first, second: states. Writes `update` into `first` at `index`, computes, writes it into `second`."""
    state, row = TensorType(WireType.FLOAT32, (1, ROWS, COLUMNS)), TensorType(WireType.FLOAT32, (1, 1, COLUMNS))
    long, index = TensorType(WireType.FLOAT32, LONG), TensorType(WireType.INT64, (1,))
    tensors = [
        Tensor(row, Storage.INPUT),
        Tensor(index, Storage.INPUT),
        Tensor(long, Storage.INPUT),
        Tensor(long, Storage.OUTPUT),
        Tensor(state, Storage.STATE),
        Tensor(state, Storage.STATE),
    ]
    scatter = make_attributes(CommandKind.TENSOR_SCATTER, axis=1, mode=ScatterMode.LINEAR)
    error_function = make_attributes(CommandKind.UNARY, function=UnaryFunction.ERF)
    commands = [Command(CommandKind.TENSOR_SCATTER, scatter, (4, 0, 1), (4,))]
    source = 2
    for step in range(steps):
        last = step == steps - 1
        if not last:
            tensors.append(Tensor(long, Storage.WORKSPACE, step % 2 * LONG_BYTES))
        target = 3 if last else len(tensors) - 1
        commands.append(Command(CommandKind.UNARY, error_function, (source,), (target,)))
        source = target
    commands.append(Command(CommandKind.TENSOR_SCATTER, scatter, (5, 0, 1), (5,)))
    inputs = (Binding("update", 0), Binding("index", 1), Binding("big", 2))
    states = (Binding("first", 4), Binding("second", 5))
    entry = EntryPoint(tuple(commands), inputs, (Binding("output", 3),), 2 * LONG_BYTES, states)
    return build(Program(tuple(tensors), (entry,)))


class Subject:
    """A device with both states full of old values, and a program ready to run."""

    def __init__(self, rig: Rig, steps: int) -> None:
        self.rig = rig
        self.client = client = BusClient(rig.transport).enable()
        self.memory = np.frombuffer(client.transport.map_region(BAR4, 0, 1 << 26), np.uint8)
        self.queue = client.queue(1)
        self.write(FIRST, OLD)
        self.write(SECOND, OLD)
        self.write(UPDATE, NEW)
        self.write(INDEX, np.array([2], np.int64))
        self.load(program(steps))

    def load(self, image: bytes) -> None:
        iova, view = self.client.allocate(len(image))
        view[:] = image
        load = {"source": iova, "size": len(image)}
        done = self.client.admin(c.LOAD_PROGRAM, AdminOpcode.LOAD_PROGRAM, **load)
        assert done.status == 0, text(self.client.newest_error())
        self.handle = int(done.result)

    def write(self, address: int, array: Array) -> None:
        self.memory[address : address + array.nbytes] = array.view(np.uint8).reshape(-1)

    def state(self, address: int) -> Array:
        return self.memory[address : address + STATE_BYTES].view(np.float32).reshape(OLD.shape).copy()

    def execute(self) -> bytes:
        """The exec entry."""
        iova, view = self.client.allocate(4096)
        places = [(UPDATE, 16), (INDEX, 8), (BIG, LONG_BYTES), (OUTPUT, LONG_BYTES)]
        places += [(FIRST, STATE_BYTES), (SECOND, STATE_BYTES)]
        table = b"".join(c.BINDING.build(address=address, size=size) for address, size in places)
        view[: len(table)] = table
        fields = {"program": self.handle, "binding_count": len(places), "bindings": iova, "workspace": WORKSPACE}
        return c.EXEC.build(opcode=IoOpcode.EXEC, **fields)

    def begin(self) -> RawQueue:
        """Start the program, and wait until it has updated the first state and computes."""
        self.queue.put(self.execute())
        self.queue.ring()
        self.client.wait_until(lambda: bool((self.state(FIRST) == 7.0).any()), "the first update")
        return self.queue

    def engine(self) -> int:
        """Process id of the engine that runs it: the one that uses the CPU."""
        assert self.rig.pid is not None
        workers = children_that_run(self.rig.pid, "emulator.engines.worker")

        def used(pid: int) -> int:
            return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11])

        return max(workers, key=used)


@pytest.fixture
def rig() -> Iterator[Rig]:
    with process_rig() as opened:
        yield opened


def updated() -> Array:
    expected = OLD.copy()
    expected[0, 2] = 7.0
    return expected


def test_a_program_that_ends_leaves_its_updates_and_nothing_else(rig: Rig) -> None:
    subject = Subject(rig, steps=1)
    assert subject.queue.run(subject.execute())[0].status == Status.SUCCESS
    assert (subject.state(FIRST) == updated()).all() and (subject.state(SECOND) == updated()).all()
    subject.write(INDEX, np.array([0], np.int64))
    assert subject.queue.run(subject.execute())[0].status == Status.SUCCESS
    twice = updated()
    twice[0, 0] = 7.0
    assert (subject.state(FIRST) == twice).all()


def test_a_command_that_fails_leaves_the_updates_before_it_and_none_of_its_own(rig: Rig) -> None:
    subject = Subject(rig, steps=1)
    subject.write(INDEX, np.array([ROWS], np.int64))
    done = subject.queue.run(subject.execute())[0]
    assert (done.status, done.result) == (Status.INDEX_OUT_OF_RANGE, 0)
    assert (subject.state(FIRST) == OLD).all() and (subject.state(SECOND) == OLD).all()
    subject.load(late_fault())
    subject.write(INDEX, np.array([1], np.int64))
    done = subject.queue.run(subject.execute())[0]
    assert (done.status, done.result) == (Status.INDEX_OUT_OF_RANGE, 2)
    assert (subject.state(FIRST)[0, 1] == 7.0).all() and (subject.state(SECOND) == OLD).all()


def late_fault() -> bytes:
    """As `program`, but the last update begins where there is no room for it: at the index times itself, plus more."""
    parsed = parse(program(1))
    (entry,) = parsed.entries
    first, compute, _ = entry.commands
    wide = TensorType(WireType.FLOAT32, (1, ROWS, COLUMNS))
    tensors = (*parsed.tensors, Tensor(wide, Storage.WORKSPACE, 2 * LONG_BYTES))
    copy = make_attributes(CommandKind.UNARY, function=UnaryFunction.NEG)
    scatter = make_attributes(CommandKind.TENSOR_SCATTER, axis=1, mode=ScatterMode.LINEAR)
    commands = (
        first,
        Command(CommandKind.UNARY, copy, (5,), (len(tensors) - 1,)),
        Command(CommandKind.TENSOR_SCATTER, scatter, (5, len(tensors) - 1, 1), (5,)),
        compute,
    )
    point = EntryPoint(commands, entry.inputs, entry.outputs, 3 * LONG_BYTES, entry.states)
    return build(Program(tensors, (point,)))


def kill(subject: Subject) -> None:
    engine = subject.engine()
    os.kill(engine, signal.SIGKILL)
    assert subject.queue.take()[0].status == Status.ENGINE_LOST
    assert ends(engine)


def delete_queue(subject: Subject) -> None:
    done = subject.client.admin(c.DELETE_QUEUE, AdminOpcode.DELETE_QUEUE, queue=1)
    assert done.status == 0


def disable(subject: Subject) -> None:
    subject.client.registers.control.write(enable=0)
    subject.client.wait_until(lambda: subject.client.registers.status.ready == 0, "disabled")


def device_reset(subject: Subject) -> None:
    subject.client.transport.reset()


def function_level_reset(subject: Subject) -> None:
    at = EXPRESS.offset + EXPRESS.layout.offset_of("device_control")
    transport = subject.client.transport
    control = int.from_bytes(transport.config_read(at, 2), "little") | DEVICE_CONTROL_INITIATE_FLR
    transport.config_write(at, control.to_bytes(2, "little"))


EVENTS: dict[str, tuple[Callable[[Subject], None], str]] = {
    "engine dies": (kill, "undefined"),
    "queue delete": (delete_queue, "undefined"),
    "controller disable": (disable, "undefined"),
    "function level reset": (function_level_reset, "zeroed"),
    "`DEVICE_RESET`": (device_reset, "zeroed"),
}


@pytest.mark.parametrize("event", EVENTS)
def test_nothing_writes_states_after_what_ended_the_program(rig: Rig, event: str) -> None:
    """Once the event is over its memory may be given to anybody: the engine that had it has ended."""
    subject = Subject(rig, STEPS)
    subject.begin()
    engine = subject.engine()
    happen, left = EVENTS[event]
    happen(subject)
    assert not os.path.exists(f"/proc/{engine}")  # ended, and reaped
    second = subject.state(SECOND)
    if left == "zeroed":
        assert not subject.memory[FIRST : SECOND + STATE_BYTES].any()
    else:
        assert (second == OLD).all()  # which the program had not come to
        assert ((subject.state(FIRST) == OLD) | (subject.state(FIRST) == 7.0)).all()


def test_the_page_says_so() -> None:
    page = STATES_PAGE.read_text().split(f"## {TABLE_TITLE}")[1]
    rows = {cells[0]: cells[1] for line in page.splitlines() if (cells := [x.strip() for x in line.split("|")[1:-1]])}
    for event, (_, left) in EVENTS.items():
        assert rows[event].startswith(left), event
    assert rows["exec that completes"].startswith("as its commands left them")
    assert rows["exec that fails by its data"].startswith("updates of the commands before")


ADD_STATE = TensorType(WireType.FLOAT32, (1, 2, 2))


@pytest.mark.parametrize(
    ("inputs", "output", "reason"),
    [
        ((0, 1), 3, "writes the state 3 without updating it in place"),
        ((2, 1), 3, "writes the state 3 without updating it in place"),
        ((2, 2), 2, "writes the state 2 without updating it in place"),
    ],
)
def test_a_state_is_written_only_by_what_updates_it_in_place(inputs: tuple[int, int], output: int, reason: str) -> None:
    kinds = (Storage.INPUT, Storage.INPUT, Storage.STATE, Storage.STATE)
    tensors = tuple(Tensor(ADD_STATE, kind) for kind in kinds)
    scatter = make_attributes(CommandKind.TENSOR_SCATTER, axis=1)
    command = Command(CommandKind.TENSOR_SCATTER, scatter, inputs, (output,))
    states = (Binding("a", 2), Binding("b", 3))
    entry = EntryPoint((command,), (Binding("x", 0), Binding("y", 1)), (), 0, states)
    with pytest.raises(ProgramRejected, match=reason):
        verify(build(Program(tensors, (entry,))))


def test_kinds_that_do_not_update_never_write_a_state() -> None:
    tensors = (Tensor(ADD_STATE, Storage.STATE),)
    negate = make_attributes(CommandKind.UNARY, function=UnaryFunction.NEG)
    entry = EntryPoint((Command(CommandKind.UNARY, negate, (0,), (0,)),), (), (), 0, (Binding("s", 0),))
    with pytest.raises(ProgramRejected, match="writes the state 0 without updating it in place"):
        verify(build(Program(tensors, (entry,))))
