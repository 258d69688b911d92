"""npuctl before its verb begins: Ctrl-C ends it without a word, and it has no threads."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.needs import needs_python
from tests.support.npuctl import PATIENCE_S, environment
from tests.support.paths import ROOT

INTERRUPTED_WHILE_IMPORTING = """
import os, signal, sys

MODULE, CTRL_C = sys.argv[1:]

class Interrupting:
    def find_spec(name, path=None, target=None):
        if name == MODULE:
            os.kill(os.getpid(), signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler if CTRL_C == "heeded" else signal.SIG_IGN)
sys.meta_path.insert(0, Interrupting)
from npuctl import main
sys.argv = ["npuctl", "fw", "keygen", "--help"]
main()
"""


def interrupted(module: str, ctrl_c: str) -> subprocess.CompletedProcess[bytes]:
    """npuctl, interrupted while it imports a module."""
    command = [sys.executable, "-c", INTERRUPTED_WHILE_IMPORTING, module, ctrl_c]
    return subprocess.run(command, cwd=ROOT, capture_output=True, timeout=PATIENCE_S, check=False)


@pytest.mark.parametrize("module", ["sdk", "numpy", "click", "sdk.cli.fw.keygen"])
def test_ctrl_c_while_it_starts_exits_130_quietly(module: str) -> None:
    done = interrupted(module, "heeded")
    assert (done.returncode, done.stderr) == (130, b"")


def test_ctrl_c_while_an_emulator_starts_exits_130_quietly() -> None:
    program = INTERRUPTED_WHILE_IMPORTING.partition("from npuctl")[0] + "import runpy; runpy.run_module('emulator')"
    command = [sys.executable, "-c", program, "emulator.serve", "heeded"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=PATIENCE_S, check=False)
    assert (done.returncode, done.stderr) == (130, b"")


def test_where_ctrl_c_is_ignored_it_stays_so() -> None:
    done = interrupted("click", "ignored")
    assert done.returncode == 0
    assert b"Usage: npuctl fw keygen" in done.stdout


THREADS_AT_THE_FORK = """
import os, sys

def fork():
    os.write(1, b"%d threads, %s BLAS threads" % (
        len(os.listdir("/proc/self/task")), os.environ.get("OPENBLAS_NUM_THREADS", "any").encode()
    ))
    os._exit(0)

os.fork = fork
from npuctl import main
sys.argv[0] = "npuctl"
main()
"""


@pytest.mark.parametrize(
    "arguments",
    [["list"], ["info"], ["bench"], ["run", "model.onnx"], ["doctor"]],
    ids=str,
)
@pytest.mark.parametrize("chosen", ["any", "3"])
def test_the_tool_forks_with_a_single_thread(arguments: list[str], chosen: str, tmp_path: Path) -> None:
    """What its work starts has as many as its environment says."""
    (tmp_path / "model.onnx").touch()
    variables = environment(tmp_path, {} if chosen == "any" else {"OPENBLAS_NUM_THREADS": chosen})
    command = [sys.executable, "-c", THREADS_AT_THE_FORK, *arguments]
    done = subprocess.run(
        command, cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, f"1 threads, {chosen} BLAS threads", "")


@needs_python(3, 12)  # earlier ones do not warn of a fork with threads
@pytest.mark.parametrize("arguments", [["--help"], ["list"], ["bench"], ["doctor"]], ids=str)
def test_the_tool_is_not_warned_of_its_fork(arguments: list[str], tmp_path: Path) -> None:
    command = [sys.executable, "-W", "always::DeprecationWarning", "-c", "from npuctl import main; main()", *arguments]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert "multi-threaded" not in done.stderr
