"""Build of the reference firmware: `python -m firmware_tools.reference_firmware.build -o DIR`.

The same sources make the same bytes, wherever they and the output lie. The headers that say what the hardware and the
protocol look like are generated from `driver_shim.protocol` at every build.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from driver_shim.errors import NpuError
from driver_shim.protocol import firmware_slots, management_registers
from driver_shim.protocol.image_layout import ImageVersion
from firmware_tools.errors import BuildError
from firmware_tools.export.c_header import c_header
from firmware_tools.export.maps import MAPS
from firmware_tools.image import DEFAULT_HEADER_SIZE
from firmware_tools.reference_firmware.protocol_header import protocol_header

COMPILER = "riscv64-unknown-elf-gcc"
COMPILER_PACKAGE = "gcc-riscv64-unknown-elf"
"""What Debian and Ubuntu call the package that has it."""
ELF_NAME = "reference_firmware.elf"
VERSION = ImageVersion(1, 0, 0)

_HERE = Path(__file__).resolve().parent
SOURCES = _HERE / "src"
LINKER_SCRIPT = _HERE / "linker.ld"
_COMPILE_SECONDS = 120
"""One source takes a tenth of a second."""

_MACHINE = ("-march=rv32imac", "-mabi=ilp32", "-mcmodel=medlow")
_COMPILE = (
    *_MACHINE,
    "-std=gnu11",
    "-Os",
    "-g",
    "-ffreestanding",
    "-fno-common",
    "-ffunction-sections",
    "-fdata-sections",
    # or memcpy would be compiled into a call of itself
    "-fno-tree-loop-distribute-patterns",
    "-gno-record-gcc-switches",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-Wconversion",
    "-Wno-sign-conversion",
    "-Wmissing-prototypes",
    "-Wno-main",
)
_LINK = (
    *_MACHINE,
    "-nostdlib",
    "-static",
    "-Wl,--gc-sections",
    "-Wl,--build-id=sha1",
    "-Wl,--fatal-warnings",
    # there is no memory protection that could tell code from data
    "-Wl,--no-warn-rwx-segments",
)


class CompilerMissing(BuildError):
    """The cross compiler is not installed."""

    code = "compiler-missing"


def build(output_dir: Path, defines: Sequence[str] = (), version: ImageVersion = VERSION) -> Path:
    """Compile and link into `output_dir`, which is made if need be; returns the ELF file.

    `defines` are the compiler's: `VARIANT_HANGS=1`, `GREETING="hello"` (src/variants.h has them all). `version` is what
    a firmware calls itself that was loaded from outside; in a slot, the image's header says it.
    Raises CompilerMissing, BuildError with the compiler's messages, OSError.
    """
    if shutil.which(COMPILER) is None:
        raise CompilerMissing(f"{COMPILER} is not installed", remedy=f"apt install {COMPILER_PACKAGE}")
    output_dir.mkdir(parents=True, exist_ok=True)
    elf = output_dir / ELF_NAME
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch).resolve()
        write_headers(work / "generated")
        macros = [f"-D{define}" for define in (f'FIRMWARE_VERSION="{version}"', *defines)]
        objects = [_compile(source, work, macros) for source in sources()]
        linked = _link(objects, work)
        shutil.copyfile(linked, elf)
    return elf


def sources() -> list[Path]:
    """Everything that is compiled, in an order that does not depend on the file system."""
    return sorted([*SOURCES.rglob("*.c"), *SOURCES.rglob("*.S")], key=lambda path: path.relative_to(SOURCES).as_posix())


def write_headers(folder: Path) -> None:
    """Generate `npu_registers.h` and `npu_protocol.h`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "npu_registers.h").write_text(c_header([MAPS["management"]]), "utf-8")
    (folder / "npu_protocol.h").write_text(protocol_header(), "utf-8")


def _compile(source: Path, work: Path, macros: Sequence[str]) -> str:
    name = source.relative_to(SOURCES).as_posix()
    target = name.replace("/", "_") + ".o"
    generated = work / "generated"
    # the assembler is handed only the maps of debug information
    prefixes = [
        f"-f{what}-prefix-map={folder}={stands_for}"
        for what in ("file", "debug")
        for folder, stands_for in ((SOURCES, "src"), (generated, "generated"))
    ]
    include = ["-I.", f"-I{generated}"]
    _run([COMPILER, *_COMPILE, *prefixes, *include, *macros, "-c", name, "-o", str(work / target)], SOURCES)
    return target


def _link(objects: Sequence[str], work: Path) -> Path:
    symbols = {
        "ram_start": firmware_slots.LOAD_ADDRESS + DEFAULT_HEADER_SIZE,
        "ram_end": firmware_slots.STAGING_ADDRESS,
        "staging_memory": firmware_slots.STAGING_ADDRESS,
        "retained_memory": firmware_slots.RETAINED_ADDRESS,
        "flash_memory": management_registers.FLASH_BASE,
    }
    defined = [f"-Wl,--defsym={name}={value:#x}" for name, value in symbols.items()]
    _run([COMPILER, *_LINK, *defined, "-T", str(LINKER_SCRIPT), *objects, "-lgcc", "-o", ELF_NAME], work)
    return work / ELF_NAME


def _run(command: Sequence[str], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=_COMPILE_SECONDS, check=False)
    if done.returncode:
        raise BuildError(f"{COMPILER} failed:\n{done.stderr.strip()}")


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m firmware_tools.reference_firmware.build", description=__doc__)
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="folder for the ELF file")
    parser.add_argument(
        "-D", dest="defines", action="append", default=[], metavar="NAME=VALUE", help="see src/variants.h"
    )
    parser.add_argument("--version", type=ImageVersion.parse, default=VERSION, metavar="1.2.3+4")
    arguments = parser.parse_args()
    try:
        elf = build(arguments.output, arguments.defines, arguments.version)
    except (NpuError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(f"{elf}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
