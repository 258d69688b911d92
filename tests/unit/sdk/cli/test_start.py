"""npuctl before its verb begins: Ctrl-C ends it without a word."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.npuctl import PATIENCE_S
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
