"""The exit codes of npuctl: numbers, their documentation, and which error ends in which."""

from __future__ import annotations

import pytest

from driver_shim import errors
from sdk.cli.exit_codes import ExitCode, Failure, exit_code_of, markdown_table
from tests.support.paths import DOCS

DOCUMENT = DOCS / "exit-codes.md"


def test_the_numbers_are_the_published_ones() -> None:
    assert [int(code) for code in ExitCode] == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 70, 130]


def test_the_document_holds_the_table() -> None:
    assert markdown_table() in DOCUMENT.read_text("utf-8")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.DeviceNotFound("x"), 3),
        (errors.PermissionDenied("x"), 4),
        (Failure("x", ExitCode.UNHEALTHY), 5),
        (errors.Timeout("x"), 6),
        (errors.DeviceLost("x"), 8),
        (errors.ContractMismatch("x"), 9),
        (errors.DeviceBusy("x"), 1),
        (errors.UnsupportedModel("x"), 1),
        (errors.CommandFailed("x"), 1),
        (FileNotFoundError("x"), 1),
        (Failure("x"), 1),
        (KeyError("x"), 70),
        (ZeroDivisionError("x"), 70),
        (KeyboardInterrupt(), 130),
    ],
)
def test_an_error_ends_in_its_code(error: BaseException, code: int) -> None:
    assert exit_code_of(error) == code
