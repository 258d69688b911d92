"""npuctl whose stdin, stdout or stderr is closed, or takes nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.firmware_images import image
from tests.support.npuctl import PATIENCE_S, environment


@pytest.fixture
def inspected(tmp_path: Path) -> str:
    path = tmp_path / "firmware image.img"
    path.write_bytes(image("1.2.3"))
    return str(path)


def npuctl(folder: Path, redirection: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run npuctl as a shell does, with a redirection."""
    command = ["sh", "-c", f'exec "$@" {redirection}', "sh", sys.executable, "-m", "npuctl", *arguments]
    return subprocess.run(
        command, env=environment(folder), capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )


@pytest.mark.parametrize("options", [("inspect",), ("inspect", "--json"), ("--help",), ("export", "--format", "rdl")])
def test_a_full_disk_is_named_and_exits_1(tmp_path: Path, inspected: str, options: tuple[str, ...]) -> None:
    arguments = (*options, inspected) if "inspect" in options else options
    done = npuctl(tmp_path, "> /dev/full", "fw", *arguments)
    assert done.returncode == 1
    assert done.stderr == "npuctl: stdout: No space left on device\n"


def test_where_stderr_takes_nothing_the_exit_code_tells(tmp_path: Path) -> None:
    assert npuctl(tmp_path, "2> /dev/full", "fw", "inspect", "/nowhere").returncode == 1


@pytest.mark.parametrize("redirection", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_closed_stream_is_no_obstacle(tmp_path: Path, inspected: str, redirection: str) -> None:
    done = npuctl(tmp_path, redirection, "fw", "inspect", inspected)
    assert (done.returncode, done.stderr) == (0, "")
    assert npuctl(tmp_path, redirection, "fw", "inspect", "/nowhere").returncode == 1


def test_a_console_with_stdin_closed_reaches_its_device(tmp_path: Path) -> None:
    done = npuctl(tmp_path, "<&-", "console", "-d", "vfio-user:/nowhere")
    assert done.returncode == 3, done.stderr


def test_an_export_to_a_dash_goes_to_stdout(tmp_path: Path) -> None:
    done = npuctl(tmp_path, "", "fw", "export", "--format", "c", "-o", "-")
    assert done.stdout.startswith("/* NPU register map")
