"""Numbers on the command line, refused with an example of what is meant."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar

import click

_Number = TypeVar("_Number", int, float)


def bounded(
    kind: Callable[[str], _Number], meant: str, *, least: float, most: float = math.inf, above: bool = False
) -> Callable[[object], _Number]:
    """An option's type: numbers from `least`, or `above` it, to `most`; another is answered with what is meant."""

    def convert(value: object) -> _Number:
        try:
            given = kind(str(value))
        except ValueError:
            raise click.BadParameter(f"{value!r}: give {meant}") from None
        if not least <= given <= most or (above and given == least):
            raise click.BadParameter(f"{value}: give {meant}")
        return given

    return convert


TIMEOUT = bounded(float, "seconds, e.g. 30 or inf", least=0, above=True)
