"""The published models beside onnxruntime, as `docs/models.md` lists them: `python -m benchmarks.zoo [--write]`."""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx

import sdk
from benchmarks.models import engine_threads
from benchmarks.onnxruntime_peer import Arrays, Peer
from sdk.cli.measurements import timed_rounds
from tests.models import zoo
from tests.support.onnxruntime_peer import run as reference
from tests.support.paths import DOCS

PAGE = DOCS / "models.md"
BEGIN, END = "<!-- measured: python -m benchmarks.zoo --write -->\n", "<!-- end -->\n"
ROUNDS, BLOCKS = 7, 3
OWN_KERNELS = "emulator:generic?kernels=numpy&core=none"
ALL_KERNELS = "emulator:generic?core=none"
HEADER = (
    "| package | version | file | what it does | agrees to | kernels of its commands | time | onnxruntime |\n"
    "|---|---|---|---|---|---|---|---|\n"
)


class Measured(NamedTuple):
    """What was found of one model."""

    difference: float
    """Largest, of an output's largest number, with our own kernels."""
    kernels: Counter[str]
    """Commands by who provides their kernels when all may."""
    seconds: float
    peer_seconds: float

    def row(self, entry: zoo.Entry) -> str:
        """Of the page's table."""
        providers = ", ".join(f"{name} {count}" for name, count in sorted(self.kernels.items()))
        agrees = "the bit" if not self.difference else f"{self.difference:.0e}"
        times = " | ".join(f"{seconds * 1e3:.3g} ms" for seconds in (self.seconds, self.peer_seconds))
        model = f"{entry.package} | {entry.version} | `{entry.short_file}` | {entry.does}"
        return f"| {model} | {agrees} | {providers} | {times} |\n"


def measure(entry: zoo.Entry, peer: Peer, threads: int) -> Measured:
    """One model, ours and onnxruntime's in turns."""
    model, inputs = entry.model(), dict(entry.inputs())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        onnx.save(model, path)
        with sdk.Device(OWN_KERNELS) as device:
            difference = _difference(device.load(path, fallback=entry.fallback)(inputs), reference(path, inputs))
        ours, theirs = [], []
        with sdk.Device(ALL_KERNELS) as device:
            loaded = device.load(path, fallback=entry.fallback)
            loaded(inputs)
            for _ in range(BLOCKS):
                ours.append(statistics.median(timed_rounds(lambda: loaded(inputs), ROUNDS)))
                theirs.append(peer.seconds(path, inputs, threads, ROUNDS))
            kernels = _carried_out(loaded, entry)
    return Measured(difference, kernels, min(ours), min(theirs))


def _difference(results: Arrays, expected: Arrays) -> float:
    return max(
        float(np.abs(results[name].astype(np.float64) - array).max() / (np.abs(array).max() or 1))
        for name, array in expected.items()
    )


def _carried_out(loaded: Any, entry: zoo.Entry) -> Counter[str]:
    """Commands of the newest run by whose kernels they had; of a model in parts, its nodes by where they run."""
    if entry.fallback == "cpu":
        return Counter(f"nodes on the {placement.where.value}" for placement in loaded.report)
    return Counter(run.kernel.partition(".")[0] for run in loaded.command_runs())


def table() -> str:
    """Markdown, a row a model whose files are here."""
    rows = [HEADER]
    threads = engine_threads()
    with Peer() as peer:
        for entry in zoo.ZOO:
            if reason := entry.missing():
                sys.stderr.write(f"{entry.name} is left out: {reason}\n")
            else:
                rows.append(measure(entry, peer, threads).row(entry))
                sys.stderr.write(rows[-1])
    return "".join(rows)


def main() -> None:
    """Print the table, or put it into the page."""
    made = table()
    if "--write" not in sys.argv[1:]:
        sys.stdout.write(made)
        return
    text = PAGE.read_text("utf-8")
    before, _, rest = text.partition(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n{made}\n{END}{rest.partition(END)[2]}", "utf-8")


if __name__ == "__main__":
    main()
