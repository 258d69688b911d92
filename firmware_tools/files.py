"""Output files that are whole or not there."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

PRIVATE_MODE = 0o600
_NEW_FILE_MODE = 0o666


def write_whole(path: Path, data: bytes) -> None:
    """Write a file by renaming a finished one to its name: nobody sees half of it. Raises OSError."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fchmod(file.fileno(), _mode_of(path))
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def create_file(path: Path, data: bytes, mode: int = _NEW_FILE_MODE) -> None:
    """Write a file that is not there yet. Raises FileExistsError, OSError."""
    with open(path, "xb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
        try:
            file.write(data)
        except BaseException:
            path.unlink()
            raise


def _mode_of(path: Path) -> int:
    """That of the file to be replaced, else what this process gives to new files."""
    try:
        return path.stat().st_mode & 0o777
    except FileNotFoundError:
        mask = os.umask(0)
        os.umask(mask)
        return _NEW_FILE_MODE & ~mask
