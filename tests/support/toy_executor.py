"""An executor for tests of the engines: a program is lines of text, each a command.

`copy BYTES` copies input 0 to the start of scratch, `constant BYTES` the constants, `sleep SECONDS`, `spin` (for ever),
`fault STATUS`, `die`, `crash` (a programming error), `poke` (writes device memory), `import NAME`, `environment NAME`
(its value, to scratch), `nothing`.
"""

from __future__ import annotations

import importlib
import os
import signal
import time
from collections.abc import Sequence
from typing import Any

from driver_shim.protocol.commands import Status
from emulator.engines.job import KernelRun, ProgramFault


def load(image: memoryview) -> list[list[str]]:
    """The commands of a program."""
    return [line.split() for line in bytes(image).decode().splitlines()]


def execute(
    program: list[list[str]],
    *,
    memory: memoryview,
    constants_address: int,
    inputs: Sequence[int],
    scratch: memoryview,
    kernels: str,
) -> list[KernelRun]:
    """Carry the commands out."""
    report = []
    for index, (name, *arguments) in enumerate(program):
        _command(index, name, arguments, memory, constants_address, inputs, scratch)
        report.append(KernelRun(f"{kernels}.{name}", index + 1))
    return report


def _command(
    index: int,
    name: str,
    arguments: list[str],
    memory: memoryview,
    constants_address: int,
    inputs: Sequence[int],
    scratch: memoryview,
) -> Any:
    if name in ("copy", "constant"):
        start, size = inputs[0] if name == "copy" else constants_address, int(arguments[0])
        scratch[:size] = memory[start : start + size]
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
