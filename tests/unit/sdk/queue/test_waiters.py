"""Loops of many threads that begin and end to watch one interrupt."""

from __future__ import annotations

import asyncio
import os
import sys
import threading

from sdk.queue.waiters import LoopWatches, OwnedDescriptor
from tests.support.waiting import PATIENCE_S

THREADS, LOOPS = 8, 1500


def test_loops_of_many_threads_come_and_go_at_once() -> None:
    watches = LoopWatches(OwnedDescriptor(os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)))
    errors: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(LOOPS):
                loop = asyncio.new_event_loop()
                watches.begin(loop, lambda watch: None)
                loop.close()
        except BaseException as error:
            errors.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # threads alternate at nearly every step
    try:
        threads = [threading.Thread(target=work) for _ in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE_S)
    finally:
        sys.setswitchinterval(interval)
    assert errors == []


def test_a_closed_loop_is_forgotten_when_the_next_one_comes() -> None:
    watches = LoopWatches(OwnedDescriptor(os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)))
    for _ in range(5):
        loop = asyncio.new_event_loop()
        assert watches.begin(loop, lambda watch: None) is not None
        assert watches.begin(loop, lambda watch: None) is None
        loop.close()
    assert len(watches._watches) == 1
