"""Errors of an export."""

from __future__ import annotations

from pathlib import Path

from driver_shim.errors import NpuError


class NameClash(NpuError, ValueError):
    """Two declarations would get one name in the exported text."""

    code = "export-name-clash"


class ForeignOutput(NpuError, FileExistsError):
    """What lies at the output's path was not made by an export, so it is not overwritten."""

    code = "output-exists"

    def __init__(self, path: Path, found: str) -> None:
        super().__init__(f"{path}: {found}", remedy="name another path, or move what is there")
