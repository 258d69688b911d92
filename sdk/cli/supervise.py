"""Device work runs in a child process that the tool can abandon.

A thread asleep in an ioctl cannot be ended, and keeps its whole process from exiting; a process that waits for
another can always go. The child inherits terminal, stdout and stderr, so text and questions need no forwarding.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time
from collections.abc import Callable

from sdk.cli import timeouts
from sdk.cli.exit_codes import ExitCode
from sdk.cli.interrupts import let_ctrl_c_raise

_FORWARDED = (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
_HELD_BACK = (signal.SIGINT, *_FORWARDED)
"""While the work begins."""


class Abandoned(Exception):
    """The work did not end in time; the process that did it was killed and is no longer waited for."""


def supervise(work: Callable[[], int], timeout_s: float) -> int:
    """Run `work` in a child process and return its exit status (128 + n when signal n ended it).

    Raises Abandoned when it takes longer than `timeout_s`. On Ctrl-C the child, which the terminal interrupts too,
    may close its device first; KeyboardInterrupt goes on when it does not end.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    parent = os.pidfd_open(os.getpid())
    # A KeyboardInterrupt inside fork's own hooks would be swallowed, and the other signals would end the tool before it
    # can pass them on: hold them back until somebody can act on them.
    signal.pthread_sigmask(signal.SIG_BLOCK, _HELD_BACK)
    child = os.fork()
    if child == 0:
        _run_child(work, parent)
    os.close(parent)
    pidfd = os.pidfd_open(child)
    previous = {number: signal.signal(number, lambda n, _: _signal(pidfd, n)) for number in _FORWARDED}
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _HELD_BACK)
        if not _ended(pidfd, timeout_s):
            _kill(pidfd)
            raise Abandoned
        return _status(child)
    except KeyboardInterrupt:
        if not _ended(pidfd, timeouts.OWN_INTERRUPT_S):
            _signal(pidfd, signal.SIGINT)
        if not _ended(pidfd, timeouts.INTERRUPT_S):
            _kill(pidfd)
            raise
        os.waitpid(child, 0)
        return ExitCode.INTERRUPTED
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        os.close(pidfd)


def _run_child(work: Callable[[], int], parent: int) -> None:
    """The child's whole life. Never returns: what the parent has on its stack is not ours to unwind."""
    status = int(ExitCode.INTERNAL)
    try:
        let_ctrl_c_raise()  # whatever the tool's own process makes of it
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _HELD_BACK)
        _end_with(parent)
        status = work()
    except KeyboardInterrupt:
        status = ExitCode.INTERRUPTED
    except BaseException:  # noqa: BLE001 - the last word of this process
        with contextlib.suppress(OSError):
            sys.excepthook(*sys.exc_info())
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def _end_with(parent: int) -> None:
    """End this process when its parent ends, however that happens."""
    import threading

    def watch() -> None:
        poll = select.poll()
        poll.register(parent, select.POLLIN)
        poll.poll()
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="npuctl-parent-watch", daemon=True).start()


def _ended(pidfd: int, timeout_s: float) -> bool:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    deadline = time.monotonic() + timeout_s
    while True:
        left = deadline - time.monotonic()
        if poll.poll(max(0, min(left, timeouts.WORK_S)) * 1000):
            return True
        if left <= 0:
            return False


def _kill(pidfd: int) -> None:
    _signal(pidfd, signal.SIGKILL)
    if _ended(pidfd, timeouts.ABANDON_S):
        os.waitid(os.P_PIDFD, pidfd, os.WEXITED)


def _signal(pidfd: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, number)


def _status(child: int) -> int:
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status)
