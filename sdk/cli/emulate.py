"""`npuctl emulate`: serve an emulated device in the foreground, until SIGTERM or Ctrl-C."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from driver_shim.protocol.usbip import DEFAULT_PORT as USBIP_PORT
from driver_shim.shared.child_process import module_command
from driver_shim.shared.runtime_folder import make_runtime_folder, runtime_folder
from emulator.model.choices import CORES, KERNELS
from emulator.model.profile import load_profile, named_profile
from sdk import environment
from sdk.cli.bounded_number import bounded

_CELSIUS = bounded(float, "degrees Celsius, e.g. 35", least=-273.15, most=sys.float_info.max)
_FILE = click.Path(path_type=Path, exists=True, dir_okay=False)


@click.command("emulate", context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--socket",
    "socket_path",
    type=click.Path(path_type=Path),
    help="UNIX socket to serve; else one in the runtime folder.",
)
@click.option("--profile", metavar="NAME", help="Chip to emulate: a name, or FILE.toml ($NPU_PROFILE, else generic).")
@click.option("--kernels", type=click.Choice(KERNELS), default="auto", show_default=True, help="What computes.")
@click.option(
    "--state", type=click.Path(path_type=Path, file_okay=False), help="Folder that keeps what survives power-off."
)
@click.option(
    "--usbip",
    "usbip_port",
    type=bounded(int, "a port, 0 to 65535", least=0, most=65535),
    is_flag=False,
    flag_value=USBIP_PORT,
    metavar="[PORT]",
    help=f"Offer the USB debug port over USB/IP on 127.0.0.1 ({USBIP_PORT} unless PORT is given; 0 takes any).",
)
@click.option("--core", type=click.Choice(CORES), default="auto", help="Whether it has a management core.")
@click.option("--firmware", type=_FILE, metavar="ELF", help="Run this on the management core, not what flash holds.")
@click.option("--board", type=_FILE, metavar="FILE", help="Memories and peripherals for that image (board.toml).")
@click.option("--uart", metavar="WHERE", help="Also show the core's UART: pty, tcp:PORT or stdio.")
@click.option("--ambient-celsius", type=_CELSIUS, metavar="T", help="Temperature around the chip.")
def command(
    socket_path: Path | None,
    profile: str | None,
    kernels: str,
    state: Path | None,
    core: str,
    firmware: Path | None,
    board: Path | None,
    uart: str | None,
    ambient_celsius: float | None,
    usbip_port: int | None,
) -> None:
    """Serve an emulated device over vfio-user until SIGTERM or Ctrl-C.

    One client at a time. `npuctl list` shows the device; the other verbs use it with -d and the address shown there.
    With --firmware it ends, with the image's exit code, when the image switches the core off.
    """
    if socket_path is not None and not socket_path.name:
        raise click.UsageError("--socket: name a path to serve on, e.g. /tmp/npu0.sock")
    if core == "none" and (firmware or board or uart):
        raise click.UsageError("--core none: there is nothing to run an image on, and no UART")
    chosen = profile or environment.profile()
    try:
        load_profile(named_profile(chosen))
    except (ValueError, OSError) as error:
        raise click.UsageError(str(error)) from error
    arguments = ["--socket", os.fspath(socket_path or _own_socket()), "--profile", chosen, "--kernels", kernels]
    arguments += ["--log-level", "INFO", "--core", core]
    given = {
        "--state": state,
        "--firmware": firmware,
        "--board": board,
        "--uart": uart,
        "--ambient-celsius": ambient_celsius,
        "--usbip-port": usbip_port,
    }
    for option, value in given.items():
        if value is not None:
            arguments += [option, str(value)]
    command_line, environ = module_command("emulator", *arguments)
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:  # whoever started us may have closed it
            stream.flush()
    # the emulator takes this process's place: signals, exit status and the terminal are then its own
    os.execve(command_line[0], command_line, environ)


def _own_socket() -> Path:
    """A socket of this process's in the runtime folder."""
    folder = runtime_folder()
    make_runtime_folder(folder)
    return folder / f"emulator-{os.getpid()}.sock"
