"""Options of a management core, its start, and the image that a new chip is made with."""

from __future__ import annotations

import dataclasses
import logging
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from emulator.management.npu.storage import open_storage
from emulator.management.port import ManagementPort
from emulator.management.process.core_process import CoreProcess, missing_modules
from emulator.management.process.uart_port import check_uart_port
from emulator.model.profile import Profile

_logger = logging.getLogger("npu.emulator.management")

FACTORY_IMAGE = Path(__file__).parents[1] / "firmware" / "reference.bin"
"""The signed reference firmware, which a new chip has in slot A."""

_ABSOLUTE_ZERO_CELSIUS = -273.15


@dataclasses.dataclass(frozen=True, slots=True)
class CoreOptions:
    """What can be chosen about the core."""

    firmware: Path | None = None
    """An ELF file to run instead of what flash holds, as QEMU's `-bios none -kernel` does."""
    board: Path | None = None
    """Memories and peripherals for that firmware; else the NPU's own board."""
    uart: str | None = None
    """Where the UART also goes: "pty", "tcp:PORT" or "stdio"."""
    ambient_celsius: float | None = None
    """Temperature around the chip."""
    share: float = 0.5
    """How much of one CPU the core may take while it is busy."""
    log_level: str = "WARNING"

    def __post_init__(self) -> None:
        """Raises ValueError for a temperature that there is not."""
        celsius = self.ambient_celsius
        if celsius is not None and not _ABSOLUTE_ZERO_CELSIUS <= celsius < math.inf:
            raise ValueError(f"the temperature around the chip is a number of degrees Celsius, not {celsius}")

    @property
    def foreign(self) -> bool:
        """Whether somebody's own image runs instead of what flash holds."""
        return self.firmware is not None or self.board is not None

    def arguments(self, profile: Profile) -> Iterator[str]:
        """For `serve.py`."""
        yield f"--ticks-per-s={profile.tick_hz}"
        yield f"--engines={profile.engines}"
        yield f"--share={self.share}"
        yield f"--log-level={self.log_level}"
        if self.ambient_celsius is not None:
            yield f"--ambient={self.ambient_celsius}"
        if self.firmware is not None:
            yield f"--firmware={os.path.abspath(self.firmware)}"
        if self.board is not None:
            yield f"--board={os.path.abspath(self.board)}"
        if self.uart is not None:
            yield f"--uart={self.uart}"


def start_core(
    profile: Profile, state: Path | None, options: CoreOptions, on_power_off: Callable[[int], None] | None
) -> ManagementPort | None:
    """A core process; None, and a line in the log, where the extra `[firmware]` is not installed.

    `on_power_off` is told the exit code when somebody's own firmware switches the core off. Raises StateError for a
    state folder that holds no usable flash, ValueError for options that cannot be met.
    """
    missing = missing_modules()
    if missing and (options.foreign or options.uart):
        raise ValueError(f"firmware needs {', '.join(missing)}; pip install 'npu-sdk[firmware]'")
    if options.uart is not None:
        check_uart_port(options.uart)
    if missing:
        _logger.info("no management core: %s not installed; pip install 'npu-sdk[firmware]'", ", ".join(missing))
        return None
    image = FACTORY_IMAGE.read_bytes() if FACTORY_IMAGE.exists() else None
    storage = open_storage(state, image)
    try:
        return CoreProcess(
            storage,
            list(options.arguments(profile)),
            on_power_off if options.foreign else None,
            owns_terminal=options.uart == "stdio",
        )
    except BaseException:
        os.close(storage)
        raise
