"""The chip that a program is compiled for, as far as programs depend on it: which types it multiplies."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from emulator.model.profile import RATES, Profile, load_profile, profile_names
from emulator.model.timing import NoRate, macs_per_tick
from sdk.compiler.graph import Graph
from sdk.compiler.ir import Operation
from sdk.compiler.problems import MODEL, Problem, Reason


def known_chip(target: str | Path) -> Profile | None:
    """The chip that a target is; None for a name that no profile has. Raises ProfileError, OSError for a bad file."""
    return load_profile(target) if isinstance(target, Path) or target in profile_names() else None


def key_of(target: str | Path, chip: Profile | None) -> str:
    """What programs for a target depend on."""
    if chip is None or not isinstance(target, Path):
        return str(target)
    return f"{chip.name} with {', '.join(rate for rate in RATES if getattr(chip, rate) is not None)}"


def products_without_rate(graph: Graph, operations: Sequence[Operation], chip: Profile) -> list[Problem]:
    """The nodes that multiply numbers of a type that the chip has no rate for: those of the first such type."""
    if all(getattr(chip, rate) is not None for rate in RATES):
        return []
    subjects = {node.subject.node: node.subject for node in graph.nodes}
    found: dict[str, dict[int, Problem]] = {}
    for operation in operations:
        work = operation.work
        try:
            if work.macs:
                macs_per_tick(chip, work.precision)
        except NoRate as error:
            blamed = next((subjects[name] for name in operation.nodes if name in subjects), MODEL)
            found.setdefault(str(error), {})[blamed.position] = Problem(str(error), blamed, Reason.TYPE)
    return list(next(iter(found.values()), {}).values())
