"""A small device in process and the hostile host that tests of it share."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from driver_shim.protocol import commands as c
from driver_shim.transport.in_process import InProcessTransport
from emulator.chip.chip import Chip
from emulator.engines import executor
from emulator.engines.inline import InlineEngines
from emulator.function.function import PciFunction
from emulator.model.profile import load_profile
from tests.support.bus_client import MEMORY_BYTES, MEMORY_IOVA, PAGE_BYTES, BusClient

MEMORY = 3 << 20
"""Device memory: small, so that no random copy takes long, and no power of two, so that the aperture has a hole."""
MOST_STEPS = 2000
"""No sequence here leaves a device with more work than that."""
SLOW_FACTOR = 40
SLOW_TIMEOUT_S = 1800
"""Of one test: a minute or two on an idle machine, many times that beside other work."""
_PROFILE = dataclasses.replace(load_profile("generic"), memory_bytes=MEMORY)

Test = TypeVar("Test", bound=Callable[..., None])


def fuzzed(examples: int, **strategies: st.SearchStrategy[Any]) -> Callable[[Callable[..., None]], Any]:
    """A test over these strategies: a few examples by default, always the same, and many in the slow lane.

    Those are other ones each time, except where the profile says that a failure must be one that anybody can repeat.
    """
    common: dict[str, Any] = {
        "deadline": None,
        "print_blob": True,
        "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.nested_given],
    }

    def decorate(body: Callable[..., None]) -> Any:
        def run(slow: bool) -> None:
            budget = settings(
                max_examples=examples * (SLOW_FACTOR if slow else 1),
                derandomize=not slow or settings().derandomize,
                **common,
            )
            budget(given(**strategies)(body))()

        run.__doc__, run.__name__ = body.__doc__, body.__name__
        slow_marks = (pytest.mark.slow, pytest.mark.timeout(SLOW_TIMEOUT_S))
        lanes = [pytest.param(False, id="some"), pytest.param(True, id="many", marks=slow_marks)]
        return pytest.mark.parametrize("slow", lanes)(run)

    return decorate


@dataclasses.dataclass
class Subject:
    """A device with a client that means well so far."""

    function: PciFunction
    transport: InProcessTransport
    bus: BusClient

    def steps(self) -> None:
        """Let the device work as its server would, until it may sleep."""
        for _ in range(MOST_STEPS):
            if not self.function.step() and self.function.arm():
                return
        pytest.fail(f"still at work after {MOST_STEPS} steps")

    def serves_on(self) -> None:
        """A client that comes after all this finds a device that works."""
        self.function.client_lost()
        assert len(self.function.address_space) == 0
        successor = BusClient(self.transport)
        successor.enable()
        assert successor.queue().run(c.NOP.build(command_id=7))[0].status == 0
        for entry in successor.errors():
            assert c.FaultSource(entry.source) and entry.count >= 1
        successor.close()


@contextlib.contextmanager
def subject() -> Iterator[Subject]:
    """A device, enabled, with client memory mapped."""
    function = PciFunction(Chip(_PROFILE, lambda memory: InlineEngines(memory.view, executor)))
    transport = InProcessTransport(function, c.ResetCause.DEVICE_RESET)
    bus = BusClient(transport)
    try:
        yield Subject(function, transport, bus.enable())
    finally:
        for fd in bus._fds:
            os.close(fd)
        transport.close()
        function.close()


ADDRESSES = st.one_of(
    st.sampled_from(
        (
            0,
            1,
            64,
            MEMORY - 64,
            MEMORY - 1,
            MEMORY,
            MEMORY_IOVA,
            MEMORY_IOVA + 0x20_0000,
            MEMORY_IOVA + MEMORY_BYTES - 64,
            MEMORY_IOVA + MEMORY_BYTES,
            MEMORY_IOVA - 1,
            (1 << 63),
            (1 << 64) - PAGE_BYTES,
            (1 << 64) - 1,
        )
    ),
    st.integers(0, (1 << 64) - 1),
)
SIZES = st.one_of(
    st.sampled_from((0, 1, 7, 16, 63, 64, 128, 512, 4096, MEMORY, MEMORY_BYTES, 1 << 32, (1 << 64) - 1)),
    st.integers(0, (1 << 64) - 1),
)


def _number(bits: int) -> st.SearchStrategy[int]:
    most = (1 << bits) - 1
    return st.one_of(st.integers(0, min(most, 33)), st.sampled_from((most, most >> 1)), st.integers(0, most))


@st.composite
def entries(draw: st.DrawFn) -> bytes:
    """A submission entry: random bytes, or a command whose every field was drawn from what is likely to hurt."""
    if draw(st.integers(0, 3)) == 0:
        return draw(st.binary(min_size=64, max_size=64))
    opcode, layout = draw(st.sampled_from([*c.IO_COMMANDS.items(), *c.ADMIN_COMMANDS.items()]))
    values: dict[str, int] = {}
    for name, spec in layout.fields.items():
        if name in ("flags", "context"):
            values[name] = draw(st.sampled_from((0, 0, 0, 0, 1)))
        elif name in ("size",):
            values[name] = draw(SIZES)
        elif spec.bits == 64:
            values[name] = draw(ADDRESSES)
        elif name.endswith("_space"):
            values[name] = draw(st.sampled_from((0, 1, 1, 2)))
        else:
            values[name] = draw(_number(spec.bits))
    return layout.build(**{**values, "opcode": int(opcode)})
