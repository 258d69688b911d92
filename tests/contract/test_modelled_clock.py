"""The emulator's clock runs the schedule that `estimate` computes: on one engine and on many, alone and in line."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import sdk
from sdk.errors import UnsupportedModel
from tests.support.models import model, node
from tests.support.profiles import profile_file
from tests.support.waiting import PATIENCE_S

F32 = np.float32
ROWS, DEPTH, COLUMNS = 40, 64, 48


def layers() -> onnx.ModelProto:
    nodes = [
        node("MatMul", ["x", "w"], ["a"]),
        node("Exp", ["a"], ["b"]),
        node("Sqrt", ["b"], ["c"]),
        node("Mul", ["b", "c"], ["y"]),
    ]
    weights = {"w": np.ones((DEPTH, COLUMNS), F32)}
    return model(nodes, {"x": (F32, (ROWS, DEPTH))}, {"y": F32}, weights)


def open_emulator(path: Path) -> sdk.Device:
    return sdk.Device(f"emulator:{path}?kernels=numpy&core=none")


@pytest.mark.parametrize(
    "figures",
    [
        {"engines": 1},
        {"engines": 2},
        {"engines": 78},
        {"engines": 5, "shared_port_bytes_per_tick": 4},
        {"engines": 5, "shared_sram_bytes": ROWS * COLUMNS * 4},
        {"engines": 4, "tiles": None, "memory_bytes_per_tick": None, "exec_fixed_ticks": None},
    ],
    ids=str,
)
def test_an_idle_device_takes_the_estimate_to_the_tick(tmp_path: Path, figures: dict[str, Any]) -> None:
    path = profile_file(tmp_path, **figures)
    expected = sdk.compile(layers(), target=path).estimate()
    assert expected is not None
    with open_emulator(path) as device:
        net = device.load(layers())
        x, y = device.buffer((ROWS, DEPTH), "float32"), device.buffer((ROWS, COLUMNS), "float32")
        run = net.submit(x, out={"y": y}).wait(PATIENCE_S)  # on device memory, so that no copies are part of it
        assert (device.info.profile, device.info.engines) == ("small", figures["engines"])
        assert run.start_tick is not None and run.end_tick is not None
        assert run.end_tick - run.start_tick == expected.latency_ticks


def test_on_one_engine_and_on_three_a_run_takes_what_was_computed_by_hand(tmp_path: Path) -> None:
    """In tiles of 8 x 8: 5 · 6 = 30, of 64·64 / 64 + 3 = 67 ticks each. In tiles of 16 x 32: 3 · 2 = 6, of 515 each.

    Element-wise commands move 2, 2 and 3 times 7680 bytes, 120 ticks each, the product 10240 + 12288 + 7680, 472.
    """
    moved = (2 + 2 + 3) * 120
    for engines, product in ((1, 30 * 67), (3, 10 * 67), (30, 472)):
        found = sdk.compile(layers(), target=profile_file(tmp_path, engines=engines)).estimate()
        assert found is not None
        assert found.latency_ticks == 100 + 4 * 10 + product + moved


def test_runs_in_flight_have_the_engines_one_after_the_other(tmp_path: Path) -> None:
    path = profile_file(tmp_path, engines=8, exec_fixed_ticks=1_000_000_000)
    with open_emulator(path) as device:
        net = device.load(layers())
        cost = net.estimate(path)
        assert cost is not None
        buffers = [(device.buffer((ROWS, DEPTH), "float32"), device.buffer((ROWS, COLUMNS), "float32")) for _ in "abc"]
        events = [net.submit(x, out={"y": y}) for x, y in buffers]
        spans = sorted((event.wait(PATIENCE_S).start_tick or 0, event.end_tick or 0) for event in events)
        assert [end - start for start, end in spans] == [cost.latency_ticks] * 3
        assert all(start >= end for (_, end), (start, _) in itertools.pairwise(spans))


def halves() -> onnx.ModelProto:
    weights = {"w": np.ones((4, 4), np.float16)}
    return model([node("MatMul", ["x", "w"], ["y"])], {"x": (np.float16, (4, 4))}, {"y": np.float16}, weights)


def test_a_device_refuses_a_type_that_its_chip_lacks_by_name(tmp_path: Path) -> None:
    """The host knows nothing of a profile of one's own by its name, so it is the device that refuses."""
    with open_emulator(profile_file(tmp_path)) as device:
        with pytest.raises(sdk.CommandFailed, match="program-rejected"):
            device.load(halves())(np.ones((4, 4), np.float16))
        assert "small has no rate for fp16; it has: int8, fp32" in device.errors()[-1].message


def test_compiling_for_a_chip_refuses_a_type_that_it_lacks_by_name_and_node(tmp_path: Path) -> None:
    path = profile_file(tmp_path)
    with pytest.raises(UnsupportedModel, match=r"node 'make_y'\): small has no rate for fp16; it has: int8, fp32"):
        sdk.compile(halves(), target=path)
    program = sdk.compile(halves(), target=path, fallback="cpu")
    assert [(each.op, each.where.value, each.code) for each in program.report] == [
        ("MatMul", "host", "unsupported-type")
    ]
    whole = sdk.compile(halves(), target="generic")
    with pytest.raises(ValueError, match=r"small has no rate for fp16; it has: int8, fp32; node 'make_y' multiplies"):
        whole.estimate(path)


def test_a_bad_file_is_refused_where_it_is_named(tmp_path: Path) -> None:
    path = profile_file(tmp_path, engines=0)
    for refused in (lambda: open_emulator(path), lambda: sdk.compile(layers(), target=path)):
        with pytest.raises(ValueError, match=r"small\.toml is no profile:\n  line \d+: engines is 0; it must be"):
            refused()
