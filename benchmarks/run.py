"""Runs all benchmarks, prints a table and writes JSON: `python -m benchmarks.run [--output FILE]`."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

import sdk
from benchmarks import (
    copying,
    engines,
    firmware,
    idling,
    language_models,
    models,
    pocl,
    queues,
    raw,
    startup,
    trapped_reads,
)
from benchmarks.figures import Figure
from sdk.cli.frame import now
from sdk.version import VERSION


@click.command()
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), help="Write JSON here.")
def main(output: Path | None) -> None:
    """Measure, print, write."""
    console = Console(highlight=False)
    peer, missing = pocl.measure(tuple(copying.SHARE_OF_MEMCPY))
    console.print(
        peer.version if peer else f"PoCL is left out: {missing} (make bench installs the wheels)", soft_wrap=True
    )
    not_built = trapped_reads.missing()
    if not_built:
        console.print(f"libvfio-user is left out: {not_built}", soft_wrap=True)
    for what in (*models.left_out(), *language_models.left_out()):
        console.print(f"left out: {what}", soft_wrap=True)
    found: list[Figure] = [*raw.figures(), *startup.figures(), *trapped_reads.figures()]
    with sdk.Device("emulator") as device:
        found += queues.figures(device, peer)
        found += copying.figures(device, peer.copies if peer else {})
        found += idling.figures(device)  # last: it starts an engine
    found += engines.figures()
    found += models.figures()
    found += language_models.figures()
    found += firmware.figures()
    table = Table("what", "ours", "peer", "budget", "", box=None, pad_edge=False)
    for figure in found:
        table.add_row(*figure.row())
    console.print(table)
    if output:
        document = {
            "time": now(),
            "version": VERSION,
            "python": platform.python_version(),
            "machine": platform.machine(),
            "processors": len(os.sched_getaffinity(0)),
            "pocl": peer.version if peer else None,
            "libvfio_user": not not_built,
            "figures": [figure.entry() for figure in found],
        }
        output.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    main()
