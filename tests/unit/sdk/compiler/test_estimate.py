"""What an estimate says beside ticks: bounds, what binds, use of the engines, throughput, energy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sdk
from sdk.compiler.estimate import Estimate
from tests.support.models import model, node
from tests.support.profiles import profile_file

F32 = np.float32


@pytest.fixture
def of(tmp_path: Path) -> Any:
    """What a product of 32 x 64 with 64 x 32, and its exponential, take on the small chip with other figures."""

    def found(**figures: Any) -> Estimate:
        nodes = [node("MatMul", ["x", "w"], ["a"]), node("Exp", ["a"], ["y"])]
        net = model(nodes, {"x": (F32, (32, 64))}, {"y": F32}, {"w": np.ones((64, 32), F32)})
        estimate = sdk.compile(net, target=profile_file(tmp_path, **figures)).estimate()
        assert estimate is not None
        return estimate

    return found


def test_an_estimate_by_hand(of: Any) -> None:
    """On 2 engines 2 tiles of 16 x 32 are a wave of 512 + 3 ticks, 16 of 8 x 8 would be 8 waves of 64 + 3.

    20480 bytes are 320 ticks. The exponential moves 8192 bytes, 128 ticks.
    """
    found = of(engines=2)
    product, exponential = found.commands
    assert (product.ticks, product.binding, product.bound_ticks) == (515 + 10, "compute", 65536 // 128)
    assert (exponential.ticks, exponential.binding, exponential.bound_ticks) == (128 + 10, "memory", 128)
    assert found.latency_ticks == 100 + 525 + 138
    assert found.bound_ticks == 512 + 128
    assert found.latency_seconds == pytest.approx(763e-9) and found.bound_seconds == pytest.approx(640e-9)
    assert found.utilisation == pytest.approx(512 / 763)
    assert (found.macs, found.moved_bytes) == (65536, 20480 + 8192)
    assert found.binding == "link"  # 8192 bytes of x, 8 a tick
    assert found.runs_per_second == pytest.approx(1e9 / 1024)


def test_a_faster_link_leaves_the_engines_to_bind(of: Any) -> None:
    found = of(engines=2, link_bytes_per_tick=64)
    assert (found.binding, found.runs_per_second) == ("compute", pytest.approx(1e9 / 763))
    assert of(engines=40, link_bytes_per_tick=64).binding == "memory"
    assert of(engines=40, link_bytes_per_tick=64, command_fixed_ticks=400).binding == "fixed"
    assert of(link_bytes_per_tick=None, shared_port_bytes_per_tick=1).binding == "sram"


def test_what_stays_on_the_chip_moves_no_bytes(of: Any) -> None:
    kept, just_not = (of(shared_sram_bytes=size) for size in (4096, 4095))
    assert [each.moved_bytes for each in kept.commands] == [16384, 4096]
    assert [each.moved_bytes for each in just_not.commands] == [20480, 8192]


def test_energy_is_an_interval_or_not_known(of: Any) -> None:
    low, high = of(engines=2, idle_watts=2.5, power_cap_watts=10).energy_joules
    assert (low, high) == (pytest.approx(2.5 * 763e-9), pytest.approx(10 * 763e-9))
    assert of(power_cap_watts=10).energy_joules is None
    assert of(idle_watts=10).energy_joules is None


def test_units_are_those_of_the_clock(of: Any) -> None:
    slow, fast = of(tick_hz=1_000_000, idle_watts=1, power_cap_watts=2), of(idle_watts=1, power_cap_watts=2)
    assert slow.latency_ticks == fast.latency_ticks
    for name in ("latency_seconds", "bound_seconds"):
        assert getattr(slow, name) == pytest.approx(1000 * getattr(fast, name))
    assert slow.energy_joules[0] == pytest.approx(1000 * fast.energy_joules[0])
    assert slow.runs_per_second == pytest.approx(fast.runs_per_second / 1000)


def test_whether_memory_suffices_is_told(of: Any, tmp_path: Path) -> None:
    found = of()
    assert (found.memory_bytes, found.fits) == (8192 + 8192 + 4096 + 4096, True)  # weights, x, y, what is between
    large = model(
        [node("MatMul", ["x", "w"], ["y"])], {"x": (F32, (1, 512))}, {"y": F32}, {"w": np.ones((512, 513), F32)}
    )
    estimate = sdk.compile(large, target=profile_file(tmp_path, memory_bytes=1 << 20)).estimate()
    assert estimate is not None and not estimate.fits


def test_a_program_for_one_chip_is_estimated_for_another(tmp_path: Path) -> None:
    program = sdk.compile(model([node("Exp", ["x"], ["y"])], {"x": (F32, (8,))}, {"y": F32}))
    found = program.estimate(profile_file(tmp_path))
    assert found is not None
    assert (found.profile, found.latency_ticks) == ("small", 100 + 10 + 1)
