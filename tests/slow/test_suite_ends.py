"""Whatever a test does, the suite runs all the others, says what happened, fails, and ends.

Planted tests, run as `make test` runs this suite's.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.paths import ROOT
from tests.support.time_scale import patience

LIMIT_S = patience(4.0)
"""What a planted test may take."""
RUN_LIMIT_S = patience(500.0)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(RUN_LIMIT_S + 60)]

HANGS = """
import collections, ctypes, itertools, os, signal, socket, threading, time
import pytest

def test_good_before():
    pass

def test_hangs_in_python():
    while True: pass  # here: test_hangs_in_python

def test_hangs_in_a_system_call():
    near, far = socket.socketpair()
    near.recv(1)  # here: test_hangs_in_a_system_call

def test_hangs_behind_its_thread():
    silence = threading.Event()
    thread = threading.Thread(target=lambda: silence.wait(), daemon=True)  # here: test_hangs_behind_its_thread
    thread.start()
    thread.join()

def test_good_between():
    pass

@pytest.fixture
def hanging_set_up():
    time.sleep(1000)  # here: test_with_a_set_up_that_hangs
    yield

@pytest.fixture
def hanging_teardown():
    yield
    time.sleep(1000)  # here: test_with_a_teardown_that_hangs

def test_with_a_set_up_that_hangs(hanging_set_up):
    pass

def test_with_a_teardown_that_hangs(hanging_teardown):
    pass

def test_good_after():
    pass
"""

HANGS_BEYOND_SIGNALS = """
import collections, ctypes, itertools, signal, time
import pytest

def test_good_before():
    pass

def test_hangs_with_signals_blocked():
    signal.pthread_sigmask(signal.SIG_BLOCK, set(signal.Signals))
    time.sleep(1000)  # here: test_hangs_with_signals_blocked

def test_holds_the_interpreter_in_a_system_call():
    signal.pthread_sigmask(signal.SIG_BLOCK, set(signal.Signals))
    ctypes.PyDLL(None).pause()  # here: test_holds_the_interpreter_in_a_system_call

def test_good_between():
    pass

def test_holds_the_interpreter_in_a_loop():
    collections.deque(itertools.repeat(0), maxlen=0)  # here: test_holds_the_interpreter_in_a_loop

def test_swallows_what_should_end_it():
    while True:
        try:
            time.sleep(1000)  # here: test_swallows_what_should_end_it
        except BaseException:
            pass

@pytest.fixture
def hanging_teardown():
    yield
    time.sleep(1000)  # here: test_fails_and_hangs_in_its_teardown

def test_fails_and_hangs_in_its_teardown(hanging_teardown):
    assert not "as planted"

def test_good_after():
    pass
"""

DIES = """
import os, signal, time, warnings

def test_good_before():
    pass

def test_exits():
    os._exit(0)

def test_is_killed():
    os.kill(os.getpid(), signal.SIGKILL)

def test_good_between():
    pass

def test_stops_its_process():
    os.kill(os.getpid(), signal.SIGSTOP)

def test_is_killed_and_leaves_a_child_with_its_pipe():
    warnings.simplefilter("ignore")
    if os.fork() == 0:
        time.sleep(1000)
        os._exit(0)
    os.kill(os.getpid(), signal.SIGKILL)

def test_good_after():
    pass
"""

LEAVES = """
import subprocess, sys, threading, time

left = []

def test_good_but_leaves_a_thread():
    threading.Thread(target=time.sleep, args=(1000,)).start()

def test_good_but_leaves_a_child_with_the_output():
    left.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)  # left behind"], stdout=2))
"""

GOOD = """
def test_good():
    pass
"""

ENDS_LATE = """
import os, time

def pytest_sessionfinish(session):
    if os.environ.get("PYTEST_XDIST_WORKER") == "gw0":
        os._exit(0)
    if os.environ.get("PYTEST_XDIST_WORKER") == "gw1":
        time.sleep(1000)  # here: ending its session
"""

EVERYTHING = {
    "test_hangs.py": HANGS,
    "test_hangs_beyond_signals.py": HANGS_BEYOND_SIGNALS,
    "test_dies.py": DIES,
    "test_leaves.py": LEAVES,
    # files of one test each, given out last: those that a worker waits in if it knows no next test
    **{f"test_single_{number}.py": GOOD for number in range(6)},
}


@dataclass(frozen=True)
class Run:
    """A run of the suite, to its end."""

    status: int
    output: str

    def tests(self, outcome: str) -> set[str]:
        """Names of the tests that the summary lists with that outcome, as "file::test"."""
        return {Path(name).name for name in re.findall(rf"^{outcome} (\S+)", self.output, re.MULTILINE)}

    def shows_stack(self, file: str, line: int) -> bool:
        """Whether a traceback or a stack goes through that line."""
        return re.search(rf'{file}(:{line}: |", line {line} in )', self.output) is not None


def suite_command() -> list[str]:
    """How `make test` runs the suite."""
    variables = {name: value for name, value in os.environ.items() if name not in {"MAKEFLAGS", "MFLAGS", "MAKELEVEL"}}
    shown = subprocess.run(
        ["make", "--dry-run", "test", "JOBS=3"],
        cwd=ROOT,
        env=variables,
        capture_output=True,
        text=True,
        check=True,
        timeout=RUN_LIMIT_S,
    )
    command = next(line for line in shown.stdout.splitlines() if "-m pytest" in line)
    return [sys.executable, *shlex.split(command)[1:]]


def run(folder: Path, files: Mapping[str, str]) -> Run:
    """Run planted files with the suite's configuration and conftest.py."""
    for name, text in files.items():
        (folder / name).write_text(text)
    arguments = ["-p", "tests.conftest", "-c", "pyproject.toml", "--rootdir", ".", "-rA", f"--timeout={LIMIT_S}"]
    # This may be a worker itself; the run that it starts is none.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(
        [*suite_command(), *arguments, str(folder)],
        cwd=ROOT,
        env={**environment, "COLUMNS": "200"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=RUN_LIMIT_S,
    )
    return Run(done.returncode, done.stdout)


def planted(files: Mapping[str, str], pattern: str) -> set[str]:
    """Planted tests whose name matches, as "file::test"."""
    found = (
        (file, name) for file, text in files.items() for name in re.findall(r"^def (test_\w+)", text, re.MULTILINE)
    )
    return {f"{file}::{name}" for file, name in found if re.match(pattern, name)}


def places(files: Mapping[str, str]) -> list[tuple[str, int]]:
    """File and line of each place where something planted hangs."""
    return [
        (file, number)
        for file, text in files.items()
        for number, line in enumerate(text.splitlines(), start=1)
        if "# here: " in line
    ]


def test_tests_that_hang_or_die_cost_themselves_alone(tmp_path: Path) -> None:
    """All others run, after them in their file and in other files; the report names the bad ones and shows where."""
    done = run(tmp_path, EVERYTHING)
    assert done.status == pytest.ExitCode.TESTS_FAILED, done.output
    assert re.search(r"=+ \d+ failed, \d+ passed, 3 errors in ", done.output), done.output
    good = planted(EVERYTHING, "test_good")
    with_bad_teardown = {
        "test_hangs.py::test_with_a_teardown_that_hangs",
        "test_hangs_beyond_signals.py::test_fails_and_hangs_in_its_teardown",
    }
    errors = {"test_hangs.py::test_with_a_set_up_that_hangs", *with_bad_teardown}
    assert done.tests("PASSED") == good | {"test_hangs.py::test_with_a_teardown_that_hangs"}
    assert done.tests("ERROR") == errors
    assert done.tests("FAILED") | errors == planted(EVERYTHING, "(?!test_good)")
    assert [place for place in places(EVERYTHING) if not done.shows_stack(*place)] == []
    assert "# left behind" in done.output


@pytest.mark.parametrize("deed", ["os._exit(0)", "time.sleep(1000)", "os.kill(os.getpid(), signal.SIGKILL)"])
def test_a_worker_that_dies_while_it_collects_ends_the_run_and_names_the_file(tmp_path: Path, deed: str) -> None:
    """Workers in its place would die likewise."""
    done = run(tmp_path, {"test_bad.py": f"import os, signal, time\n{deed}\n{GOOD}", "test_good.py": GOOD})
    assert done.status == pytest.ExitCode.INTERRUPTED, done.output
    assert "a worker died: collecting test_bad.py" in done.output.replace(f"{tmp_path}/", "")
    assert "no tests ran in" in done.output


def test_workers_that_die_or_hang_after_their_last_test_fail_the_run(tmp_path: Path) -> None:
    """No test is to blame."""
    files = {"conftest.py": ENDS_LATE, "test_a.py": GOOD, "test_b.py": GOOD, "test_c.py": GOOD}
    done = run(tmp_path, files)
    assert done.status == pytest.ExitCode.TESTS_FAILED, done.output
    assert done.tests("PASSED") >= planted(files, "test_good")
    assert "exit status 0 at ending its session" in done.output
    assert [place for place in places(files) if not done.shows_stack(*place)] == []
