"""The peer: PoCL, OpenCL on this machine's CPU, through pyopencl."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from benchmarks.raw import busy_neighbours
from sdk.cli.measurements import MEBIBYTE, Spread, best_spread, timed_rounds, warm_up

ROUNDS = 8_000
COPY_ROUNDS = 15
TIMEOUT_S = 300
_EMPTY_KERNEL = "__kernel void empty(void) {}"


def _open() -> tuple[Any, Any, str]:
    """(queue, the empty kernel, version of the first PoCL that compiles for this CPU).

    Raises ImportError without pyopencl, LookupError without such a PoCL.
    """
    import pyopencl

    refusals = []
    try:
        platforms = pyopencl.get_platforms()
    except pyopencl.Error as error:
        raise LookupError(f"no OpenCL platform is installed ({error})") from error
    for platform in platforms:
        if "Portable Computing Language" in platform.name:
            context = pyopencl.Context(platform.get_devices())
            try:
                kernel = pyopencl.Kernel(pyopencl.Program(context, _EMPTY_KERNEL).build(), "empty")
            except pyopencl.Error as error:
                # the LLVM inside a PoCL knows only the CPUs of its day
                refusals.append(f"{platform.version}: {[line for line in str(error).splitlines() if 'error:' in line]}")
                continue
            return pyopencl.CommandQueue(context), kernel, platform.version
    raise LookupError("no PoCL here compiles for this CPU; Debian's package pocl-opencl-icd may " + "; ".join(refusals))


def round_trip() -> Spread:
    """Enqueue an empty kernel of one work item and wait for it, one at a time."""
    import pyopencl

    queue, kernel, _ = _open()

    def once() -> None:
        pyopencl.enqueue_nd_range_kernel(queue, kernel, (1,), None).wait()

    return best_spread(once, ROUNDS)


def copies(mebibytes: Sequence[int]) -> dict[int, float]:
    """Size in bytes → median seconds of a copy from a host array to a buffer, pages touched."""
    import pyopencl

    queue, _, _ = _open()
    results = {}
    for size in mebibytes:
        source = np.ones(size * MEBIBYTE, np.uint8)
        target = pyopencl.Buffer(queue.context, pyopencl.mem_flags.READ_WRITE, source.nbytes)
        once = _copy(queue, target, source)
        warm_up(once)
        results[source.nbytes] = statistics.median(timed_rounds(once, COPY_ROUNDS))
        target.release()
    return results


def _copy(queue: Any, target: Any, source: Any) -> Any:
    import pyopencl

    return lambda: pyopencl.enqueue_copy(queue, target, source).wait()


class Peer(NamedTuple):
    """What PoCL measured."""

    version: str
    trip: Spread
    busy_trip: Spread
    """The same beside one busy process per CPU."""
    copies: dict[int, float]
    """Size in bytes → median seconds."""


def measure(mebibytes: Sequence[int]) -> tuple[Peer | None, str]:
    """(PoCL's figures, "") or (None, why there are none).

    In a process of its own: PoCL's threads would slow whatever else is measured in theirs.
    """
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.pocl", *map(str, mebibytes)],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    if done.returncode:
        return None, (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    found = json.loads(done.stdout)
    copied = {int(size): seconds for size, seconds in found["copies"].items()}
    return Peer(found["version"], Spread(*found["trip"]), Spread(*found["busy_trip"]), copied), ""


def main() -> None:
    """The process: measure, print JSON."""
    try:
        version = _open()[2]
    except (ImportError, LookupError) as error:
        sys.exit(str(error))
    mebibytes = [int(argument) for argument in sys.argv[1:]]
    found: dict[str, Any] = {"version": version, "trip": round_trip(), "copies": copies(mebibytes)}
    with busy_neighbours():
        found["busy_trip"] = round_trip()
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
