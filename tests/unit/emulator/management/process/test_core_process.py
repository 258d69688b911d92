"""The PCI function's end of the wires to the management core's process, whose end the test plays."""

from __future__ import annotations

import os
import select
from collections.abc import Iterator

import pytest

from emulator.host_memory.address_space import AddressSpace
from emulator.management.npu.storage import STORAGE_BYTES
from emulator.management.process.core_process import CoreProcess

EMPTY = AddressSpace()
PATIENCE_S = 120.0


class Function:
    """A function's view of a core whose process has no command line that it understands."""

    def __init__(self) -> None:
        self.exit_codes: list[int] = []
        storage = os.memfd_create("storage")
        self.core = CoreProcess(storage, ["--no-such-option"], self.exit_codes.append)

    def switch_off(self, exit_code: int) -> None:
        """What the core does when its image switches it off."""
        link = self.core._link
        link["exit_code"] = exit_code + 1
        link.announce("power_offs", link["power_offs"] + 1)
        os.eventfd_write(self.core._to_function, 1)

    def step(self) -> bool:
        return self.core.step(EMPTY, bus_master=True, busy_ticks=0)

    def is_woken(self) -> bool:
        return bool(select.select([self.core._to_function], [], [], 0)[0])


@pytest.fixture
def function() -> Iterator[Function]:
    made = Function()
    yield made
    made.core.close()


def test_every_wake_is_taken(function: Function) -> None:
    """One that stays pending would keep the server at work for ever."""
    for exit_code in (3, 3, 0):
        function.switch_off(exit_code)
        assert function.step()
        assert not function.is_woken()
        assert not function.step()


def test_the_exit_code_is_told_once(function: Function) -> None:
    function.switch_off(3)
    function.step()
    function.switch_off(4)
    function.step()
    assert function.exit_codes == [3]


@pytest.mark.parametrize(
    ("size", "says"), [(4096, f"flash has 4096 bytes instead of {STORAGE_BYTES}"), (STORAGE_BYTES, "magic 0x0")]
)
def test_a_core_whose_storage_was_spoilt_ends_with_one_line(
    size: int, says: str, capfd: pytest.CaptureFixture[str]
) -> None:
    storage = os.memfd_create("storage")
    os.truncate(storage, size)
    core = CoreProcess(storage, ["--ticks-per-s=1", "--engines=1", "--share=0.5"])
    try:
        ended = select.select([core._pidfd], [], [], PATIENCE_S)[0]
        told = capfd.readouterr().err.splitlines()
    finally:
        core.close()
    assert ended
    assert len(told) == 1 and says in told[0]
