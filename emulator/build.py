"""Putting an emulated device together: its chip, from a profile, and the function that a host sees."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from emulator.chip.chip import Chip
from emulator.chip.device_memory import DeviceMemory
from emulator.chip.state import StateFolder
from emulator.engines import executor
from emulator.engines.inline import InlineEngines
from emulator.engines.job import Engines
from emulator.engines.pool import EnginePool
from emulator.engines.verifier import VerifierProcess
from emulator.function.function import PciFunction
from emulator.management.process.options import CoreOptions, start_core
from emulator.model.profile import load_profile, named_profile


def build(
    profile_name: str,
    kernels: str,
    state: Path | None = None,
    *,
    in_process: bool = False,
    core: CoreOptions | None = None,
    on_power_off: Callable[[int], None] | None = None,
) -> PciFunction:
    """A powered-on function. `profile_name` may be the path of a file, as `named_profile` tells.

    Raises ValueError for an unknown profile, OSError for one that cannot be read, StateError for an unusable folder.

    In process, and without `core`, there is no management core; `on_power_off` see `start_core`.
    """
    profile = load_profile(named_profile(profile_name))

    def open_engines(memory: DeviceMemory) -> Engines:
        if in_process:
            return InlineEngines(memory.view, executor, kernels)
        return EnginePool(memory.fd, profile.engines, kernels)

    with ExitStack() as undo:
        folder = StateFolder(state) if state else None
        if folder:
            undo.callback(folder.close)
        management = None if core is None or in_process else start_core(profile, state, core, on_power_off)
        if management:
            undo.callback(management.close)
        verifier = None if in_process else VerifierProcess(profile)
        chip = Chip(profile, open_engines, folder, management, verifier=verifier)
        undo.callback(chip.close)
        function = PciFunction(chip)
        undo.pop_all()
    return function
