"""The environment variables that the SDK reads: a closed list, each overridden by the argument of the same meaning."""

from __future__ import annotations

import math
import os
from pathlib import Path

from driver_shim import timeouts
from driver_shim.cards.discovery import visible_entries

_TRUE, _FALSE = {"1", "true", "yes", "on"}, {"", "0", "false", "no", "off"}
_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def device_address() -> str | None:
    """`NPU_DEVICE`: the address that `Device()` opens."""
    return os.environ.get("NPU_DEVICE") or None


def visible_devices() -> tuple[str, ...] | None:
    """`NPU_VISIBLE_DEVICES`: bus addresses, indexes or serials of the cards to see, in order of preference.

    None without it; empty means that no card is visible.
    """
    return visible_entries(os.environ.get("NPU_VISIBLE_DEVICES"))


def profile() -> str:
    """`NPU_PROFILE`: the chip of a private emulator whose address names none."""
    return os.environ.get("NPU_PROFILE") or "generic"


def cache_folder() -> Path | None:
    """`NPU_CACHE_DIR`: where compiled programs are kept for the next time; None without it, and nothing is."""
    value = os.environ.get("NPU_CACHE_DIR")
    return Path(value) if value else None


def strict() -> bool:
    """`NPU_STRICT`: whether falling back to an emulator is an error. Raises ValueError."""
    value = os.environ.get("NPU_STRICT", "").lower()
    if value not in _TRUE | _FALSE:
        raise ValueError(f"NPU_STRICT={value!r}: use 1 or 0")
    return value in _TRUE


def timeout_s() -> float:
    """`NPU_TIMEOUT`: seconds that bound every wait without a limit of its own. Raises ValueError."""
    value = os.environ.get("NPU_TIMEOUT")
    if not value:
        return timeouts.DEFAULT_S
    try:
        seconds = float(value)
    except ValueError:
        seconds = math.nan
    if not seconds > 0:
        raise ValueError(f"NPU_TIMEOUT={value!r}: give seconds, e.g. 30 or inf")
    return seconds


def host_memory_bytes() -> int | None:
    """`NPU_HOST_MEMORY`: limit of DMA-able host memory ("512M", "4G"); None without one. Raises ValueError."""
    value = os.environ.get("NPU_HOST_MEMORY")
    if not value:
        return None
    text = value.strip().lower().removesuffix("ib").removesuffix("b")
    unit = text[-1:] if text[-1:] in _UNITS else ""
    digits = text.removesuffix(unit) if unit else text
    if not digits.isdecimal() or not int(digits):
        raise ValueError(f"NPU_HOST_MEMORY={value!r}: give bytes, e.g. 512M or 4G")
    return int(digits) * _UNITS[unit]
