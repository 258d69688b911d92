"""`npuctl emulate`: serve an emulated device in the foreground, until SIGTERM or Ctrl-C."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from driver_shim.protocol.usbip import DEFAULT_PORT as USBIP_PORT
from emulator.model.profile import profile_names
from sdk import environment
from sdk.cli.child_process import module_command
from sdk.opening import KERNELS


@click.command("emulate", context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--socket", "socket_path", required=True, type=click.Path(path_type=Path), help="UNIX socket to serve.")
@click.option("--profile", help="Chip to emulate ($NPU_PROFILE, else generic).")
@click.option("--kernels", type=click.Choice(KERNELS), default="auto", show_default=True, help="What computes.")
@click.option(
    "--state", type=click.Path(path_type=Path, file_okay=False), help="Folder that keeps what survives power-off."
)
@click.option(
    "--usbip",
    "usbip_port",
    type=click.IntRange(0, 65535),
    is_flag=False,
    flag_value=USBIP_PORT,
    metavar="[PORT]",
    help=f"Offer the USB debug port over USB/IP on 127.0.0.1 ({USBIP_PORT} unless PORT is given; 0 takes any).",
)
def command(socket_path: Path, profile: str | None, kernels: str, state: Path | None, usbip_port: int | None) -> None:
    """Serve an emulated device over vfio-user until SIGTERM or Ctrl-C.

    One client at a time; `npuctl list` shows the device, and -d vfio-user:SOCKET uses it.
    """
    if not socket_path.name:
        raise click.UsageError("--socket: name a path to serve on, e.g. /tmp/npu0.sock")
    chosen = profile or environment.profile()
    if chosen not in profile_names():
        raise click.UsageError(f"unknown profile {chosen!r}; there are: {', '.join(profile_names())}")
    arguments = ["--socket", os.fspath(socket_path), "--profile", chosen, "--kernels", kernels, "--log-level", "INFO"]
    if state is not None:
        arguments += ["--state", os.fspath(state)]
    if usbip_port is not None:
        arguments += ["--usbip-port", str(usbip_port)]
    command_line, environ = module_command("emulator", *arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    # the emulator takes this process's place: signals, exit status and the terminal are then its own
    os.execve(command_line[0], command_line, environ)
