"""`npuctl fw`: firmware images and what is done with them, and the register maps that firmware is written against.

Each verb is a module. `options.py` has what they share on the command line, `report.py` what they say of an image.
"""

from __future__ import annotations

import click

from sdk.cli.verb_group import HELP_OPTIONS, VerbGroup

VERBS = {
    "build": ("build", "Make an image of an ELF file or a flat binary."),
    "sign": ("sign", "Sign an image with keys, or with a command that reaches one."),
    "verify": ("verify", "Check that an image is whole and signed by a trusted key."),
    "inspect": ("inspect", "Show what an image says of itself."),
    "recover": ("recover", "Write an image to a device that does not boot, over USB."),
    "keygen": ("keygen", "Make a key pair for signing."),
    "info": ("info", "Show which firmware runs and what the slots hold."),
    "flash": ("flash", "Put an image on devices, by a plan that is shown first."),
    "confirm": ("confirm", "Keep the firmware that runs on trial."),
    "rollback": ("rollback", "Return to the firmware in the other slot."),
    "log": ("log", "Show the firmware's log."),
    "export": ("export", "Export the register maps: C header, SystemRDL, HTML, JSON."),
}
"""Verb → (module of this package, one line of help)."""


@click.group("fw", cls=VerbGroup, package="sdk.cli.fw", verbs=VERBS, context_settings=HELP_OPTIONS)
def command() -> None:
    """Make firmware images, put them on devices, see what firmware says; export register maps.

    Images have MCUboot's layout and Ed25519 signatures.
    """
