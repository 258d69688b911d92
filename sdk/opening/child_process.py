"""How the tool starts other modules of these packages as processes."""

from __future__ import annotations

import os
import sys
from pathlib import Path

_PACKAGE_ROOT = Path(__file__).resolve().parents[2]


def module_command(module: str, *arguments: str) -> tuple[list[str], dict[str, str]]:
    """(argument vector, environment) of `python -m MODULE`.

    It finds the same packages as this process, and nothing in the folder that the user happens to be in.
    """
    paths = [os.fspath(_PACKAGE_ROOT), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in paths if path)}
    return [sys.executable, "-P", "-m", module, *arguments], environment
