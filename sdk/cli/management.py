"""How verbs reach a device's management core: its registers, its firmware, and memory that it can read.

No queue is needed for that, so none is made: the core can be reached where host and device agree on nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import click

from driver_shim.cards.holder import canonical_address
from driver_shim.firmware.calls import Firmware
from driver_shim.firmware.mailbox import Mailbox
from driver_shim.function.bring_up import check_function, enable_function
from driver_shim.function.dma import HostMemory
from driver_shim.function.pre_open import read_pre_open, save_pre_open
from driver_shim.function.registers import Registers
from driver_shim.transport.base import Transport
from sdk import environment
from sdk.cli.exit_codes import ExitCode, Failure
from sdk.errors import NpuError
from sdk.opening.addresses import open_address


class Management(NamedTuple):
    """An open device, as the management core's tools need it."""

    transport: Transport
    registers: Registers
    firmware: Firmware
    memory: HostMemory | None
    """None where the device cannot reach host memory."""

    @property
    def opened_with_reset(self) -> bool:
        """Whether opening it reset the function (never the core)."""
        return self.transport.resets_on_open


@contextmanager
def open_management(address: str) -> Iterator[Management]:
    """Open the device at an address, and let it go. Raises as `sdk.Device`; Failure (usage) for a wrong address."""
    try:
        opened = open_address(address, None, environment.timeout_s())
    except ValueError as error:
        if isinstance(error, NpuError):
            raise
        raise Failure(str(error), ExitCode.USAGE, slug="usage") from error
    transport = opened.transport
    try:
        registers = Registers(transport)
        if transport.has_dma:
            check_function(transport)
            enable_function(transport)
        registers.check_alive()
        if opened.claim is not None:
            save_pre_open(canonical_address(address), read_pre_open(registers))
        firmware = Firmware(Mailbox(transport, registers))
        if not transport.has_dma:
            yield Management(transport, registers, firmware, None)
            return
        with HostMemory(transport) as memory:
            yield Management(transport, registers, firmware, memory)
    finally:
        transport.close()
        opened.let_go()


def no_open_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """`--no-open`, for verbs that cannot do without opening: it refuses."""
    return click.option(
        "--no-open",
        is_flag=True,
        expose_value=False,
        is_eager=True,
        callback=_refuse,
        help="Refuse to open (opening resets a device's function, except as sysfs:ADDRESS).",
    )(function)


def _refuse(context: click.Context, _: click.Parameter, given: bool) -> None:
    if given:
        raise click.UsageError(
            "the management core cannot be asked without opening the device; -d sysfs:ADDRESS opens a card without"
            " resetting it",
            context,
        )
