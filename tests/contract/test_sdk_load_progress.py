"""A long load tells how far it is; whatever ends it, nothing of it is left on the device."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx
import pytest

import sdk
from tests.support.models import model, node, read_without
from tests.support.needs import module_of_extra

F32 = np.float32
SIDE = 1 << 11
"""16 MiB of weights: several pieces of staging."""


@pytest.fixture(scope="module")
def device() -> Iterator[sdk.Device]:
    with sdk.Device("emulator") as opened:
        yield opened


def product(rows: int | str = "n", between: str = "Relu") -> onnx.ModelProto:
    weights = np.ones((SIDE, SIDE), F32)
    nodes = [
        node("MatMul", ["x", "w"], ["p"]),
        *(node("Relu", [name], [result]) for name, result in zip("pqr", "qrs", strict=True)),
        node(between, ["s"], ["t"]),
        node("Neg", ["t"], ["y"]),
    ]
    return model(nodes, {"x": (F32, (rows, SIDE))}, {"y": F32}, {"w": weights})


SHAPES = {"x": [(1, SIDE), (2, SIDE)]}


def free_of(device: sdk.Device) -> tuple[int, int, int, int]:
    """(host memory in use, device memory free, queues, programs), once what was let go is taken back."""
    function = device._function
    with function._lock:
        function._clean_up()
    device.host_buffer((1,), "uint8").free()
    return (
        function.host_memory.used_bytes,
        function.device_memory.free_bytes,
        len(function.queues),
        function.programs.counts.loaded,
    )


def is_a_way_to_the_end(told: list[tuple[int, int]]) -> bool:
    done = [now for now, _ in told]
    return len({of for _, of in told}) == 1 and done == sorted(set(done)) and done[-1] == told[0][1]


def test_a_load_tells_of_compiling_and_sending_up_to_the_end(device: sdk.Device) -> None:
    told: list[tuple[int, int]] = []
    loaded = device.load(product(), shapes=SHAPES, progress=lambda done, of: told.append((done, of)))
    assert is_a_way_to_the_end(told)
    assert len(told) > 2 * 4, "weights go in several pieces, and each is told of"
    count = len(told)
    assert loaded(np.ones((1, SIDE), F32))["y"].max() == -SIDE
    assert len(told) == count, "a run is no load"
    loaded.close()


def test_a_model_that_declares_its_shapes_is_compiled_and_sent_where_progress_is_asked_for(device: sdk.Device) -> None:
    told: list[tuple[int, int]] = []
    loaded = device.load(product(1), progress=lambda done, of: told.append((done, of)))
    assert is_a_way_to_the_end(told) and device.programs.loaded == 1
    loaded.close()


def test_a_load_in_regions_tells_of_all_of_them(device: sdk.Device, monkeypatch: pytest.MonkeyPatch) -> None:
    module_of_extra("onnxruntime", "models")
    told: list[tuple[int, int]] = []
    net = read_without(product(1, between="Softsign"), "Softsign")
    loaded = device.load(net, fallback="cpu", progress=lambda done, of: told.append((done, of)))
    assert [entry.where.value for entry in loaded.report].count("host") == 1
    assert is_a_way_to_the_end(told)
    loaded.close()


class Stopped(Exception):
    """The application has had enough."""


def raising(error: type[BaseException]) -> Callable[[], None]:
    def stop() -> None:
        raise error

    return stop


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("parts", [0.0, 0.2, 0.3, 0.45, 0.9])
@pytest.mark.parametrize(
    ("stop", "error"),
    [(raising(Stopped), Stopped), (raising(KeyboardInterrupt), KeyboardInterrupt), (interrupt, KeyboardInterrupt)],
    ids=["raises", "KeyboardInterrupt", "SIGINT"],
)
def test_what_ends_a_load_leaves_nothing_of_it_on_the_device(
    device: sdk.Device, stop: Callable[[], None], error: type[BaseException], parts: float
) -> None:
    gc.collect()
    before = free_of(device)
    told: list[float] = []

    def tell(done: int, of: int) -> None:
        told.append(done / of)
        if done >= parts * of and len([each for each in told if each >= parts]) == 1:
            stop()

    with pytest.raises(error) as caught:
        device.load(product(), shapes=SHAPES, progress=tell)
    assert free_of(device) == before, "though the traceback is still there"
    del caught
    x: Any = np.ones((1, SIDE), F32)
    loaded = device.load(product(), shapes=SHAPES)
    assert loaded(x)["y"].max() == -SIDE
    loaded.close()
    del loaded
    gc.collect()
    assert free_of(device) == before
