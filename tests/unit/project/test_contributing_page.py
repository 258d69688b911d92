"""CONTRIBUTING.md names files and commands that exist."""

from __future__ import annotations

import re

from tests.support.paths import ROOT

PAGE = (ROOT / "CONTRIBUTING.md").read_text("utf-8")


def test_every_file_it_names_exists() -> None:
    named = set(re.findall(r"`((?:sdk|driver_shim|emulator|firmware_tools|tests|docs)/[\w/.]*)`", PAGE))
    examples = {"sdk/cli/VERB.py", "sdk/cli/schemas/VERB.json", "tests/unit/sdk/queue/test_queue.py"}
    assert len(named) > 30
    assert not [name for name in named - examples if not (ROOT / name).exists()]


def test_every_command_it_names_is_a_target_of_the_makefile() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    named = set(re.findall(r"`make ([\w-]+)`", PAGE))
    assert named and named <= targets
