"""The wheel, built and installed without extras in a virtual environment that has nothing else: what the README shows
runs from an empty folder, and what needs an extra says which.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import onnx
import pytest

from emulator.management.process.options import FACTORY_IMAGE
from firmware_tools.keys import DEVELOPMENT_KEY
from sdk.cli import fw
from sdk.cli.application import VERBS
from tests.support.models import model, node
from tests.support.npuctl import published
from tests.support.time_scale import patience
from tests.support.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "npuctl.py", "sdk", "driver_shim", "emulator", "firmware_tools")
"""What a wheel is made of."""
PATIENCE_S = patience(120.0)
INSTALL_S = patience(600.0)
"""Some 70 MB of packages may have to be downloaded."""
ELF = FACTORY_IMAGE.with_suffix(".elf")
EVERY_VERB = [*([verb] for verb in VERBS), *(["fw", verb] for verb in fw.VERBS)]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(INSTALL_S + PATIENCE_S)]


class Installed(NamedTuple):
    """A virtual environment with the wheel, and an empty folder to run things in."""

    wheel: Path
    programs: Path
    folder: Path

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """One of its programs, without any of this process's variables that lead to our sources."""
        return subprocess.run(
            [str(self.programs / command[0]), *command[1:]],
            cwd=self.folder,
            env=environment(self.folder.parent),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )


def environment(runtime_folder: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("NPU_", "PYTHON"))}
    return {**kept, "NPU_RUNTIME_DIR": str(runtime_folder)}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    work = tmp_path_factory.mktemp("wheel")
    sources = work / "sources"  # a build leaves files beside them
    sources.mkdir()
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, sources / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, sources)
    pip(sys.executable, "wheel", "--no-build-isolation", "--no-deps", "--wheel-dir", str(work), str(sources))
    (wheel,) = work.glob("*.whl")
    subprocess.run([sys.executable, "-m", "venv", str(work / "venv")], check=True, timeout=PATIENCE_S)
    programs = work / "venv/bin"
    pip(str(programs / "python"), "install", str(wheel))
    folder = work / "empty"
    folder.mkdir()
    return Installed(wheel, programs, folder)


def pip(python: str, *arguments: str) -> None:
    command = [python, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_S, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def exported(installed: Installed) -> str:
    """A model, beside the empty folder."""
    path = installed.folder.parent / "model.onnx"
    onnx.save(model([node("Relu", ["x"], ["y"])], {"x": ("float32", [2])}, {"y": "float32"}), path)
    return str(path)


@contextlib.contextmanager
def served(installed: Installed, *arguments: str) -> Iterator[str]:
    """Address of an emulator that the installed npuctl serves."""
    work = installed.folder.parent
    socket = work / "npu.sock"
    with (work / "emulator.log").open("w") as log:
        process = subprocess.Popen(
            [installed.programs / "npuctl", "emulate", "--socket", socket, *arguments],
            cwd=installed.folder,
            env=environment(work),
            stdin=subprocess.DEVNULL,
            stderr=log,
        )
    address = f"vfio-user:{socket.resolve()}"
    try:
        wait_until(
            lambda: process.poll() is not None or bool(published(work, "address", address)),
            "the emulator is published",
            PATIENCE_S,
        )
        assert process.poll() is None, (work / "emulator.log").read_text()
        yield address
    finally:
        process.terminate()
        process.wait(PATIENCE_S)


def test_the_wheel_holds_what_the_packages_need_and_nothing_else(installed: Installed) -> None:
    names = set(zipfile.ZipFile(installed.wheel).namelist())
    (information,) = {name.partition("/")[0] for name in names if ".dist-info/" in name}
    assert f"{information}/licenses/LICENSE" in names
    assert {"npuctl.py", "sdk/py.typed", str(FACTORY_IMAGE.relative_to(ROOT)), str(ELF.relative_to(ROOT))} <= names
    tops = {name.partition("/")[0] for name in names}
    assert tops == {information, "npuctl.py", "sdk", "driver_shim", "emulator", "firmware_tools"}


def test_the_readmes_example_prints_what_it_says(installed: Installed) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)
    done = installed.run("python", "-c", example)
    assert done.returncode == 0, done.stderr
    said = re.findall(r"^ +print\(.*\)  # (.*)$", example, re.MULTILINE)
    assert done.stdout.splitlines() == said
    assert len(said) == 2


@pytest.mark.parametrize("verb", EVERY_VERB, ids=" ".join)
def test_every_verb_explains_itself(installed: Installed, verb: list[str]) -> None:
    done = installed.run("npuctl", *verb, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"Usage: npuctl {' '.join(verb)} ")


def test_what_needs_no_extra_runs(installed: Installed, exported: str) -> None:
    for arguments in (
        ("--version",),
        ("doctor",),
        ("run", exported),
        ("fw", "inspect", str(FACTORY_IMAGE)),
        ("fw", "export", "--format", "c", "-o", "../registers.h"),
    ):
        done = installed.run("npuctl", *arguments)
        assert done.returncode == 0, f"{arguments}: {done.stderr}"
    assert list(installed.folder.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "extra"),
    [
        (["demo"], "demo"),
        (["run", "MODEL", "--verify"], "models"),
        (["info", "-d", "usb:X"], "usb"),
        (["regs", "-d", "usb:X"], "usb"),
        (["fw", "recover", "-d", "usb:X", str(FACTORY_IMAGE)], "usb"),
        (["emulate", "--socket", "../other.sock", "--firmware", str(ELF)], "firmware"),
        (["emulate", "--socket", "../other.sock", "--uart", "stdio"], "firmware"),
        (["fw", "keygen", "../key.pem"], "firmware"),
        (["fw", "sign", str(FACTORY_IMAGE), "--key", str(DEVELOPMENT_KEY), "-o", "../image.img"], "firmware"),
        (["fw", "verify", str(FACTORY_IMAGE), "--key", str(DEVELOPMENT_KEY)], "firmware"),
        (["fw", "export", "--format", "html", "-o", "../html"], "firmware"),
    ],
    ids=lambda value: " ".join(word for word in value if word.isalpha()) if isinstance(value, list) else None,
)
def test_what_needs_an_extra_fails_naming_it(
    installed: Installed, exported: str, arguments: list[str], extra: str
) -> None:
    done = installed.run("npuctl", *(exported if word == "MODEL" else word for word in arguments))
    assert done.returncode == 1
    assert f"pip install 'npu-sdk[{extra}]'" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(installed.folder.iterdir()) == []


def test_a_served_device_without_its_management_core_says_what_brings_one(installed: Installed) -> None:
    with served(installed, "--usbip") as address:
        assert installed.run("npuctl", "info", "-d", address).returncode == 0
        for arguments in (["console"], ["fw", "log"], ["fw", "flash", str(FACTORY_IMAGE)], ["fw", "rollback"]):
            done = installed.run("npuctl", *arguments, "-d", address)
            assert done.returncode == 1, f"{arguments}: {done.stderr}"
            assert "pip install 'npu-sdk[firmware]'" in done.stderr
