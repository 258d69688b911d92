"""Replacing a file whole: whoever reads it finds the old bytes or the new ones, also after a kill or on a full disk."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path


def replace_whole(path: Path, data: bytes, *, shared: bool = False, durable: bool = False) -> None:
    """Put `data` in the file's place, with its permissions if it is there already, and leave nothing beside it.

    With `shared` others may do so at the same moment, or own the folder as well; else what a kill left is written over.
    With `durable` the bytes are on the disk before the old ones go. Raises OSError, and then the old file is there.
    """
    temporary = path.with_name(f".{secrets.token_hex(8)}.new" if shared else f"{path.name}.new")
    try:
        with open(temporary, "xb" if shared else "wb") as file:
            with contextlib.suppress(FileNotFoundError):  # before the data is there for others to read
                os.fchmod(file.fileno(), path.stat().st_mode & 0o777)
            file.write(data)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
