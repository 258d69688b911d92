"""The peer: PoCL, OpenCL on this machine's CPU, through pyopencl."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np

from sdk.cli.measurements import MEBIBYTE, Spread, timed_rounds, warm_up

ROUNDS = 5_000
COPY_ROUNDS = 15
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

    warm_up(once)
    return Spread.of(timed_rounds(once, ROUNDS))


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


def probe() -> tuple[str | None, str | None]:
    """(version of the PoCL that can be measured, None), or (None, why there is none)."""
    try:
        return _open()[2], None
    except (ImportError, LookupError) as error:
        return None, str(error)
