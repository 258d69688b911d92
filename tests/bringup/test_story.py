"""docs/bring-up.md is run as it stands: one shell for all of it, and every line shown must be printed, in order."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from driver_shim.protocol.firmware_slots import SLOT_BYTES, SLOT_OFFSETS
from firmware_tools.reference_firmware.build import COMPILER
from tests.support.needs import needs_program
from tests.support.paths import ROOT

PAGE = (ROOT / "docs" / "bring-up.md").read_text("utf-8")
PATIENCE_S = 600
BLOCK = re.compile(r"```sh\n(.*?)```(?:\n```text\n(.*?)```)?", re.DOTALL)

pytestmark = [
    pytest.mark.bringup,
    pytest.mark.timeout(PATIENCE_S + 60),
    needs_program(COMPILER, "gcc"),
]


def steps() -> list[tuple[str, list[str]]]:
    """Commands, and the lines that they must print."""
    return [(commands, shown.splitlines()) for commands, shown in BLOCK.findall(PAGE)]


def pattern(line: str) -> re.Pattern[str]:
    """A shown line, in which `…` and runs of blanks stand for what varies."""
    parts = [re.escape(part) for part in re.split(r"…|\s{2,}", line)]
    return re.compile(r".*".join(parts))


def missing(shown: list[str], printed: str) -> list[str]:
    """Shown lines that were not printed in this order."""
    lines = iter(printed.splitlines())
    return [line for line in shown if not any(pattern(line).search(found) for found in lines)]


def script() -> str:
    """All commands, with a mark before each step's output."""
    marked = [f"echo '=== step {number}'\n{commands}" for number, (commands, _) in enumerate(steps())]
    return "set -e -m\n" + "".join(marked)


@pytest.fixture
def printed(tmp_path: Path) -> list[str]:
    """What each step printed."""
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "SOURCES": str(ROOT),
        "NPU_RUNTIME_DIR": str(tmp_path / "run"),
        "COLUMNS": "120",
    }
    (tmp_path / "run").mkdir(mode=0o700)
    folder = tmp_path / "desk"
    folder.mkdir()
    with subprocess.Popen(
        ["bash"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=folder,
        env=environment,
        start_new_session=True,
    ) as shell:
        try:
            output, _ = shell.communicate(script(), timeout=PATIENCE_S)
        except subprocess.TimeoutExpired:
            os.killpg(shell.pid, signal.SIGKILL)
            output, _ = shell.communicate(timeout=PATIENCE_S)
        finally:
            subprocess.run(["pkill", "-KILL", "-s", str(shell.pid)], check=False, timeout=PATIENCE_S)
    log = folder / "emulator.log"
    print(output, log.read_text("utf-8") if log.exists() else "", sep="\n")
    assert shell.returncode == 0
    return re.split(r"=== step \d+\n", output)[1:]


def test_the_story_goes_as_it_is_told(printed: list[str]) -> None:
    wrong = {number: lines for number, (_, shown) in enumerate(steps()) if (lines := missing(shown, printed[number]))}
    assert not wrong


def test_the_slots_lie_where_the_story_breaks_them() -> None:
    assert "seek=1 count=2" in PAGE
    assert [offset >> 20 for offset in SLOT_OFFSETS.values()] == [1, 2]
    assert SLOT_BYTES == 1 << 20


def test_a_line_that_was_not_printed_is_missed() -> None:
    assert missing(["one …", "three"], "one and two\nthree") == []
    assert missing(["three", "one …"], "one and two\nthree") == ["one …"]
