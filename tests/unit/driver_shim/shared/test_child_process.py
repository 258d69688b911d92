"""Processes that run these packages: how they begin."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from driver_shim.shared.child_process import main_command
from tests.support.time_scale import patience

PROBE = """
import os
IMPORTED = os.nice(0)

def main(arguments):
    print(IMPORTED, os.nice(0), *arguments)
"""


@pytest.mark.parametrize("niceness", [0, 5])
def test_a_process_is_nicer_from_before_its_imports_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, niceness: int
) -> None:
    (tmp_path / "nice_probe.py").write_text(PROBE)
    monkeypatch.syspath_prepend(tmp_path)
    command = main_command("nice_probe", "an argument", niceness=niceness)
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=patience(30))
    expected = min(19, os.nice(0) + niceness)
    assert done.stdout.split() == [str(expected), str(expected), "an", "argument"]
