"""Proof that onnxruntime took no part: it is absent from the device's processes.

From one's own, `driver_shim.shared.import_guard` bars it.
"""

from __future__ import annotations

from pathlib import Path

PACKAGE = "onnxruntime"


def holders(root_pid: int) -> tuple[list[int], list[int]]:
    """(processes looked at, those that have onnxruntime mapped): a process and all its descendants."""
    seen, holding = [], []
    waiting = [root_pid]
    while waiting:
        pid = waiting.pop()
        try:
            maps = Path(f"/proc/{pid}/maps").read_text("utf-8", "replace")
        except OSError:
            continue
        seen.append(pid)
        if PACKAGE in maps:
            holding.append(pid)
        waiting += _children(pid)
    return seen, holding


def _children(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += [int(text) for text in task.read_text("ascii").split()]
        except OSError:
            continue
    return found
