"""The files that the demo classifies."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

_PACKAGE_ROOT = Path(__file__).resolve().parents[2]
_OURS = ("sdk", "driver_shim", "emulator", "firmware_tools")
_PROJECT_FILE = "pyproject.toml"
_GENERATED = frozenset({"__pycache__", "build", "dist", "node_modules"})


def own_files() -> list[Path]:
    """This project's files: the whole tree where it is one, else the installed packages."""
    if (_PACKAGE_ROOT / _PROJECT_FILE).exists():
        return expand([_PACKAGE_ROOT])
    return expand(_PACKAGE_ROOT / name for name in _OURS)


def expand(paths: Iterable[Path]) -> list[Path]:
    """Files as they are, folders as what lies in them; hidden and generated folders are passed over."""
    found: dict[Path, None] = {}
    for path in paths:
        for file in _walk(path) if path.is_dir() else (path,):
            found[file] = None
    return list(found)


def _walk(folder: Path) -> Iterator[Path]:
    for where, folders, files in os.walk(folder):
        folders[:] = sorted(
            name for name in folders if not (name.startswith(".") or name in _GENERATED or name.endswith(".egg-info"))
        )
        for name in sorted(files):
            yield Path(where, name)


def shown(path: str) -> str:
    """The path as people want to read it: relative where that is shorter."""
    relative = os.path.relpath(path)
    return min(relative, path, key=len)
