"""The report of firmware that was activated."""

from __future__ import annotations

from typing import Any

from driver_shim.errors import FirmwareError, NpuError
from firmware_tools.activation import Activation
from sdk.cli.exit_codes import ExitCode, Failure
from sdk.cli.firmware_facts import slot_name


def verdict_on_image(error: NpuError | Failure) -> BaseException:
    """A trial that failed is a verdict on the image, not a failure to do what was asked."""
    if isinstance(error, FirmwareError) and error.code == "fell-back":
        return Failure(error.message, ExitCode.UNHEALTHY, slug=error.code, remedy=error.remedy)
    return error


def activation_facts(found: Activation) -> dict[str, Any]:
    """The activation's keys."""
    return {**found._asdict(), "slot": slot_name(found.slot), "version": str(found.version)}


def activation_text(found: Activation) -> str:
    """What runs after a reset of the core."""
    where = f"slot {found.slot.name}" if found.slot else "loaded from outside"
    state = "on trial" if found.on_trial else "confirmed"
    return f"{found.version} came up from {where} in {found.wall_seconds:.1f} s (wall), {state}"
