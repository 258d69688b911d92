"""One measured figure, its peer and its budget."""

from __future__ import annotations

import dataclasses
from typing import Any

MICRO, MILLI, GIGA, MEGA = 1e-6, 1e-3, 1e9, 1e6
_SCALES = {"µs": MICRO, "ms": MILLI, "s": 1.0, "M/s": MEGA, "GB/s": GIGA, "%": 0.01, "×": 1.0, "B": 1.0}


@dataclasses.dataclass(frozen=True)
class Figure:
    """A value in base units (seconds, per second, ratio), shown in `unit`."""

    name: str
    value: float
    unit: str
    peer: str | None = None
    peer_value: float | None = None
    budget: float | None = None
    """Bound on `value`; None where there is none."""
    at_least: bool = False
    """Whether the budget is a floor rather than a ceiling."""

    @property
    def holds(self) -> bool | None:
        """Whether the budget is met; None without one."""
        if self.budget is None:
            return None
        return self.value >= self.budget if self.at_least else self.value <= self.budget

    def shown(self, value: float | None) -> str:
        """A value in this figure's unit."""
        return "" if value is None else f"{value / _SCALES[self.unit]:,.4g} {self.unit}"

    def row(self) -> tuple[str, str, str, str, str]:
        """Name, ours, peer, budget, verdict."""
        peer = f"{self.shown(self.peer_value)} {self.peer or ''}".strip()
        bound = "" if self.budget is None else f"{'≥' if self.at_least else '≤'} {self.shown(self.budget)}"
        verdict = {True: "holds", False: "MISSED", None: ""}[self.holds]
        return self.name, self.shown(self.value), peer, bound, verdict

    def entry(self) -> dict[str, Any]:
        """As JSON."""
        return {**dataclasses.asdict(self), "holds": self.holds}
