"""npuctl before its verb begins: little is imported, and Ctrl-C ends it without a word."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

import sdk
from tests.support.npuctl import PATIENCE_S, ROOT

INTERRUPTED_WHILE_IMPORTING = """
import os, signal, sys

MODULE, CTRL_C = sys.argv[1:]

class Interrupting:
    def find_spec(name, path=None, target=None):
        if name == MODULE:
            os.kill(os.getpid(), signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler if CTRL_C == "heeded" else signal.SIG_IGN)
sys.meta_path.insert(0, Interrupting)
from sdk.cli import main
sys.argv = ["npuctl", "fw", "keygen", "--help"]
main()
"""


def interrupted(module: str, ctrl_c: str) -> subprocess.CompletedProcess[bytes]:
    """npuctl, interrupted while it imports a module."""
    command = [sys.executable, "-c", INTERRUPTED_WHILE_IMPORTING, module, ctrl_c]
    return subprocess.run(command, cwd=ROOT, capture_output=True, timeout=PATIENCE_S, check=False)


@pytest.mark.parametrize("module", ["click", "sdk.cli.fw.keygen"])
def test_ctrl_c_while_it_starts_exits_130_quietly(module: str) -> None:
    done = interrupted(module, "heeded")
    assert (done.returncode, done.stderr) == (130, b"")


def test_ctrl_c_while_an_emulator_starts_exits_130_quietly() -> None:
    program = INTERRUPTED_WHILE_IMPORTING.partition("from sdk.cli")[0] + "import runpy; runpy.run_module('emulator')"
    command = [sys.executable, "-c", program, "emulator.serve", "heeded"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=PATIENCE_S, check=False)
    assert (done.returncode, done.stderr) == (130, b"")


def test_where_ctrl_c_is_ignored_it_stays_so() -> None:
    done = interrupted("click", "ignored")
    assert done.returncode == 0
    assert b"Usage: npuctl fw keygen" in done.stdout


def test_its_package_imports_nothing_heavy() -> None:
    code = "import sys, sdk.cli; sys.exit(bool({'click', 'construct', 'numpy', 'sdk.device'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=PATIENCE_S, check=False).returncode == 0


def test_the_sdk_has_all_its_names_and_no_others() -> None:
    home_of = vars(sdk)["_HOME_OF"]
    assert sorted(home_of) == sorted(sdk.__all__)
    for name in sdk.__all__:
        assert getattr(sdk, name) is getattr(importlib.import_module(home_of[name]), name)
    assert set(sdk.__all__) <= set(dir(sdk))
    with pytest.raises(AttributeError, match="no attribute 'Devise'"):
        sdk.Devise  # type: ignore[attr-defined]  # noqa: B018
