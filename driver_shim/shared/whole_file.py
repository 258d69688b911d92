"""Replacing a file whole: whoever reads it finds the old bytes or the new ones, also after a kill or on a full disk."""

from __future__ import annotations

import os
from pathlib import Path


def replace_whole(path: Path, data: bytes) -> None:
    """Put `data` in the file's place, and leave nothing beside it. Raises OSError, and then the old file is there."""
    temporary = path.with_name(f"{path.name}.new")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
