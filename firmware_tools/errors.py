"""Errors of making firmware images: each names the file and what to do."""

from __future__ import annotations

from driver_shim.errors import NpuError, Timeout


class BuildError(NpuError, ValueError):
    """A program cannot become an image."""

    code = "build-failed"


class KeyFileError(NpuError, ValueError):
    """A file does not hold the key that was asked for, or its password is missing or wrong."""

    code = "unusable-key"


class PasswordNeeded(KeyFileError):
    """The key is encrypted and no password was given."""

    code = "password-needed"


class SigningError(NpuError):
    """No valid signature came of signing."""

    code = "signing-failed"


class SignerTimeout(SigningError, Timeout):
    """A command that was to sign did not end in time, and was ended."""

    code = "timeout"


class LogStringsError(NpuError, ValueError):
    """A file does not hold the texts of a firmware's log."""

    code = "no-log-strings"


class ExtraMissing(NpuError, ImportError):
    """The extra `[firmware]` is not installed."""

    code = "extra-missing"


def extra_missing(error: ImportError) -> ExtraMissing:
    """Name the package that could not be imported, and the line that brings it."""
    return ExtraMissing(f"{error.name} is not installed", remedy="pip install 'npu-sdk[firmware]'")
