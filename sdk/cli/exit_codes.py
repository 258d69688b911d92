"""npuctl's exit codes: the one table, documented in docs/exit-codes.md, and which error means which."""

from __future__ import annotations

import enum

from driver_shim.errors import (
    ContractMismatch,
    DeviceLost,
    DeviceNotFound,
    NpuError,
    PermissionDenied,
    Timeout,
)


class ExitCode(enum.IntEnum):
    """What the tool's exit status says. Scripts rest on these numbers: they never change meaning."""

    meaning: str

    def __new__(cls, value: int, meaning: str) -> ExitCode:
        member = int.__new__(cls, value)
        member._value_ = value
        member.meaning = meaning
        return member

    OK = 0, "fine; also nothing to do, and a reader that closed the pipe early"
    FAILED = 1, "it failed"
    USAGE = 2, "the command line is wrong, or a question had no terminal to be asked on"
    NO_DEVICE = 3, "there is no such device"
    NO_PERMISSION = 4, "the operating system refused access"
    UNHEALTHY = 5, "unhealthy, or validation failed"
    TIMED_OUT = 6, "time-out, or the device does not respond"
    MIXED = 7, "some devices failed; the good ones were reported"
    DEVICE_LOST = 8, "the device was lost"
    CONTRACT_MISMATCH = 9, "host and device speak contract versions that do not go together"
    INTERNAL = 70, "internal error of the tool"
    INTERRUPTED = 130, "interrupted (Ctrl-C)"


class Failure(Exception):
    """A verb's own failure with an exit code: what was asked, what was found."""

    def __init__(
        self, message: str, code: ExitCode = ExitCode.FAILED, *, slug: str = "failed", remedy: str | None = None
    ) -> None:
        super().__init__(message)
        self.exit_code = code
        self.code = slug
        self.remedy = remedy


_BY_ERROR: tuple[tuple[type[NpuError], ExitCode], ...] = (
    (DeviceNotFound, ExitCode.NO_DEVICE),
    (PermissionDenied, ExitCode.NO_PERMISSION),
    (Timeout, ExitCode.TIMED_OUT),
    (DeviceLost, ExitCode.DEVICE_LOST),
    (ContractMismatch, ExitCode.CONTRACT_MISMATCH),
)


def exit_code_of(error: BaseException) -> ExitCode:
    """The exit code that an exception ends the tool with."""
    if isinstance(error, Failure):
        return error.exit_code
    for kind, code in _BY_ERROR:
        if isinstance(error, kind):
            return code
    if isinstance(error, PermissionError):
        return ExitCode.NO_PERMISSION
    if isinstance(error, (NpuError, OSError)):
        return ExitCode.FAILED
    if isinstance(error, KeyboardInterrupt):
        return ExitCode.INTERRUPTED
    return ExitCode.INTERNAL


def markdown_table() -> str:
    """The table of docs/exit-codes.md."""
    rows = [f"| {code.value} | {code.meaning} |" for code in ExitCode]
    return "\n".join(["| code | meaning |", "|---|---|", *rows]) + "\n"
