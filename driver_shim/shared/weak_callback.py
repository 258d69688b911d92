"""Callbacks that do not keep the object whose method they are."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import ParamSpec

_Arguments = ParamSpec("_Arguments")


def weak_callback(method: Callable[_Arguments, object]) -> Callable[_Arguments, None]:
    """Calls a bound method while its object is there, and nothing after that."""
    known = weakref.WeakMethod(method)

    def call(*arguments: _Arguments.args, **keywords: _Arguments.kwargs) -> None:
        there = known()
        if there is not None:
            there(*arguments, **keywords)

    return call
