"""The core of the contract suite: what must hold, unchanged, on every transport. Everything else is listed here.

A test of this folder that asks for a function by transport belongs to the core, unless a row below takes one transport
out and says why. Tests that name no transport look at one side alone, or start what they need themselves.
"""

from __future__ import annotations

from typing import NamedTuple

import pytest

_PARAMETERS = ("rig", "shared_rig", "shared_device", "device", "transport")


class Row(NamedTuple):
    """Tests that cannot hold on one transport."""

    transport: str
    module: str
    test: str
    """Name of the test function; "" for all of the module."""
    parameters: str
    """What the test's parameters must contain, as its id shows them; "" for any."""
    reason: str


NOT_CORE: tuple[Row, ...] = ()


def transport_of(item: pytest.Item) -> str | None:
    """The transport that a test runs over; None when it names none."""
    parameters = getattr(getattr(item, "callspec", None), "params", {})
    return next((str(parameters[name]) for name in _PARAMETERS if name in parameters), None)


def row_against(item: pytest.Item) -> Row | None:
    """The row that takes this test out of the core on its transport, if there is one."""
    transport = transport_of(item)
    name = getattr(item, "originalname", None) or item.name
    for row in NOT_CORE:
        if (row.transport, row.module) != (transport, item.path.stem):
            continue
        if row.test in ("", name) and row.parameters in item.name:
            return row
    return None
