"""`npuctl fw keygen`: a key pair for signing."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from firmware_tools.keys import generate_key, key_hash
from sdk.cli import timeouts
from sdk.cli.exit_codes import Failure
from sdk.cli.frame import Frame
from sdk.cli.fw.options import given_password, password_options
from sdk.cli.verb import verb


@verb("fw keygen", limit_s=timeouts.WORK_S, changes=True)
@click.argument("key", type=click.Path(path_type=Path), metavar="KEY.pem")
@password_options
@click.option("--password", "ask", is_flag=True, help="Ask for a password to encrypt the private key with.")
def command(frame: Frame, key: Path, password_file: Path | None, password_env: str | None, ask: bool) -> None:
    """Write a new private key to KEY.pem and its public key to KEY.pub.pem.

    Prints the hash that is burnt into devices which are to trust the key. Overwrites nothing.
    """
    if key == Path("-"):
        raise click.UsageError("a key pair is two files: give a name for them, not -")
    password = given_password(password_file, password_env)
    if ask and password is not None:
        raise click.UsageError("--password asks for one: leave it out, or the other option")
    if ask:
        password = _ask(key)
    if password == b"":
        raise click.UsageError("the password is empty")
    public = key.with_name(f"{key.stem}.pub.pem")
    try:
        made = generate_key(key, public, password)
    except FileExistsError as error:
        raise Failure(f"{error.filename} exists; keys are not overwritten") from error
    frame.sections["key"] = {"private": str(key), "public": str(public), "key_hash": key_hash(made).hex()}
    frame.say(f"private key {key}" + (", encrypted" if password else ", not encrypted: keep it to yourself"))
    frame.say(f"public key  {public}")
    frame.say(f"sha256      {key_hash(made).hex()}")


def _ask(key: Path) -> bytes:
    if not sys.stdin.isatty():
        raise click.UsageError("there is no terminal to ask for a password on; give --password-file or --password-env")
    typed: str = click.prompt(f"Password for {key}", hide_input=True, confirmation_prompt=True, err=True)
    return typed.encode()
