"""The time that `import sdk` and the first `Device()` take, each in a fresh process."""

from __future__ import annotations

import json
import subprocess
import sys

from benchmarks.figures import Figure

ATTEMPTS = 7
ATTEMPT_TIMEOUT_S = 60
IMPORT_S, FIRST_DEVICE_S = 0.25, 0.6
_PROGRAM = """
import json, sys, time
began = time.perf_counter()
import sdk
imported = time.perf_counter()
device = sdk.Device("emulator")
opened = time.perf_counter()
device.close()
sys.stdout.write(json.dumps([imported - began, opened - imported]))
"""


def figures() -> list[Figure]:
    """Minima: anything above is the machine's other work."""
    samples = [_attempt() for _ in range(ATTEMPTS)]
    importing, opening = (min(column) for column in zip(*samples, strict=True))
    return [
        Figure("import sdk", importing, "s", budget=IMPORT_S),
        Figure("first Device()", opening, "s", budget=FIRST_DEVICE_S),
    ]


def _attempt() -> tuple[float, float]:
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM], stdout=subprocess.PIPE, check=True, timeout=ATTEMPT_TIMEOUT_S
    )
    importing, opening = json.loads(done.stdout)
    return importing, opening
