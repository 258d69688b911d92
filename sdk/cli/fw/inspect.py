"""`npuctl fw inspect`: what an image says of itself."""

from __future__ import annotations

from pathlib import Path

from sdk.cli.frame import Frame
from sdk.cli.fw.options import image_argument, read_image
from sdk.cli.fw.report import facts, lines
from sdk.cli.verb import verb


@verb("fw inspect")
@image_argument
def command(frame: Frame, image: Path) -> None:
    """Show what IMAGE says of itself, and whether its hash is correct.

    Signatures are not checked, `npuctl fw verify` does that. Exits 5 with the reason when the file is no image, or one
    that no device takes.
    """
    found = read_image(image)
    frame.sections["image"] = facts(image, found)
    for line in lines(image, found):
        frame.say(line)
