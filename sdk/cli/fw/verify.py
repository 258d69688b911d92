"""`npuctl fw verify`: whether an image is whole and signed by a trusted key."""

from __future__ import annotations

from pathlib import Path

import click

from driver_shim.protocol.image import ParsedImage, TrustedKey
from firmware_tools.bootable import unbootable
from firmware_tools.keys import is_development_key, load_public_key
from firmware_tools.verify import verify_image
from sdk.cli.frame import Frame
from sdk.cli.fw.options import image_argument, key_option, read_image_bytes, refusing
from sdk.cli.fw.report import facts
from sdk.cli.verb import verb


@verb("fw verify")
@image_argument
@key_option("A key to trust, public or private; repeatable. `development`: the published key.")
def command(frame: Frame, image: Path, keys: tuple[Path, ...]) -> None:
    """Check IMAGE: its form, its hashes, all its signatures.

    Exits 5 with the reason when the image is not to be trusted.
    """
    if not keys:
        raise click.UsageError("give the --key to trust")
    public_keys = [load_public_key(path) for path in keys]
    data = read_image_bytes(image)
    with refusing(image):
        found, trusted = verify_image(data, [TrustedKey.of_public_key(public_key) for public_key in public_keys])
    frame.sections["image"] = facts(image, found)
    frame.sections["trusted_keys"] = [key.key_hash.hex() for key in trusted]
    frame.say(f"{image}: version {found.version}, {len(data):,} bytes, good; signed by")
    for key in trusted:
        frame.say(f"  {key.key_hash.hex()}")
    if any(is_development_key(public_key) for public_key in public_keys):
        frame.note("the development key is published: its signature proves nothing")
    for reason in _reasons_of_devices(found):
        frame.note(f"devices refuse it: {reason}")


def _reasons_of_devices(image: ParsedImage) -> list[str]:
    """Why a device would not start an image that is genuine."""
    reasons = []
    if not any(made.public_key for made in image.signatures):
        reasons.append("it holds only the hash of its key (sign it with --embed-key)")
    reason = unbootable(image)
    if reason is not None:
        reasons.append(reason)
    return reasons
