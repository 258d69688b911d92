"""`npuctl fw sign`: signatures for an image."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import click

from driver_shim.protocol.image import DigestAlgorithm, parse_image
from firmware_tools.files import write_whole
from firmware_tools.keys import is_development_key, key_hash, load_private_key, load_public_key
from firmware_tools.signing import CommandSigner, KeySigner, Signer, sign_image
from sdk.cli import timeouts
from sdk.cli.frame import Frame
from sdk.cli.fw.options import (
    given_password,
    image_argument,
    key_option,
    leave_stdout_to,
    output_option,
    password_options,
    password_source,
    read_image,
    refusing,
)
from sdk.cli.fw.report import facts
from sdk.cli.verb import verb


@verb("fw sign", limit_s=timeouts.WORK_S, changes=True)
@image_argument
@key_option("Private key, encrypted or not; repeatable. `development`: the published key.")
@password_options
@click.option(
    "--signer",
    "commands",
    multiple=True,
    metavar="COMMAND",
    help="Signs what comes on stdin, prints 64 bytes; or {message} and {signature} name files. Repeatable.",
)
@click.option(
    "--public-key",
    "public_keys",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="PEM",
    help="What the --signer signs with.",
)
@click.option(
    "--hash",
    "algorithm",
    type=click.Choice([each.value for each in DigestAlgorithm]),
    help="Default: sha256; sha512 with --pure.",
)
@click.option("--pure", is_flag=True, help="Sign the image itself instead of its hash.")
@click.option(
    "--embed-key/--key-hash",
    default=True,
    help="Put public keys into the image (the default; devices need them), or only their hashes.",
)
@output_option
def command(
    frame: Frame,
    image: Path,
    output: Path,
    keys: tuple[Path, ...],
    password_file: Path | None,
    password_env: str | None,
    commands: tuple[str, ...],
    public_keys: tuple[Path, ...],
    algorithm: str | None,
    pure: bool,
    embed_key: bool,
) -> None:
    """Sign IMAGE in place of the signatures it has.

    The result is verified before it is written. A device holds the hash of one key: sign with the key it trusts.
    """
    if len(commands) != len(public_keys):
        raise click.UsageError("each --signer needs the --public-key that it signs with")
    if not keys and not commands:
        raise click.UsageError("give a --key, or a --signer and its --public-key")
    leave_stdout_to(frame, output)
    before = read_image(image)
    password = password_source(given_password(password_file, password_env))
    signers: list[Signer] = [KeySigner(load_private_key(path, password)) for path in keys]
    left_s = max(0.0, frame.ends_at - time.monotonic())
    for_signers_s = max(left_s / 2, left_s - timeouts.SIGNER_END_S)
    patience_s = min(timeouts.SIGNER_S, for_signers_s / max(1, len(commands)))
    for words, path in zip(commands, public_keys, strict=True):
        signers.append(CommandSigner(words, load_public_key(path), patience_s))
    _refuse_twice(signers)
    with refusing(image):
        chosen = DigestAlgorithm(algorithm) if algorithm else _default_algorithm(pure)
        data = sign_image(before, signers, algorithm=chosen, pure=pure, embed_key=embed_key)
    write_whole(output, data)
    frame.sections["image"] = facts(output, parse_image(data))
    frame.say(f"{output}: version {before.version}, {len(data):,} bytes, signed by")
    for signer in signers:
        frame.say(f"  {key_hash(signer.public_key).hex()}")
    if before.signatures:
        frame.note(f"replaced {len(before.signatures)} signature(s) that {image} had")
    if any(is_development_key(signer.public_key) for signer in signers):
        frame.note("the development key is published: anybody can sign with it")


def _default_algorithm(pure: bool) -> DigestAlgorithm:
    """As imgtool chooses."""
    return DigestAlgorithm.SHA512 if pure else DigestAlgorithm.SHA256


def _refuse_twice(signers: Sequence[Signer]) -> None:
    if len({signer.public_key for signer in signers}) != len(signers):
        raise click.UsageError("the same key is given twice")
