"""Copies between host and device memory beside memcpy and PoCL."""

from __future__ import annotations

from collections.abc import Mapping

import sdk
from benchmarks.figures import Figure
from sdk.cli.measurements import MEBIBYTE, copies

SHARE_OF_MEMCPY = {1: 0.70, 4: 0.85, 16: 0.85, 64: 0.85}
"""MiB → least share of memcpy's speed that a copy to the device must reach."""


def figures(device: sdk.Device, peer: Mapping[int, float]) -> list[Figure]:
    """All figures of this topic; `peer` maps bytes to PoCL's median seconds."""
    found = []
    for one in copies(device, tuple(SHARE_OF_MEMCPY)):
        mebibytes = one.bytes // MEBIBYTE
        theirs = one.bytes / peer[one.bytes] if one.bytes in peer else None
        found += [
            Figure(
                f"copy {mebibytes} MiB to device", one.bytes / one.to_device, "GB/s", "PoCL" if theirs else None, theirs
            ),
            Figure(f"copy {mebibytes} MiB to host", one.bytes / one.to_host, "GB/s", "memcpy", one.bytes / one.memcpy),
            Figure(
                f"copy {mebibytes} MiB over memcpy",
                one.memcpy / one.to_device,
                "×",
                budget=SHARE_OF_MEMCPY[mebibytes],
                at_least=True,
            ),
        ]
    return found
