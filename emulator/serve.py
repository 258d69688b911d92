"""The emulator as a process: it builds a function, serves it, and leaves nothing behind."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import socket
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from driver_shim.shared import import_guard
from driver_shim.shared.child_process import occupy_standard_descriptors
from emulator.management.process.options import CoreOptions
from emulator.model.choices import CORES, KERNELS
from emulator.publication import PublishedEmulator
from emulator.server.companion import Companion
from emulator.server.function_port import FunctionPort
from emulator.server.listener import Listener, ListenError
from emulator.server.usbip import UsbipServer, listen
from emulator.server.vfio_user import Server, StopSignal
from emulator.state_error import StateError

if TYPE_CHECKING:
    from emulator.function.function import PciFunction

_logger = logging.getLogger("npu.emulator")

EXIT_FINE = 0
EXIT_FAILED = 1
LOG_FORMAT = "%(asctime)s %(name)s %(levelname)s %(message)s"

Build = Callable[[], FunctionPort]
Accompany = Callable[[Callable[[], bool]], Companion]
"""Makes what is served beside the function; its argument tells whether a client has that."""


def serve(
    build: Build,
    *,
    path: Path | None = None,
    connection_fd: int | None = None,
    owner_pidfd: int | None = None,
    accompany: Accompany | None = None,
    ready: Callable[[], None] | None = None,
) -> None:
    """Serve the function that `build` returns until SIGTERM or SIGINT, then power it off.

    With `path`, whoever connects to that socket is served, one after the other. With `connection_fd` (one end of a
    socket pair) only its other end is, and serving ends with it, or with the process of `owner_pidfd`; then SIGINT is
    left to the owner. Both descriptors are taken over. `accompany` is called once the function is built, `ready` once
    clients can connect. Must be called in the main thread. Raises ListenError, and what `build` raises.
    """
    with ExitStack() as cleanup:
        stop = StopSignal()
        cleanup.callback(stop.close)
        handled = {signal.SIGTERM: True, signal.SIGINT: connection_fd is None}
        for number, stops in handled.items():
            before = signal.signal(number, (lambda *_: stop.set()) if stops else signal.SIG_IGN)
            cleanup.callback(signal.signal, number, before)
        if owner_pidfd is not None:
            os.set_inheritable(owner_pidfd, False)
            cleanup.callback(os.close, owner_pidfd)
        client = None if connection_fd is None else socket.socket(fileno=connection_fd)
        if client is not None:
            client.set_inheritable(False)
            cleanup.callback(client.close)
        listener = None
        if path is not None:
            listener = Listener(path)  # first: a socket in use is reported before anything is built
            cleanup.callback(listener.close)
        function = build()
        cleanup.callback(function.close)
        server = Server(function, stop, listener=listener, client=client, owner_pidfd=owner_pidfd)
        if accompany is not None:
            server.accompany(accompany(lambda: server.occupied))
        if ready is not None:
            ready()
        server.run()


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line; exits with status 2 and a usage message when it is wrong."""
    parser = argparse.ArgumentParser(prog="python -m emulator", description="Serve an emulated device over vfio-user.")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--socket", type=Path, metavar="PATH", help="listen on this UNIX socket")
    where.add_argument("--connection-fd", type=int, metavar="N", help="serve this inherited socket alone")
    parser.add_argument("--owner-pid-fd", type=int, metavar="N", help="end when the process of this pidfd does")
    parser.add_argument("--profile", default="generic", metavar="NAME", help="the chip to model: a name or FILE.toml")
    parser.add_argument("--kernels", choices=KERNELS, default="auto", help="who computes (default: %(default)s)")
    parser.add_argument("--state", type=Path, metavar="DIR", help="keep serial number, logs and black box here")
    parser.add_argument("--usbip-port", type=int, metavar="N", help="offer the USB debug port there; 0 takes any")
    parser.add_argument("--core", choices=CORES, default="auto", help="start a management core (default: if it can be)")
    parser.add_argument("--firmware", type=Path, metavar="ELF", help="run this on it, not what its flash holds")
    parser.add_argument("--board", type=Path, metavar="FILE", help="memories and peripherals for that image")
    parser.add_argument("--uart", metavar="WHERE", help="also show its UART: pty, tcp:PORT or stdio")
    parser.add_argument("--ambient-celsius", type=float, metavar="T", help="temperature around the chip")
    parser.add_argument("--log-level", default="WARNING", choices=("DEBUG", "INFO", "WARNING", "ERROR"))
    chosen = parser.parse_args(arguments)
    if chosen.usbip_port is not None and chosen.socket is None:
        parser.error("--usbip-port goes with --socket")
    return chosen


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve as the command line says; the process's exit status."""
    chosen = parse_arguments(arguments)
    occupy_standard_descriptors()
    logging.basicConfig(format=LOG_FORMAT)
    logging.getLogger("npu").setLevel(chosen.log_level)

    import_guard.install()
    cleanup = ExitStack()
    built: list[PciFunction] = []
    exit_codes: list[int] = []

    def power_off(exit_code: int) -> None:
        """Somebody's own firmware is through: end as it says, as QEMU does."""
        exit_codes.append(exit_code)
        os.kill(os.getpid(), signal.SIGTERM)

    def power_on() -> FunctionPort:
        from emulator.build import build  # slow, and not needed to report a socket in use

        core = _core_options(chosen)
        device = build(chosen.profile, chosen.kernels, chosen.state, core=core, on_power_off=power_off)
        built.append(device)
        if chosen.socket is not None:
            port = usbip.getsockname()[1] if usbip else None
            chip = device.chip
            published = PublishedEmulator(chosen.socket, chip.profile.name, chip.serial, chosen.kernels, port)
            cleanup.callback(published.withdraw)
        return device

    def debug_port(occupied: Callable[[], bool]) -> Companion:
        from emulator.usb.device import DebugPort
        from emulator.usb.recovery_wire import RecoveryWire

        device, listening = built[0], usbip
        if listening is None:
            raise RuntimeError("asked for a debug port without a socket for it")
        recovery = RecoveryWire(lambda: device.chip.management.recovery)
        return UsbipServer(listening, DebugPort(device.chip.serial, device, recovery, occupied))

    with cleanup:
        try:
            usbip = None if chosen.usbip_port is None else cleanup.enter_context(listen(chosen.usbip_port))
            serve(
                power_on,
                path=chosen.socket,
                connection_fd=chosen.connection_fd,
                owner_pidfd=chosen.owner_pid_fd,
                accompany=debug_port if usbip else None,
                ready=lambda: _announce(chosen, usbip),
            )
        except (ListenError, StateError, OSError, ValueError) as error:
            _logger.error("%s", error)
            return EXIT_FAILED
    return exit_codes[0] if exit_codes else EXIT_FINE


def _core_options(chosen: argparse.Namespace) -> CoreOptions | None:
    if chosen.core == "none":
        return None
    return CoreOptions(
        firmware=chosen.firmware,
        board=chosen.board,
        uart=chosen.uart,
        ambient_celsius=chosen.ambient_celsius,
        log_level=chosen.log_level,
    )


def _announce(chosen: argparse.Namespace, usbip: socket.socket | None) -> None:
    """Tell whoever reads the log where clients can connect."""
    if chosen.socket is not None:
        _logger.info("serving %s as vfio-user:%s; stop with Ctrl-C or SIGTERM", chosen.profile, chosen.socket.resolve())
    if usbip is not None:
        _logger.info("the debug port speaks USB/IP on %s:%d", *usbip.getsockname())
