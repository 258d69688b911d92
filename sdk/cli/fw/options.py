"""Options and endings that the verbs of `npuctl fw` share: numbers, keys, passwords, refused images."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from driver_shim.protocol.image import ImageError, ParsedImage, parse_image
from firmware_tools.files import MAX_FIRMWARE_BYTES, MAX_KEY_BYTES, FileTooLarge, read_bounded
from firmware_tools.keys import DEVELOPMENT_KEY, AskPassword
from sdk.cli.exit_codes import ExitCode, Failure
from sdk.cli.frame import Frame

DEVELOPMENT = "development"
"""Where a key file is asked for: the published development key."""
_DASH, _STDIN, _STDOUT = Path("-"), Path("/dev/stdin"), Path("/dev/stdout")


def number(value: str | int) -> int:
    """A non-negative integer as Python writes it: 4096, 0x1000. Raises click.BadParameter."""
    try:
        found = value if isinstance(value, int) else int(value, 0)
    except ValueError:
        raise click.BadParameter(f"{value!r} is not a number; write 4096 or 0x1000") from None
    if found < 0:
        raise click.BadParameter(f"{value} is negative")
    return found


def _read_from(_: click.Context, __: click.Parameter, path: Path) -> Path:
    return _STDIN if path == _DASH else path


def _written_to(_: click.Context, __: click.Parameter, path: Path) -> Path:
    return _STDOUT if path == _DASH else path


image_argument = click.argument("image", type=click.Path(path_type=Path), metavar="IMAGE", callback=_read_from)
program_argument = click.argument("program", type=click.Path(path_type=Path), metavar="PROGRAM", callback=_read_from)
output_option = click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    metavar="FILE",
    callback=_written_to,
    help="Write this; - is stdout, and text goes to stderr then.",
)


def leave_stdout_to(frame: Frame, output: Path) -> None:
    """Where stdout takes an image, text gets out of its way. Raises click.UsageError where a document cannot."""
    if output != _STDOUT:
        return
    if frame.as_json:
        raise click.UsageError("--json and the image would share stdout: give -o a file")
    frame.speak_on_stderr()


def key_option(help_text: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """`--key`, repeatable; the word `development` stands for the published key."""
    return click.option("--key", "keys", multiple=True, callback=_key_paths, metavar="PEM", help=help_text)


def password_options(body: Callable[..., None]) -> Callable[..., None]:
    """`--password-file` and `--password-env`; hands the body `password`, a bytes or None."""
    for_file = click.option(
        "--password-file", type=click.Path(path_type=Path), metavar="FILE", help="Holds the key's password."
    )
    for_variable = click.option("--password-env", metavar="NAME", help="Variable that holds the key's password.")
    return for_file(for_variable(body))


def given_password(file: Path | None, variable: str | None) -> bytes | None:
    """The password that the options name. Raises click.UsageError, OSError."""
    if file is not None and variable is not None:
        raise click.UsageError("--password-file and --password-env: give one")
    if file is not None:
        return read_bounded(file, MAX_KEY_BYTES).removesuffix(b"\n").removesuffix(b"\r")
    if variable is None:
        return None
    if variable not in os.environ:
        raise click.UsageError(f"--password-env {variable}: there is no such variable")
    return os.environ[variable].encode()


def password_source(password: bytes | None) -> AskPassword:
    """Gives the password named by options, else asks on the terminal. Raises click.UsageError without one."""

    def ask(path: Path) -> bytes:
        if password is not None:
            return password
        if not sys.stdin.isatty():
            raise click.UsageError(f"{path} is encrypted; give --password-file or --password-env")
        typed: str = click.prompt(f"Password of {path}", hide_input=True, err=True)
        return typed.encode()

    return ask


@contextmanager
def refusing(path: Path) -> Iterator[None]:
    """An image that is refused ends the verb with exit code 5 and the reason."""
    try:
        yield
    except ImageError as error:
        raise Failure(f"{path}: {error}", ExitCode.UNHEALTHY, slug=error.code) from error


def read_image(path: Path) -> ParsedImage:
    """An image file. Raises Failure when its form is wrong, OSError."""
    data = read_image_bytes(path)
    with refusing(path):
        return parse_image(data)


def read_image_bytes(path: Path) -> bytes:
    """What an image file holds, whether or not it is one. Raises Failure when it is too long for one, OSError."""
    try:
        return read_bounded(path, MAX_FIRMWARE_BYTES)
    except FileTooLarge as error:
        raise Failure(error.message, ExitCode.UNHEALTHY, slug=error.code) from error


def _key_paths(_: click.Context, __: click.Parameter, given: tuple[str, ...]) -> tuple[Path, ...]:
    return tuple(DEVELOPMENT_KEY if text == DEVELOPMENT else Path(text) for text in given)
