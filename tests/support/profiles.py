"""Profiles of tests' own, as files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

SMALL: dict[str, Any] = {
    "tick_hz": 1_000_000_000,
    "memory_bytes": 1 << 26,
    "engines": 3,
    "int8_macs_per_tick": 512,
    "fp32_macs_per_tick": 64,
    "tiles": [[8, 8], [16, 32]],
    "fill_ticks": 3,
    "memory_bytes_per_tick": 64,
    "link_bytes_per_tick": 8,
    "exec_fixed_ticks": 100,
    "command_fixed_ticks": 10,
}
"""Figures of a small chip that lacks the 16-bit types."""


def profile_file(folder: Path, name: str = "small", **figures: Any) -> Path:
    """The path of a profile: the small chip's figures but for those given; those that are None are left out."""
    text = f'name = "{name}"\nsummary = "A chip of a test\'s."\n'
    for figure, value in {**SMALL, **figures}.items():
        if value is not None:
            text += f'\n[{figure}]\nvalue = {value}\nsource = "a test"\nassumed = true\n'
    path = folder / f"{name}.toml"
    path.write_text(text)
    return path
