"""Files that people name: read as far as is sensible, written whole or not at all."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from driver_shim.errors import NpuError
from driver_shim.shared.whole_file import replace_whole

PRIVATE_MODE = 0o600
_NEW_FILE_MODE = 0o666
MAX_FIRMWARE_BYTES = 64 << 20
"""An image, or the program to make one of: far more than a slot holds."""
MAX_KEY_BYTES = 64 << 10
"""A key in PEM, or a password."""


class FileTooLarge(NpuError, ValueError):
    """A file has more than anything that it could be."""

    code = "file-too-large"


def read_bounded(path: Path, most: int) -> bytes:
    """All of a file, which may be a pipe or a device. Raises FileTooLarge, OSError."""
    with path.open("rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise FileTooLarge(f"{path} has more than {most:,} bytes: it is not what was asked for")
    return data


def write_whole(path: Path, data: bytes) -> None:
    """Write a file by renaming a finished one to its name: nobody sees half of it.

    A link stays one: what it points at is written. What is no file, /dev/stdout for one, is written to as it is.
    Raises OSError that names `path`.
    """
    try:
        if _is_special(path):
            with path.open("wb", buffering=0) as file:
                _write_all(file.fileno(), data)
        else:
            replace_whole(Path(os.path.realpath(path)), data, shared=True, durable=True)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def create_file(path: Path, data: bytes, mode: int = _NEW_FILE_MODE) -> None:
    """Write a file that is not there yet. Raises FileExistsError, OSError."""
    with open(path, "xb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
        try:
            file.write(data)
            file.flush()
        except BaseException:
            path.unlink()
            raise


def _is_special(path: Path) -> bool:
    """Whether a rename would put a file in place of a device, a pipe or a folder."""
    try:
        return not stat.S_ISREG(path.stat().st_mode)
    except FileNotFoundError:
        return False


def _write_all(descriptor: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(descriptor, left) :]
