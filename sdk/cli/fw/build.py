"""`npuctl fw build`: an image of an ELF file or a flat binary."""

from __future__ import annotations

from pathlib import Path

import click

from driver_shim.protocol.image import ImageVersion, parse_image
from firmware_tools.bootable import unbootable
from firmware_tools.build import DEFAULT_LOAD_ADDRESS, place, read_program
from firmware_tools.files import write_whole
from firmware_tools.image import DEFAULT_HEADER_SIZE, ImageContents, build_image
from sdk.cli.frame import Frame
from sdk.cli.fw.options import leave_stdout_to, number, output_option, program_argument
from sdk.cli.fw.report import facts
from sdk.cli.verb import verb


def _version(_: click.Context, __: click.Parameter, text: str) -> ImageVersion:
    try:
        return ImageVersion.parse(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


@verb("fw build", changes=True)
@program_argument
@output_option
@click.option("--version", required=True, callback=_version, metavar="X.Y.Z[+B]", help="What the header says.")
@click.option(
    "--load-address",
    type=number,
    help=f"Where the header is copied to. Default: what the ELF file asks for; {DEFAULT_LOAD_ADDRESS:#x} else.",
)
@click.option(
    "--header-size",
    type=number,
    default=DEFAULT_HEADER_SIZE,
    help=f"Bytes before the program. Default: {DEFAULT_HEADER_SIZE:#x}.",
)
@click.option("--security-counter", type=number, default=0, help="Devices refuse less than they have seen. Default: 0.")
@click.option(
    "--hardware-id", "hardware_ids", type=number, multiple=True, help="What it is for; repeatable. Default: any."
)
@click.option("--chunk-hashes/--no-chunk-hashes", default=True, help="Let damage be located. Default: yes.")
def command(
    frame: Frame,
    program: Path,
    output: Path,
    version: ImageVersion,
    load_address: int | None,
    header_size: int,
    security_counter: int,
    hardware_ids: tuple[int, ...],
    chunk_hashes: bool,
) -> None:
    """Make an unsigned image of PROGRAM, an ELF file or a flat binary.

    The boot ROM copies the image to its load address and jumps to the byte behind the header; an ELF file must be
    linked for that. The same input gives the same bytes.
    """
    leave_stdout_to(frame, output)
    read = read_program(program)
    data = build_image(
        ImageContents(
            payload=read.payload,
            version=version,
            load_address=place(read, header_size, load_address, program),
            header_size=header_size,
            security_counter=security_counter,
            hardware_ids=hardware_ids,
            with_chunk_hashes=chunk_hashes,
        )
    )
    image = parse_image(data)
    write_whole(output, data)
    frame.sections["image"] = facts(output, image)
    frame.say(f"{output}: version {image.version}, {len(data):,} bytes, runs from {image.entry_address:#x}, not signed")
    reason = unbootable(image)
    if reason is not None:
        frame.note(f"devices refuse it: {reason}")
