"""Where this machine's pip gets packages from, for another machine that has its network but none of its files."""

from __future__ import annotations

import ast
import configparser
import io
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from tests.support.debian import STEP_S

OPTIONS = (
    "cert",
    "client-cert",
    "constraint",
    "default-timeout",
    "extra-index-url",
    "find-links",
    "index-url",
    "no-index",
    "proxy",
    "retries",
    "timeout",
    "trusted-host",
)
"""Options of pip that are about the way to packages; others are a matter of taste and stay behind."""
_INDEXES = ("index-url", "extra-index-url")
_ENVIRONMENT = ":env:"
_FILE_URL = "file://"


class Sources(NamedTuple):
    """What makes another pip find the same packages."""

    configuration: str
    """Text of a pip.conf."""
    paths: tuple[str, ...]
    """Files and folders of this machine that it names."""


def pip_sources() -> Sources:
    """Those of the pip that belongs to this Python. Raises CalledProcessError."""
    command = [sys.executable, "-m", "pip", "config", "list", "--disable-pip-version-check"]
    listed = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL, timeout=STEP_S
    )
    return sources(listed.stdout)


def sources(listed: str) -> Sources:
    """From what `pip config list` prints: `section.option='value'` by line, with the environment's variables among
    them, which go first for pip."""
    settings: dict[str, dict[str, str]] = {}
    lines = [line.partition("=") for line in listed.splitlines() if "=" in line]
    for name, _, shown in sorted(lines, key=lambda line: line[0].startswith(_ENVIRONMENT)):
        section, _, option = name.rpartition(".")
        if option in OPTIONS:
            settings.setdefault("global" if section == _ENVIRONMENT else section, {})[option] = ast.literal_eval(shown)
    named = [path for options in settings.values() for item in options.items() for path in _local_paths(*item)]
    parser = configparser.ConfigParser(interpolation=None)
    parser.read_dict(settings)
    text = io.StringIO()
    parser.write(text)
    return Sources(text.getvalue(), tuple(dict.fromkeys(path for path in named if Path(path).exists())))


def _local_paths(option: str, value: str) -> list[str]:
    """Files and folders that an option's value names. An index's links lead to the files beside it."""
    paths = [word.removeprefix(_FILE_URL) for word in value.split()]
    local = [path for path in paths if path.startswith("/")]
    return [str(Path(path).parent) for path in local] if option in _INDEXES else local
