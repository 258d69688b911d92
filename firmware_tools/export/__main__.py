"""`python -m firmware_tools.export c --map management -o registers.h`: for builds, which have neither SDK nor click."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from driver_shim.errors import NpuError
from firmware_tools.export.c_header import c_header
from firmware_tools.export.maps import MAPS, named_maps
from firmware_tools.export.output import write_text
from firmware_tools.export.system_rdl import system_rdl

_FORMATS = {"c": c_header, "rdl": system_rdl}


def main() -> int:
    """Export to a file or to stdout; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m firmware_tools.export", description="Export register maps.")
    parser.add_argument("format", choices=_FORMATS)
    parser.add_argument(
        "--map", dest="names", action="append", default=[], choices=MAPS, help="repeatable; all maps without it"
    )
    parser.add_argument("-o", "--output", type=Path, help="the file to write instead of stdout")
    arguments = parser.parse_args()
    text = _FORMATS[arguments.format](named_maps(arguments.names))
    if arguments.output is None:
        sys.stdout.write(text)
        return 0
    try:
        write_text(arguments.output, text)
    except (NpuError, OSError) as error:
        sys.stderr.write(f"{parser.prog}: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
