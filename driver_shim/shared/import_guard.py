"""The import guard: it bars onnxruntime from a process, so that an answer that agrees with it was computed here.

The device's results are compared with onnxruntime's; the comparison means something only where it cannot be imported.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

BARRED = ("onnxruntime",)


class _Guard:
    """Refuses the barred packages and everything in them; knows no other module."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package = fullname.partition(".")[0]
        if package in BARRED:
            raise ImportError(
                f"{package} is barred from this process: what the device answers is compared with it, so it must not"
                " take part in the answer",
                name=fullname,
            )
        return None


def install() -> None:
    """Make importing a barred package raise ImportError from now on; repeating it does nothing.

    Raises RuntimeError when one is imported already.
    """
    loaded = [name for name in BARRED if name in sys.modules]
    if loaded:
        raise RuntimeError(f"{loaded[0]} is already imported here; install the guard before anything else")
    if not installed():
        sys.meta_path.insert(0, _Guard())


def installed() -> bool:
    """Whether the guard is active in this process."""
    return any(isinstance(finder, _Guard) for finder in sys.meta_path)
