"""A device as the report's keys, and its link for people."""

from __future__ import annotations

import dataclasses
from typing import Any

from sdk.cli.frame import holder_facts
from sdk.opening.listing import DeviceInfo


def link_text(info: DeviceInfo) -> str | None:
    """A card's link for people: "5 GT/s x16", "2.5 GT/s x1 of 5 GT/s x16" when it could do more; None when unknown."""
    now = _link(info.link_speed_gt_per_s, info.link_width_lanes)
    most = _link(info.link_max_speed_gt_per_s, info.link_max_width_lanes)
    if now is None:
        return None if most is None else f"? of {most}"
    return now if most in (None, now) else f"{now} of {most}"


def _link(speed: float | None, lanes: int | None) -> str | None:
    return None if speed is None or lanes is None else f"{speed:g} GT/s x{lanes}"


def facts(info: DeviceInfo) -> dict[str, Any]:
    """A device's info as the report's keys; `tick_hz` is `tick_hertz` there."""
    entry = dataclasses.asdict(info)
    entry["tick_hertz"] = entry.pop("tick_hz")
    del entry["pre_open"], entry["boot"]  # known to those who open the device; info shows them
    entry["holder"] = holder_facts(info.holder)
    return entry
