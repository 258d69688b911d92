"""`npuctl bench`: how fast a device answers, takes commands and copies."""

from __future__ import annotations

import click
from rich.table import Table

from sdk.cli import timeouts
from sdk.cli.device_selection import device_option, open_for_work
from sdk.cli.frame import Frame
from sdk.cli.verb import verb

QUICK_DIVISOR = 20


@verb("bench", limit_s=timeouts.WORK_S)
@device_option
@click.option("--quick", is_flag=True, help="Fewer rounds: a look, not a figure.")
def command(frame: Frame, wanted: tuple[str, ...], quick: bool) -> None:
    """Measure round trips, commands per second and copies (wall clock)."""
    from sdk.cli import measurements as m

    share = QUICK_DIVISOR if quick else 1
    with open_for_work(wanted, frame) as device:
        trip = m.round_trip(device, m.ROUND_TRIPS // share)
        singles = m.singles_per_s(device, m.SINGLE_DESCRIPTORS // share)
        arrays = m.array_per_s(device, m.ARRAY_ROUNDS // share)
        sizes = m.COPY_MEBIBYTES[: 1 if quick else None]
        copied = m.copies(device, sizes, max(1, m.COPY_ROUNDS // share))
        address = device.address
    frame.add(
        {
            "address": address,
            "clock": "wall",
            "nop_round_trip": trip.entry(),
            "single_commands_per_s": singles,
            "array_commands_per_s": arrays,
            "copies": [
                {
                    "size_bytes": one.bytes,
                    "to_device_median_seconds": one.to_device,
                    "to_host_median_seconds": one.to_host,
                    "memcpy_median_seconds": one.memcpy,
                }
                for one in copied
            ],
        }
    )
    p50, p90, p99 = (seconds * 1e6 for seconds in (trip.p50, trip.p90, trip.p99))
    frame.say(f"round trip of a nop: p50 {p50:.1f} µs, p90 {p90:.1f} µs, p99 {p99:.1f} µs")
    frame.say(f"commands: {singles / 1e3:,.0f} k/s one by one, {arrays / 1e6:,.2f} M/s in arrays")
    table = Table("copy", "to device", "to host", "memcpy", box=None, pad_edge=False)
    for one in copied:
        rates = (f"{one.bytes / seconds / 1e9:.2f} GB/s" for seconds in (one.to_device, one.to_host, one.memcpy))
        table.add_row(f"{one.bytes // m.MEBIBYTE} MiB", *rates)
    frame.console.print(table)
