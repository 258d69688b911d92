"""Nothing that a test process does lasts for ever: the test fails, and where that is of no use the process ends.

pytest-timeout says how long each test may take, by its marker, option and setting. When that is over the test fails
where it is, by a signal. Code that no signal interrupts, and all that is no test, meets the second limit: a timer of
faulthandler's, which needs neither the interpreter nor signals, writes every thread's stack and ends the process.
tests/support/overseer.py, in the process that gives out the tests, reads what is written here.
"""

from __future__ import annotations

import faulthandler
import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import pytest
from _pytest.outcomes import OutcomeException

from tests.support.log_book import LogBook

ENDS_AFTER = 1.5
"""Times what a test may take, and its process ends."""


class OutOfTime(OutcomeException):
    """A test took longer than it may.

    No Exception, so that what is tested cannot take it for a failure of its own, and no pytest.fail.Exception, which
    hypothesis takes for a failing example and tries again.
    """

    __module__ = "builtins"  # as with pytest's own: reports name it without its module


class Allowance(Protocol):
    """What pytest-timeout found to hold for a test."""

    timeout: float
    disable_debugger_detection: bool


def default_limit_s(config: pytest.Config) -> float:
    """How long a test without a marker may take; infinity without a limit."""
    option = config.getoption("timeout")
    return float(option if option is not None else config.getini("timeout") or 0) or math.inf


class Limits:
    """The limits of one process that runs tests."""

    def __init__(self, config: pytest.Config, book: LogBook, stacks: int, *, gives_up: bool = False) -> None:
        self._gives_up = gives_up
        self._default_s = default_limit_s(config)
        self._book = book
        self._stacks = stacks
        self._test: tuple[str, Allowance] | None = None
        self._interruptible = False
        self._late = ""

    def begin(self, what: str, limit_s: float | None = None) -> None:
        """From now on this process does `what`; it ends when it still does after its time."""
        ends_after_s = (limit_s or self._default_s) * ENDS_AFTER
        self._book.write(what, time.monotonic() + ends_after_s)
        if math.isinf(ends_after_s):
            faulthandler.cancel_dump_traceback_later()
        else:
            faulthandler.dump_traceback_later(ends_after_s, exit=True, file=self._stacks)

    def pytest_ignore_collect(self) -> bool | None:
        """A worker that takes the place of one that died while it collected need not try."""
        return True if self._gives_up else None

    def pytest_collectstart(self, collector: pytest.Collector) -> None:
        """Importing a test module may hang."""
        self.begin(f"collecting {collector.nodeid or '.'}")

    def pytest_collection_finish(self) -> None:
        """A worker waits until the others have collected, too."""
        self.begin("waiting for a test")

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        """Before pytest-timeout's own hook, which sets a timer unless the test may take as long as it likes."""
        self.begin(item.nodeid, math.inf)
        try:
            return (yield)
        finally:
            self._test, self._late = None, ""
            self.begin("waiting for a test")

    @pytest.hookimpl(tryfirst=True)
    def pytest_timeout_set_timer(self, item: pytest.Item, settings: Allowance) -> bool:
        """In place of pytest-timeout's timer."""
        self._test = item.nodeid, settings
        self._begin_test(item.nodeid, settings)
        return True

    @pytest.hookimpl(tryfirst=True)
    def pytest_timeout_cancel_timer(self) -> bool:
        """Between the end of a test and the next, and where a debugger begins."""
        signal.setitimer(signal.ITIMER_REAL, 0)
        return True

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_setup(self) -> Iterator[None]:
        """The set-up may be interrupted."""
        return (yield from self._phase())

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_call(self) -> Iterator[None]:
        """The test may be interrupted."""
        return (yield from self._phase())

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_teardown(self) -> Iterator[None]:
        """The teardown may be interrupted; after a failure it has the time of a whole test."""
        if self._test and not signal.getitimer(signal.ITIMER_REAL)[0] and not _debugging(self._test[1]):
            self._late = ""
            self._begin_test(*self._test)
        return (yield from self._phase())

    def pytest_sessionfinish(self) -> None:
        """What the fixtures of the session leave to the end may hang."""
        self.begin("ending its session")

    @pytest.hookimpl(trylast=True)
    def pytest_unconfigure(self) -> None:
        """A thread that was left behind keeps its process from ending."""
        self.begin("exiting")

    def _begin_test(self, name: str, settings: Allowance) -> None:
        self.begin(name, settings.timeout)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGALRM, self._out_of_time)
            signal.setitimer(signal.ITIMER_REAL, settings.timeout)

    def _phase(self) -> Iterator[None]:
        self._interruptible = True
        try:
            if self._late:
                raise OutOfTime(self._late)
            return (yield)
        finally:
            self._interruptible = False

    def _out_of_time(self, number: int, frame: FrameType | None) -> None:
        """Fail the test where it is; between its phases, where pytest itself would fail, at the next's beginning."""
        __tracebackhide__ = True
        if self._test is None or _debugging(self._test[1]):
            return
        self._late = f"took longer than {self._test[1].timeout:g} s"
        if self._interruptible:
            faulthandler.dump_traceback(file=2)  # captured: the report shows the other threads' stacks, too
            raise OutOfTime(self._late)


def _debugging(settings: Allowance) -> bool:
    from pytest_timeout import is_debugging

    return not settings.disable_debugger_detection and bool(is_debugging())


def pytest_configure(config: pytest.Config) -> None:
    """Watch over this process if it is one that runs tests."""
    workerinput: dict[str, Any] | None = getattr(config, "workerinput", None)
    if workerinput is not None:
        book = LogBook.of(Path(workerinput["log_books"]), workerinput["workerid"])
        stacks = os.open(book.stacks, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        limits = Limits(config, book, stacks, gives_up=workerinput["gives_up"])
    elif config.getoption("dist", "no") == "no":
        limits = Limits(config, LogBook(Path(os.devnull), Path(os.devnull)), os.dup(2))
    else:
        return
    limits.begin("starting")
    config.pluginmanager.register(limits, "limits")
