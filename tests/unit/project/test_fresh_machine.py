"""How `make test-fresh` finds what to type and where packages come from, and that its machine leaves nothing behind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fresh import namespace
from tests.fresh.__main__ import ROOT, commands
from tests.fresh.namespace import Bind, Job
from tests.fresh.pip_sources import sources
from tests.support.needs import needs_namespaces
from tests.support.pipes import read_line
from tests.support.time_scale import patience
from tests.support.waiting import wait_until

PATIENCE_S = patience(60.0)
SYSTEM = [Bind(f"/{name}", f"/{name}") for name in ("usr", "bin", "sbin", "lib", "lib64") if Path("/", name).exists()]
"""Enough of this machine for a shell."""


def test_the_readme_begins_with_the_three_commands() -> None:
    assert commands((ROOT / "README.md").read_text("utf-8")) == ["make demo", "make test", "make chat"]


def test_comments_output_and_later_blocks_are_not_typed() -> None:
    assert commands("text\n```console\n$ a b   # why\nshown\n$ c\n```\n```console\n$ d\n```\n") == ["a b", "c"]


def test_a_readme_without_commands_is_no_success() -> None:
    with pytest.raises(RuntimeError, match="no command to try"):
        commands("```python\nprint()\n```\n")


def test_pips_environment_goes_before_its_files_and_matters_of_taste_stay_behind(tmp_path: Path) -> None:
    certificates = tmp_path / "certificates.pem"
    certificates.touch()
    listed = (
        ":env:.index-url='https://second.example/simple'\n"
        ":env:.no-color='1'\n"
        "global.index-url='https://first.example/simple'\n"
        f"global.cert='{certificates}'\n"
        "install.find-links='/nowhere\\n/neither'\n"
    )
    found = sources(listed)
    assert found.configuration.split("\n\n")[0].splitlines() == [
        "[global]",
        "index-url = https://second.example/simple",
        f"cert = {certificates}",
    ]
    assert "[install]\nfind-links = /nowhere\n\t/neither" in found.configuration
    assert found.paths == (str(certificates),)


def test_a_folder_of_packages_is_seen_with_the_files_beside_its_index(tmp_path: Path) -> None:
    index = tmp_path / "simple"
    index.mkdir()
    assert sources(f"global.extra-index-url='file://{index}'").paths == (str(tmp_path),)


def test_without_root_it_says_so() -> None:
    program = "import os, runpy; os.geteuid = lambda: 1000; runpy.run_module('tests.fresh', run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert (done.returncode, done.stdout) == (1, "test-fresh: only root can make a fresh machine\n")


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Path]:
    """A machine with this one's programs; afterwards nothing may be mounted in it."""
    root = tmp_path / "tree"
    for name in ("proc", "sys", "dev", "tmp"):
        (root / name).mkdir(parents=True)
    yield root
    assert str(root) not in Path("/proc/self/mountinfo").read_text()
    shutil.rmtree(root)


def start(tree: Path, script: str, *binds: Bind) -> subprocess.Popen[str]:
    """A process that runs a script in the tree."""
    job = Job(str(tree), "/tmp", ["sh", "-c", script], {"PATH": os.environ["PATH"]}, [*SYSTEM, *binds])
    program = f"import sys; from tests.fresh.namespace import Bind, Job, run; sys.exit(run({job!r}))"
    return subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True)


def output(tree: Path, script: str, *binds: Bind) -> tuple[int, str]:
    with start(tree, script, *binds) as running:
        said, _ = running.communicate(timeout=PATIENCE_S)
        return running.returncode, said


@needs_namespaces
def test_a_commands_output_and_exit_status_come_through(tree: Path) -> None:
    assert output(tree, "echo said; exit 7") == (7, "said\n")


@needs_namespaces
def test_a_command_that_a_signal_ends_has_the_shells_status_for_that(tree: Path) -> None:
    assert output(tree, "kill -KILL $$") == (128 + signal.SIGKILL, "")


@needs_namespaces
def test_a_command_that_is_not_there_is_named(tree: Path, capfd: pytest.CaptureFixture[str]) -> None:
    job = Job(str(tree), "/tmp", ["no-such-program"], {"PATH": os.environ["PATH"]}, SYSTEM)
    assert namespace.run(job) == 127
    assert "no-such-program: No such file or directory" in capfd.readouterr().err


@needs_namespaces
def test_it_has_processes_devices_and_a_host_name_of_its_own_and_none_of_the_hosts_files(tree: Path) -> None:
    script = "echo $$; uname -n; ls /; echo x > /dev/null; head -c1 /dev/zero | wc -c; ls /dev/shm; cat /proc/1/comm"
    status, said = output(tree, script)
    pid, name, *listed = said.split()
    assert (status, int(pid) < 10, name) == (0, True, "fresh")
    assert {Path(bind.target).name for bind in SYSTEM} | {"dev", "proc", "sys", "tmp", "1"} <= {*listed}
    assert "home" not in listed


@needs_namespaces
def test_binds_are_read_only_unless_they_are_to_be_written(tree: Path, tmp_path: Path) -> None:
    for name in ("kept", "shared"):
        (tmp_path / name).mkdir()
    binds = [Bind(str(tmp_path / "kept"), "/kept"), Bind(str(tmp_path / "shared"), "/shared", writable=True)]
    status, _ = output(tree, "touch /shared/new && ! touch /kept/new 2> /dev/null", *binds)
    assert status == 0
    assert (tmp_path / "shared/new").exists()


@needs_namespaces
def test_what_a_command_leaves_running_ends_with_it(tree: Path, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    held = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        status, _ = output(tree, "exec 3> /held; sleep 1000 & :", Bind(str(pipe), "/held", writable=True))
        assert status == 0
        assert os.read(held, 1) == b""  # end of file: nobody has it open to write any more
    finally:
        os.close(held)


@needs_namespaces
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_all_ends_when_what_started_it_is_killed(tree: Path, tmp_path: Path, number: signal.Signals) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    held = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        running = start(tree, "exec 3> /held; echo up; sleep 1000", Bind(str(pipe), "/held", writable=True))
        with running:
            assert read_line(running.stdout) == "up\n"
            running.send_signal(number)
        wait_until(lambda: _ended(held), "the command is gone", PATIENCE_S)
    finally:
        os.close(held)


def _ended(pipe: int) -> bool:
    try:
        return os.read(pipe, 1) == b""
    except BlockingIOError:
        return False
