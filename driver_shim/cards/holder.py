"""The holder of a device, and the line of those who wait for it.

Devices with one holder at a time have a line of tickets (`line.py`) in the runtime folder. The line says who holds
the device and in which order others get it. Whether it can be had is decided by the device's own lock when it is
opened, because not everybody stands in a line that we see: other users may use another folder, virtual machines none.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, TypeVar

from driver_shim import timeouts
from driver_shim.cards.line import Line, Owners, Ticket
from driver_shim.cards.pci_sysfs import PCI_SCHEME, Roots, vfio_nodes
from driver_shim.cards.vfio_users import User, find_users
from driver_shim.errors import DeviceBusy, Timeout
from driver_shim.shared.runtime_folder import Holder, UnsafeFolder, device_file_name, runtime_folder

WHEN_BUSY = ("fail", "wait")
_SOCKET = "vfio-user:"
_log = logging.getLogger("npu")
_Opened = TypeVar("_Opened")


def check_when_busy(when_busy: object) -> None:
    """Raise ValueError unless it is one of the choices."""
    if when_busy == "share":
        raise ValueError('when_busy="share" is reserved: a function has one holder at a time; use "fail" or "wait"')
    if when_busy not in WHEN_BUSY:
        raise ValueError(f'when_busy must be "fail" or "wait", got {when_busy!r}')


def holder_of(address: str, folder: Path | None = None) -> Holder | None:
    """Who holds the device; None when it is free, or held by somebody whom we cannot name."""
    try:
        live = device_line(address, folder).live()
    except OSError as error:
        _log.debug("cannot tell who holds %s: %s", address, error)
        return None
    return next(iter(live.values()), None)


class Claim:
    """Our hold on a device, from `claim` on; where the runtime folder cannot be used, one that nobody sees.

    `release` it when the device is closed. The end of the process does too, but not that of a forked child.
    """

    def __init__(
        self, address: str, when_busy: str, began: float, deadline: float, ticket: Ticket | None, takeover: bool
    ) -> None:
        """Made by `claim`. `takeover`: a process was killed that held the device, or waited for it."""
        self._address = address
        self._waits = when_busy == "wait"
        self._began = began
        self._deadline = deadline
        self._ticket = ticket
        self._takeover = takeover

    def open(self, opener: Callable[[], _Opened]) -> _Opened:
        """Open the device with `opener`, which raises DeviceBusy when it is not to be had after all.

        With "wait" that is tried until the deadline, which raises Timeout, else only while a killed holder may still be
        letting go.
        """
        until = self._deadline if self._waits else time.monotonic() + timeouts.TAKEOVER_S * self._takeover
        while True:
            try:
                return opener()
            except DeviceBusy as busy:
                left = until - time.monotonic()
                if left <= 0:
                    self._unseen(busy)
            time.sleep(min(left, timeouts.UNSEEN_HOLDER_POLL_S))

    def _unseen(self, busy: DeviceBusy) -> NoReturn:
        """Somebody holds the device who is not in our line."""
        users = _users_of_card(self._address.removeprefix(PCI_SCHEME)) if self._address.startswith(PCI_SCHEME) else ()
        if users:
            who = "open in " + ", ".join(map(str, users))
            remedy = "end that process"
        else:
            who = "its holder is not visible to you"
            remedy = "ask who uses it from another account, a container or a virtual machine"
        if self._waits:
            raise Timeout(
                f"{self._address} did not come free {_within(self._began, self._deadline)}: {busy.message}; {who}",
                device=busy.device,
                subsystem="holder",
                cause=busy.message,
                remedy=f"{remedy}, or wait longer with timeout= or NPU_TIMEOUT",
            ) from busy
        raise DeviceBusy(
            f"{busy.message}; {who}", device=busy.device, subsystem="holder", cause=busy.message, remedy=remedy
        ) from busy

    def release(self) -> None:
        """Let the next in line have the device; idempotent, and nothing in a forked child."""
        if self._ticket is not None:
            self._ticket.release()


def claim(address: str, when_busy: str, deadline: float, folder: Path | None = None) -> Claim:
    """Become the holder of the device at `address`, before it is opened.

    Raises DeviceBusy with "fail" when anybody holds the device or waits for it, Timeout with "wait" when our turn has
    not come by `deadline` (monotonic seconds; at once or at infinity, too), ValueError for another `when_busy`.
    """
    check_when_busy(when_busy)
    line = device_line(address, folder)
    began = time.monotonic()
    ticket, ahead, takeover = _join(line, address, only_if_empty=when_busy == "fail")
    try:
        if ahead and when_busy == "fail":
            raise DeviceBusy(
                f"{address} is {_held(ahead)}{_others(len(ahead) - 1, 'waiting')}",
                device=address,
                subsystem="holder",
                remedy='close it there, or line up with when_busy="wait"',
                holder=next(iter(ahead.values())),
            )
        _wait(line, ticket, ahead, address, began, deadline)
        return Claim(address, when_busy, began, deadline, ticket, takeover)
    except BaseException:
        if ticket is not None:
            ticket.release()
        raise


def _join(line: Line, address: str, *, only_if_empty: bool) -> tuple[Ticket | None, Owners, bool]:
    """As `Line.join`; no ticket, and whom we can see, where the folder cannot be used."""
    try:
        return line.join(canonical_address(address), only_if_empty=only_if_empty)
    except UnsafeFolder as error:
        _log.warning("the runtime folder is not used: %s: %s", runtime_folder(), error.strerror)
        return None, {}, False
    except OSError as error:
        _log.debug("the holder of %s is not published: %s", address, error)
    return None, _live(line), False


def _live(line: Line) -> Owners:
    try:
        return line.live()
    except OSError:
        return {}


def _wait(line: Line, ticket: Ticket | None, ahead: Owners, address: str, began: float, deadline: float) -> None:
    """Wait until nobody is ahead. Raises Timeout."""
    number = math.inf if ticket is None else ticket.number
    while ahead:
        left = deadline - time.monotonic()
        if left <= 0:
            raise Timeout(
                f"{address} did not come free {_within(began, deadline)}: it is {_held(ahead)}"
                f"{_others(len(ahead) - 1, 'ahead of us')}",
                device=address,
                subsystem="holder",
                remedy="close it there, or wait longer with timeout= or NPU_TIMEOUT",
            )
        time.sleep(min(left, timeouts.LINE_POLL_S))
        ahead = {other: owner for other, owner in _live(line).items() if other < number}


def canonical_address(address: str) -> str:
    """One spelling for each device: sockets by absolute path."""
    if address.startswith(_SOCKET):
        return _SOCKET + os.path.realpath(address.removeprefix(_SOCKET))
    return address


def _users_of_card(bus_address: str) -> tuple[User, ...]:
    roots = Roots()
    return find_users(bus_address, vfio_nodes(roots.functions / bus_address, roots.dev), roots.proc).found


def device_line(address: str, folder: Path | None = None) -> Line:
    """The line of the device at `address`, in the runtime folder or another."""
    where = folder or runtime_folder()
    return Line(where, device_file_name(canonical_address(address)))


def _held(ahead: Owners) -> str:
    owner = next(iter(ahead.values()))
    return f"held by {owner}" if owner else "held by a process whose ticket cannot be read"


def _within(began: float, deadline: float) -> str:
    return f"within {max(0.0, deadline - began):.1f} s"  # the deadline may have passed before we began


def _others(count: int, what: str) -> str:
    return f"; {count} more {'is' if count == 1 else 'are'} {what}" if count > 0 else ""
