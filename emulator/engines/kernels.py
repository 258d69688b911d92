"""The kernel of each kind of command: a golden one, or a faster one where there is one.

Fast kernels live in `emulator.engines.fast`; each has a golden kernel's signature and runs one command. They enter
`FAST` by `register`; kinds without one fall back to golden, and reports name the kernel that ran.
"""

from __future__ import annotations

import functools
import importlib
from typing import NamedTuple

from driver_shim.protocol.program_commands import CommandKind
from emulator.engines.job import GOLDEN_PREFIX
from emulator.model.choices import KERNELS
from emulator.model.golden import GOLDEN, Kernel

FAST_PACKAGE = "emulator.engines.fast"


class NamedKernel(NamedTuple):
    """A kernel and what reports call it: "golden.conv", "fast.conv"."""

    name: str
    run: Kernel


FAST: dict[CommandKind, NamedKernel] = {}
"""Fast kernels by kind."""


def register(kind: CommandKind, run: Kernel) -> None:
    """Add a fast kernel. Raises ValueError when the kind has one."""
    if kind in FAST:
        raise ValueError(f"{kind.name} has the fast kernel {FAST[kind].name} already")
    FAST[kind] = NamedKernel(f"fast.{kind.name.lower()}", run)


@functools.cache
def table(kernels: str) -> dict[CommandKind, NamedKernel]:
    """The kernel of every kind for one of `KERNELS`. Raises ValueError for another."""
    if kernels not in KERNELS:
        raise ValueError(f"kernels {kernels!r}; must be one of {', '.join(KERNELS)}")
    golden = {kind: NamedKernel(f"{GOLDEN_PREFIX}{kind.name.lower()}", run) for kind, run in GOLDEN.items()}
    if kernels == "golden":
        return golden
    importlib.import_module(FAST_PACKAGE)  # its modules register their kernels
    return {**golden, **FAST}
