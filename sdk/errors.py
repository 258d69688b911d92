"""The SDK's errors (see `driver_shim/errors.py`) and its one warning."""

from driver_shim import errors
from driver_shim.errors import *  # noqa: F403 - exactly the names of its __all__


class EmulatorFallbackWarning(UserWarning):
    """`Device()` found no card and started a private emulator instead."""


__all__ = ["EmulatorFallbackWarning"]
__all__ += errors.__all__
