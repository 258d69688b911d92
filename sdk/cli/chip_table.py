"""What a run takes on several chips, side by side: for people in 80 columns, for programs as records."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.table import Column, Table

from emulator.model.profile import named_profile

if TYPE_CHECKING:
    from sdk.compiler.estimate import Estimate
    from sdk.compiler.program import Program


class ChipEstimate(NamedTuple):
    """A chip as it was named, and what a run takes there, or why it cannot be told."""

    target: str
    estimate: Estimate | None
    refusal: str | None

    def record(self) -> dict[str, Any]:
        """For programs."""
        estimate = None if self.estimate is None else estimate_record(self.estimate)
        return {"target": self.target, "estimate": estimate, "refusal": self.refusal}


def on_chips(program: Program, targets: Sequence[str]) -> list[ChipEstimate]:
    """A program on each of these chips. Raises ValueError, OSError for what is no chip."""
    from emulator.model.profile import load_profile
    from emulator.model.timing import NoRate

    found = []
    for target in targets:
        load_profile(named_profile(target))
        try:
            found.append(ChipEstimate(target, program.estimate(named_profile(target)), None))
        except NoRate as error:
            found.append(ChipEstimate(target, None, str(error)))
    return found


def estimate_record(estimate: Estimate) -> dict[str, Any]:
    """An estimate for programs; what is the chip's time, not this machine's, is called so."""
    return {
        "profile": estimate.profile,
        "device_model_latency_ticks": estimate.latency_ticks,
        "device_model_latency_seconds": estimate.latency_seconds,
        "device_model_bound_ticks": estimate.bound_ticks,
        "device_model_bound_seconds": estimate.bound_seconds,
        "device_model_runs_per_second": estimate.runs_per_second,
        "device_model_energy_joules": None if estimate.energy_joules is None else list(estimate.energy_joules),
        "utilisation": estimate.utilisation,
        "binding": estimate.binding,
        "memory_bytes": estimate.memory_bytes,
        "fits": estimate.fits,
        "bounds_only_without": list(estimate.bounds_only_without),
        "macs": estimate.macs,
        "moved_bytes": estimate.moved_bytes,
        "commands": [each._asdict() for each in estimate.commands],
    }


def table_of(chips: Sequence[ChipEstimate]) -> Table:
    """A row for each chip."""
    numbers = ("latency", "roofline", "use", "runs/s", "joules a run")
    columns = [
        Column("chip", overflow="fold", min_width=12),
        *(Column(name, justify="right", no_wrap=True) for name in numbers),
    ]
    table = Table(*columns, Column("binds", no_wrap=True), box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for chip in chips:
        table.add_row(chip.target, *_cells(chip.estimate))
    return table


def _cells(estimate: Estimate | None) -> list[str]:
    if estimate is None:
        return ["-"] * 6
    joules, runs = estimate.energy_joules, estimate.runs_per_second
    return [
        (">= " if estimate.bounds_only_without else "") + time_text(estimate.latency_seconds),
        time_text(estimate.bound_seconds),
        f"{estimate.utilisation:.1%}",
        "-" if runs is None else ("<= " if estimate.bounds_only_without else "") + f"{runs:,.0f}",
        "-" if joules is None else f"{joules[0]:.2g} to {joules[1]:.2g}",
        str(estimate.binding),
    ]


def remarks_on(chips: Sequence[ChipEstimate]) -> list[str]:
    """What a table has no room for."""
    found = []
    for chip in chips:
        if chip.estimate is None:
            found.append(str(chip.refusal))
            continue
        if lacking := chip.estimate.bounds_only_without:
            found.append(f"{chip.target}: bounds only, for lack of its {', '.join(lacking)}")
        if not chip.estimate.fits:
            found.append(f"{chip.target}: a run takes {chip.estimate.memory_bytes:,} bytes, more than its memory has")
    return found


def time_text(seconds: float) -> str:
    """Three digits or more, in the unit that suits."""
    for factor, unit in ((1, "s"), (1e3, "ms")):
        if seconds * factor >= 1:
            return f"{_digits(seconds * factor)} {unit}"
    return f"{_digits(seconds * 1e6)} us"


def _digits(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:.1f}" if number >= 10 else f"{number:.2f}"
