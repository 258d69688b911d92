"""The chip: what every function of it would share, and what a reset of a function does not touch."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from emulator.chip.black_box import EMPTY
from emulator.chip.counters import Counters
from emulator.chip.device_memory import DeviceMemory
from emulator.chip.error_log import ErrorLog
from emulator.chip.state import KeptState, StateFolder, new_serial
from emulator.engines.job import Engines
from emulator.engines.verdict import InlineVerifier, Verifier
from emulator.management.port import AbsentCore, ManagementPort
from emulator.model.clock import TickClock
from emulator.model.profile import Profile
from emulator.state_error import StateError

_logger = logging.getLogger("npu.emulator")


class Chip:
    """Device memory, engines, device time, management core, and the records that survive resets."""

    def __init__(
        self,
        profile: Profile,
        open_engines: Callable[[DeviceMemory], Engines],
        state: StateFolder | None = None,
        management: ManagementPort | None = None,
        wall_ns: Callable[[], int] = time.monotonic_ns,
        verifier: Verifier | None = None,
    ) -> None:
        """Power on. The chip closes what `open_engines` gives for its memory, `state`, `management` and `verifier`.

        Without `management` there is no management core, without `state` nothing is kept, without `verifier` programs
        are verified in the caller. Raises StateError.
        """
        kept = state.load() if state else KeptState(new_serial(), {})
        self.profile = profile
        self.serial = kept.serial
        self._state = state
        self.clock = TickClock(profile.tick_hz, wall_ns)
        self.errors = ErrorLog(self.clock.snapshot)
        if kept.errors:
            self.errors.restore(kept.errors)
        self.counters = Counters.restored(kept.counters)
        self.black_box = kept.black_box or EMPTY
        """The BLACK_BOX log page."""
        self.memory = DeviceMemory(profile.memory_bytes)
        self.engines = open_engines(self.memory)
        self.verifier = verifier or InlineVerifier(profile)
        self.management = management or AbsentCore()

    def throttle(self) -> int:
        """By how many eighths the management core slows the engines down, 0 to 7."""
        return self.management.read("throttle")

    def save_state(self) -> None:
        """Write what outlives this process to the state folder, if there is one."""
        if self._state:
            try:
                self._state.save(KeptState(self.serial, self.counters.as_shown(), self.errors.page(), self.black_box))
            except StateError as error:  # a full disk must not take the device from its clients
                _logger.warning("nothing was kept: %s", error)

    def close(self) -> None:
        """Power off; idempotent."""
        self.engines.close()
        self.verifier.close()
        self.management.close()
        self.save_state()
        if self._state:
            self._state.close()
        self.memory.close()
