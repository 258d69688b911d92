"""An executor for tests of the engines: a program is lines of text, each a command.

`copy BYTES` copies input 0 to the start of scratch, `constant BYTES` constant 0, `update BYTES` input 0 to state 0,
`sleep SECONDS`, `spin` (for ever), `fault STATUS`, `die`, `crash` (a programming error), `poke` (writes device memory),
`import NAME`, `environment NAME` (its value, to scratch), `nothing`.
"""

from __future__ import annotations

import importlib
import os
import signal
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from driver_shim.protocol.commands import Status
from emulator.engines.job import KernelRun, ProgramFault


class Loaded(NamedTuple):
    """A program and the addresses of its constants."""

    commands: list[list[str]]
    constants: Sequence[int]


def load(image: memoryview, constants: Sequence[int]) -> Loaded:
    """The commands of a program."""
    return Loaded([line.split() for line in bytes(image).decode().splitlines()], constants)


def execute(
    program: Loaded,
    entry: int,
    *,
    memory: memoryview,
    inputs: Sequence[int],
    states: Sequence[memoryview],
    scratch: memoryview,
    kernels: str,
) -> list[KernelRun]:
    """Carry the commands out."""
    report = []
    for index, (name, *arguments) in enumerate(program.commands):
        _command(index, name, arguments, program.constants, memory, inputs, states, scratch)
        report.append(KernelRun(f"{kernels}.{name}", index + 1))
    return report


def _command(
    index: int,
    name: str,
    arguments: list[str],
    constants: Sequence[int],
    memory: memoryview,
    inputs: Sequence[int],
    states: Sequence[memoryview],
    scratch: memoryview,
) -> Any:
    if name in ("copy", "constant"):
        start, size = inputs[0] if name == "copy" else constants[0], int(arguments[0])
        scratch[:size] = memory[start : start + size]
    elif name == "update":
        size = int(arguments[0])
        states[0][:size] = memory[inputs[0] : inputs[0] + size]
    elif name == "sleep":
        time.sleep(float(arguments[0]))
    elif name == "spin":
        while True:
            pass
    elif name == "fault":
        raise ProgramFault(Status[arguments[0]], index, f"command {index} was told to fail")
    elif name == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    elif name == "crash":
        raise RuntimeError("a kernel with a programming error (deliberate)")
    elif name == "poke":
        memory[0] = 1
    elif name == "import":
        importlib.import_module(arguments[0])
    elif name == "environment":
        value = os.environ.get(arguments[0], "").encode()
        scratch[: len(value)] = value
