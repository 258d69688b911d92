"""Release of the reference firmware, as it is shipped: `python -m firmware_tools.reference_firmware.release -o DIR`.

ELF file, image signed with the development key, log texts, and the names of the tools that built them. The same tools
make the same bytes; a test compares them with what is shipped.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from driver_shim.errors import NpuError
from driver_shim.protocol.firmware_slots import LOAD_ADDRESS
from driver_shim.protocol.image import parse_image
from driver_shim.protocol.management_registers import HARDWARE_ID
from firmware_tools.build import read_program
from firmware_tools.files import write_whole
from firmware_tools.image import ImageContents, build_image
from firmware_tools.keys import DEVELOPMENT_KEY, load_private_key
from firmware_tools.log_strings import SHIPPED
from firmware_tools.reference_firmware.build import COMPILER, VERSION, build
from firmware_tools.reference_firmware.collect_log_strings import collect
from firmware_tools.signing import KeySigner, sign_image

SECURITY_COUNTER = 1
ELF_NAME, IMAGE_NAME, TOOLS_NAME = "reference.elf", "reference.bin", "reference.json"
LINKER = "riscv64-unknown-elf-ld"


def tools() -> dict[str, str]:
    """Compiler and linker, by their own words. Raises OSError when one is missing."""
    return {name: _version(name) for name in (COMPILER, LINKER)}


def _version(tool: str) -> str:
    said = subprocess.run([tool, "--version"], capture_output=True, text=True, timeout=10, check=True).stdout
    return said.splitlines()[0]


def release(folder: Path) -> None:
    """Write the shipped files into a folder. Raises NpuError, OSError."""
    elf = build(folder).rename(folder / ELF_NAME)
    contents = ImageContents(
        read_program(elf).payload,
        VERSION,
        LOAD_ADDRESS,
        security_counter=SECURITY_COUNTER,
        hardware_ids=(HARDWARE_ID,),
    )
    signer = KeySigner(load_private_key(DEVELOPMENT_KEY))
    write_whole(folder / IMAGE_NAME, sign_image(parse_image(build_image(contents)), [signer]))
    write_whole(folder / TOOLS_NAME, (json.dumps(tools(), indent=1) + "\n").encode())


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m firmware_tools.reference_firmware.release", description=__doc__)
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="folder for the files")
    folder = parser.parse_args().output
    try:
        release(folder)
        collect([folder / ELF_NAME], SHIPPED)
    except (NpuError, OSError, subprocess.SubprocessError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(f"{folder / IMAGE_NAME}\n{SHIPPED}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
