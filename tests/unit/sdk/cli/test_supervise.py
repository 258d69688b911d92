"""Device work runs in a process that the tool can abandon."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from sdk.cli import timeouts
from sdk.cli.supervise import Abandoned, supervise
from tests.support.forks import FORKS_WITH_THREADS
from tests.support.pipes import read_line, read_rest

PATIENCE_S = 120.0
SHORT_S = 0.2
pytestmark = [pytest.mark.usefixtures("leaves_nothing"), FORKS_WITH_THREADS]


def sleep_for_ever() -> int:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    while True:
        time.sleep(PATIENCE_S)


def die() -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return 0


def fail() -> int:
    raise LookupError("planted")


def test_the_status_of_the_work_is_returned() -> None:
    assert supervise(lambda: 7, PATIENCE_S) == 7


def test_work_that_never_ends_is_abandoned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timeouts, "ABANDON_S", PATIENCE_S)  # or else it would be left behind on a machine that stalls
    with pytest.raises(Abandoned):
        supervise(sleep_for_ever, SHORT_S)


def test_a_signal_that_ended_the_work_shows_in_the_status() -> None:
    assert supervise(die, PATIENCE_S) == 128 + signal.SIGKILL


def test_an_exception_that_escapes_is_an_internal_error(capfd: pytest.CaptureFixture[str]) -> None:
    assert supervise(fail, PATIENCE_S) == 70
    assert "planted" in capfd.readouterr().err


def test_the_work_ends_with_the_tool() -> None:
    program = (
        "import os, time\n"
        "from sdk.cli.supervise import supervise\n"
        "def work():\n"
        "    os.write(1, b'%d\\n' % os.getpid())\n"
        "    time.sleep(600)\n"
        "    return 0\n"
        "supervise(work, 600)\n"
    )
    tool = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    try:
        worker = int(read_line(tool.stdout))
        tool.kill()
        # the pipe is at its end only when the worker, which holds it too, has ended
        read_rest(tool.stdout)
        assert not os.path.exists(f"/proc/{worker}/fd/1")
    finally:
        tool.kill()
        tool.communicate(timeout=PATIENCE_S)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_tool_alone_reaches_the_work(number: signal.Signals) -> None:
    program = (
        "import os, time\n"
        "from sdk.cli import timeouts\n"
        "from sdk.cli.supervise import supervise\n"
        "timeouts.INTERRUPT_S = 600\n"
        "def work():\n"
        "    os.write(1, b'ready\\n')\n"
        "    time.sleep(600)\n"
        "    return 0\n"
        "raise SystemExit(supervise(work, 600))\n"
    )
    tool = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    try:
        assert read_line(tool.stdout) == "ready\n"
        tool.send_signal(number)
        assert tool.wait(PATIENCE_S) == (130 if number is signal.SIGINT else 128 + number)
    finally:
        tool.kill()
        tool.communicate(timeout=PATIENCE_S)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_comes_as_the_work_begins_reaches_it(number: signal.Signals) -> None:
    """The work is already there, and the tool has not yet begun to wait for it."""
    program = (
        "import os, sys, time\n"
        "from sdk.cli import timeouts\n"
        "from sdk.cli.supervise import supervise\n"
        "timeouts.OWN_INTERRUPT_S, timeouts.INTERRUPT_S = 0, 600\n"
        "fork = os.fork\n"
        "def fork_and_signal():\n"
        "    child = fork()\n"
        "    if child:\n"
        "        os.kill(os.getpid(), int(sys.argv[1]))\n"
        "    return child\n"
        "os.fork = fork_and_signal\n"
        "def work():\n"
        "    time.sleep(600)\n"
        "    return 0\n"
        "raise SystemExit(supervise(work, 600))\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(int(number))], timeout=PATIENCE_S, check=False)
    assert done.returncode == (130 if number is signal.SIGINT else 128 + number)
