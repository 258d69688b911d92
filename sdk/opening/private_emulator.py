"""A private emulator: a child process on one end of a socket pair, gone with its owner."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import subprocess

from driver_shim import timeouts
from driver_shim.errors import DeviceLost
from driver_shim.shared.child_process import module_command, wait_or_kill

_log = logging.getLogger("npu")


class PrivateEmulator:
    """One running `python -m emulator` and our end of its bus."""

    def __init__(self, profile: str, kernels: str, core: str = "auto") -> None:
        """Start it. Raises DeviceLost when it does not start."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            owner = os.pidfd_open(os.getpid())
            try:
                self._process = self._start(
                    theirs.fileno(), owner, ["--profile", profile, "--kernels", kernels, "--core", core]
                )
            finally:
                os.close(owner)
        except OSError as error:
            ours.close()
            raise DeviceLost(f"the emulator did not start: {error}", subsystem="emulator") from error
        finally:
            theirs.close()
        self.socket = ours

    @staticmethod
    def _start(connection: int, owner: int, chosen: list[str]) -> subprocess.Popen[bytes]:
        command, environment = module_command(
            "emulator", "--connection-fd", str(connection), "--owner-pid-fd", str(owner), *chosen
        )
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=(connection, owner),
            env=environment,
            start_new_session=True,  # Ctrl-C in the owner's terminal is the owner's to handle
        )

    @property
    def pid(self) -> int:
        """Process id of the emulator."""
        return self._process.pid

    def exit_code(self) -> int | None:
        """Exit code if it has ended."""
        return self._process.poll()

    def stop(self) -> None:
        """Wait for it to end after our end was closed, then insist. Leaves no zombie; idempotent."""
        with contextlib.suppress(OSError):
            self.socket.close()
        if not wait_or_kill(self._process, timeouts.EMULATOR_STOP_S, timeouts.REAP_S):
            _log.warning("the emulator, process %d, was killed and does not end", self.pid)
