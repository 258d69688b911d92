"""Collection of firmware builds' log texts in the file that is shipped: `python -m … ELF...`.

Builds that are there stay: devices keep what older firmware wrote.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from driver_shim.errors import NpuError
from firmware_tools.files import write_whole
from firmware_tools.log_strings import SHIPPED, dump, load, read_elf


def collect(elf_files: Sequence[Path], output: Path) -> int:
    """Add the builds; returns how many the file then has. Raises LogStringsError, OSError."""
    builds = {build.build_id: build for build in (load(output) if output.exists() else [])}
    for path in elf_files:
        build = read_elf(path)
        builds[build.build_id] = build
    write_whole(output, dump(builds.values()).encode("ascii"))
    return len(builds)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="collect_log_strings", description=__doc__)
    parser.add_argument("elf", nargs="+", type=Path, help="a firmware's ELF file")
    parser.add_argument("-o", "--output", type=Path, default=SHIPPED, help="the file to add them to")
    given = parser.parse_args(arguments)
    try:
        count = collect(given.elf, given.output)
    except (NpuError, OSError) as error:
        sys.stderr.write(f"{parser.prog}: {error}\n")
        return 1
    sys.stdout.write(f"{given.output}: {count} builds\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
