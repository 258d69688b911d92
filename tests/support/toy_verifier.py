"""A verifier for tests: a container is a word that says what becomes of it. `die`, `hang`, or else it is accepted."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence

from driver_shim.protocol.commands import Status
from emulator.engines.verdict import EntryFacts, ProgramFacts, Verdict
from emulator.engines.verifier_worker import serve
from emulator.model.profile import Profile

FOR_EVER_S = 3600
FACTS = ProgramFacts((4, 0), (EntryFacts(64, (1, 2), (3,), ((64, 5), (128, 6)), 192, 7, 8),))


def judge(number: int, image: memoryview, profile: Profile) -> Verdict:
    """Do as the container says."""
    word = bytes(image).decode()
    if word == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if word == "hang":
        time.sleep(FOR_EVER_S)
    return Verdict(number, Status.SUCCESS, profile.name, FACTS)


def main(arguments: Sequence[str]) -> None:
    """Entry point of the process."""
    serve(arguments, judge)
