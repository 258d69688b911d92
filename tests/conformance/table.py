"""What became of the cases, counted."""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from tests.conformance.cases import KINDS, all_cases
from tests.conformance.excluded import Reason
from tests.support.paths import ROOT

PAGE = ROOT / "docs" / "conformance.md"
REFUSED = ROOT / "tests" / "conformance" / "refused.txt"


class Outcome(enum.StrEnum):
    """How a case ended."""

    EXCLUDED = "excluded"
    PASSED = "passed"
    REFUSED = "refused"
    WRONG = "wrong"


class Result(NamedTuple):
    """One case that ran."""

    case: str
    operator: str
    outcome: Outcome
    reason: Reason | None = None
    """Of an excluded one."""


COUNTED = (Outcome.PASSED, Outcome.REFUSED, Outcome.WRONG)
"""Of those that are not excluded."""


def summary(results: Sequence[Result]) -> list[str]:
    """The counts of all, as lines of text."""
    outcomes = Counter(result.outcome for result in results)
    reasons = Counter(result.reason for result in results if result.reason)
    rest = sum(outcomes[outcome] for outcome in COUNTED)
    share = f" ({100 * outcomes[Outcome.PASSED] / rest:.1f} %)" if rest else ""
    return [
        f"{len(results)} cases of {len(all_cases())}",
        f"{outcomes[Outcome.EXCLUDED]} excluded:",
        *(f"    {reasons[reason]:5} {reason}" for reason in Reason),
        f"{rest} that count:",
        f"    {outcomes[Outcome.PASSED]:5} passed{share}",
        f"    {outcomes[Outcome.REFUSED]:5} refused",
        f"    {outcomes[Outcome.WRONG]:5} WRONG",
    ]


def rows(results: Iterable[Result]) -> list[tuple[str, Counter[Outcome]]]:
    """The outcomes of each operator, and of each kind of whole models after them."""
    counts: dict[str, Counter[Outcome]] = {}
    for result in results:
        counts.setdefault(result.operator, Counter())[result.outcome] += 1
    return sorted(counts.items(), key=lambda row: (row[0] in KINDS, row[0].lower()))


def lacking(results: Iterable[Result]) -> list[str]:
    """One line for each operator that lacks something."""
    return [
        f"{name:34} " + " ".join(f"{counts[outcome]:4} {outcome}" for outcome in COUNTED)
        for name, counts in rows(results)
        if counts[Outcome.REFUSED] or counts[Outcome.WRONG]
    ]


def page(results: Sequence[Result]) -> str:
    """docs/conformance.md of a run of all cases."""
    import onnx

    lines = [f"| {name} | {_cells(counts)} |" for name, counts in rows(results)]
    return _PAGE.format(version=onnx.__version__, summary="\n".join(summary(results)), rows="\n".join(lines))


def _cells(counts: Counter[Outcome]) -> str:
    return " | ".join(str(counts[outcome] or "") for outcome in (*COUNTED, Outcome.EXCLUDED))


def listed_refusals() -> set[str]:
    """The cases of refused.txt."""
    return set(REFUSED.read_text("utf-8").split())


def remove_refusals(results: Iterable[Result]) -> list[str]:
    """Take what is refused no longer off refused.txt; the cases that it was."""
    listed = listed_refusals()
    mended = listed & {result.case for result in results if result.outcome is not Outcome.REFUSED}
    if mended:
        REFUSED.write_text("".join(f"{case}\n" for case in sorted(listed - mended)), "utf-8")
    return sorted(mended)


_PAGE = """\
# Conformance: ONNX's own backend suite on the device

`sdk.onnx_backend` is ONNX's interface to what runs models (`onnx.backend.base.Backend`). `make conformance` has the
suite that comes with onnx {version} run through it: every node case, the simple, PyTorch-converted and PyTorch-operator
models, and the real networks whose data is in the wheel. Each runs on the emulator's process with the suite's own
tolerances (but float16 has two units in the last place, as the suite gives bfloat16, and two cases have more room, in
which what is expected is inexact); nothing falls back to the host, and onnxruntime is barred from every process that
takes part.

Excluded are only cases that are no demand on a device for inference, each for one of five reasons:
`tests/conformance/excluded.py` has them, by operator, name, and the tensors' types. They run all the same, and must be
refused or right. A refusal of a case that counts is a known gap, kept in `tests/conformance/refused.txt`, which only
shrinks: a case that passes while it is listed fails until it is taken off. A wrong result always fails.

```
{summary}
```

By operator, that of a node case, whether it runs as one node or as the function that ONNX defines it by; the other
models at the end, by kind.

| | passed | refused | wrong | excluded |
|---|---|---|---|---|
{rows}

This page is written by `make conformance WRITE=1`.
"""
