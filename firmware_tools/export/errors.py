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


def foreign_output(path: Path, found: str) -> ForeignOutput:
    """What lies at `path` is left alone; `found` says what it is."""
    return ForeignOutput(f"{path}: {found}", remedy="name another path, or move what is there")
