"""Whatever happens to a worker, all other tests run, and the run ends: in the process that gives out the tests.

pytest-xdist replaces a worker that dies. Here is what it lacks: its tests go to others, but the one that it died of;
its report says what the worker did, how it ended and where it hung; a worker that does not end itself in time is
killed; a run in which a worker died fails; and what the tests left running ends with it, lest a pipe that the run's
output goes to stay open.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen, TimeoutExpired
from typing import Any

import pytest
from _pytest.terminal import TerminalReporter
from xdist.scheduler import LoadFileScheduling
from xdist.workermanage import WorkerController

from tests.support.children import child_commands
from tests.support.limits import ENDS_AFTER, default_limit_s
from tests.support.log_book import LogBook

WATCH_PERIOD_S = 0.5
OVERDUE_S = 10.0
"""A worker ends itself; so long after the time for that it is taken for unable to."""
EXIT_PATIENCE_S = 10.0
"""What tests started may take this long to see that the tests are over."""
PR_SET_CHILD_SUBREAPER = 36
EXIT_FAILED = pytest.ExitCode.TESTS_FAILED


class FileScheduling(LoadFileScheduling):  # type: ignore[misc]
    """Files go to one worker each; what a dead worker left goes to others.

    xdist's own would give out the deadly test again, and with it the files that the worker had finished. A worker that
    is given such an empty file, or one last test while others wait to be given out, waits for ever.
    """

    def remove_node(self, node: WorkerController) -> str | None:
        """Take the tests of a worker that ended; the one that it was at."""
        files = self.assigned_work.pop(node)
        left = {file: {test: False for test, done in tests.items() if not done} for file, tests in files.items()}
        deadly = next((test for tests in left.values() for test in tests), None)
        for file, tests in left.items():
            tests.pop(deadly or "", None)
            if tests:
                self.workqueue[file] = tests
        for other in self.nodes:
            self._reschedule(other)
        return deadly

    def _reschedule(self, node: WorkerController) -> None:
        """A worker begins a test when it knows the next: it holds at least two while there are more.

        One that takes another's place is asked for too, before it knows its tests.
        """
        if node.shutting_down or node not in self.registered_collections:
            return
        while self.workqueue and self._pending_of(self.assigned_work[node]) <= 2:
            self._assign_work_unit(node)
        if not self.workqueue:
            node.shutdown()

    def _assign_work_unit(self, node: WorkerController) -> None:
        """A worker may have died since: its tests are taken again when that is known."""
        with contextlib.suppress(OSError):
            super()._assign_work_unit(node)


@dataclass(frozen=True)
class Worker:
    """A process that runs tests."""

    node: WorkerController
    book: LogBook

    @property
    def process(self) -> Popen[bytes]:
        """The process itself."""
        process: Popen[bytes] = self.node.gateway._io.popen
        return process

    def is_overdue(self) -> bool:
        """Whether it should have ended itself by now."""
        _, deadline = self.book.read()
        return time.monotonic() > deadline + OVERDUE_S

    def release(self) -> None:
        """End those who hold the pipe of a worker that is dead, without which nobody hears of its death."""
        assert self.process.stdout is not None
        with contextlib.suppress(ValueError):  # closed: it was heard of
            pipe = os.readlink(f"/proc/self/fd/{self.process.stdout.fileno()}")
            for pid in holders(pipe) - {os.getpid()}:
                kill(pid)

    def epitaph(self) -> str:
        """What it did last, how it ended, and the stacks that it left."""
        try:
            status = self.process.wait(EXIT_PATIENCE_S)
        except TimeoutExpired:
            ended = "closed its pipe and goes on"
        else:
            ended = signal.Signals(-status).name if status < 0 else f"exit status {status}"
        doing, _ = self.book.read()
        return f"worker died: {ended} at {doing}\n{self.book.read_stacks()}"


class Overseer:
    """Watches over the workers of one run."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._start_limit_s = default_limit_s(config) * ENDS_AFTER
        self._folder = tempfile.TemporaryDirectory(prefix="npu-tests-")
        self._workers: dict[str, Worker] = {}
        self._collected: set[str] = set()
        self._deaths: dict[str, str] = {}
        self._left: list[str] = []
        self._gives_up = False
        self._over = threading.Event()
        self._watch = threading.Thread(target=self._keep_watch, name="overseer", daemon=True)

    def pytest_sessionstart(self) -> None:
        """Orphans become this process's children."""
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self._watch.start()

    def pytest_xdist_make_scheduler(self, config: pytest.Config, log: Any) -> FileScheduling | None:
        """The scheduling that --dist loadfile asks for."""
        return FileScheduling(config, log) if config.getoption("dist") == "loadfile" else None

    def pytest_configure_node(self, node: WorkerController) -> None:
        """A worker is about to start."""
        folder = Path(self._folder.name)
        node.workerinput |= {"log_books": str(folder), "gives_up": self._gives_up}
        book = LogBook.of(folder, node.gateway.id)
        book.write("starting", time.monotonic() + self._start_limit_s)
        self._workers[node.gateway.id] = Worker(node, book)

    def pytest_xdist_node_collection_finished(self, node: WorkerController) -> None:
        """A worker knows its tests."""
        self._collected.add(node.gateway.id)

    def pytest_testnodedown(self, node: WorkerController, error: object) -> None:
        """A worker ended. One that died before it knew its tests would only be followed by others that do."""
        worker = self._workers.pop(node.gateway.id)
        if not error:
            return
        self._deaths[node.gateway.id] = worker.epitaph()
        if node.gateway.id not in self._collected and not self._gives_up:
            self._gives_up = True
            doing, _ = worker.book.read()
            self._config.pluginmanager.getplugin("dsession").shouldstop = f"a worker died: {doing}"

    def pytest_handlecrashitem(self, report: pytest.TestReport) -> None:
        """Say how the worker died in the report of the test that it was at."""
        report.longrepr = self._deaths.pop(report.node.gateway.id)

    @pytest.hookimpl(wrapper=True, trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> Iterator[None]:
        """End what is left, once xdist has ended its workers."""
        if self._deaths and session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            session.exitstatus = EXIT_FAILED
        try:
            return (yield)
        finally:
            self._over.set()
            self._watch.join(EXIT_PATIENCE_S)
            self._end_orphans()
            self._folder.cleanup()
            if self._left:
                session.exitstatus = session.exitstatus or EXIT_FAILED

    def pytest_terminal_summary(self, terminalreporter: TerminalReporter) -> None:
        """Tell of the workers that died of no test, and of the processes that tests left."""
        for epitaph in dict.fromkeys(self._deaths.values()):
            terminalreporter.section("a worker died")
            terminalreporter.write_line(epitaph)
        if self._left:
            terminalreporter.section("tests left processes behind")
            terminalreporter.write_line("\n".join(self._left))

    def _keep_watch(self) -> None:
        dead: set[str] = set()
        while not self._over.wait(WATCH_PERIOD_S):
            for name, worker in list(self._workers.items()):
                if worker.process.poll() is None:
                    if worker.is_overdue():
                        worker.process.kill()
                elif name in dead:  # for a whole period, and still nobody heard of it
                    worker.release()
                else:
                    dead.add(name)

    def _end_orphans(self) -> None:
        deadline = time.monotonic() + EXIT_PATIENCE_S
        while orphans() and time.monotonic() < deadline:
            time.sleep(WATCH_PERIOD_S / 10)
        for pid, command in orphans().items():
            kill(pid)
            self._left.append(f"{pid} {command.replace(bytes(1), b' ').decode('utf-8', 'replace')}")


def orphans() -> dict[int, bytes]:
    """Processes that tests left behind: this process's children, once its workers have ended. Reaps the ended ones."""
    found = child_commands(os.getpid())
    for pid in list(found):
        with contextlib.suppress(ChildProcessError):
            if os.waitpid(pid, os.WNOHANG) != (0, 0):
                del found[pid]
    return found


def holders(pipe: str) -> set[int]:
    """Processes that have a pipe open, by its name in /proc."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if any(os.readlink(descriptor) == pipe for descriptor in (folder / "fd").iterdir()):
                found.add(int(folder.name))
    return found


def kill(pid: int) -> None:
    """End a process that may have ended."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def pytest_configure(config: pytest.Config) -> None:
    """Oversee the workers if this process has some."""
    if config.getoption("dist", "no") != "no" and config.getoption("tx") and not config.getoption("collectonly"):
        config.pluginmanager.register(Overseer(config), "overseer")
