"""Sending things of an open device to another process: refused with what to send; what can be sent arrives."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
import pytest

import sdk
from tests.support.models import model, node


def told_elsewhere(info: sdk.DeviceInfo) -> sdk.DeviceInfo:
    """In the other process: what came, sent back."""
    if info.memory_bytes is None:
        raise sdk.OutOfDeviceMemory("there is none", device=info.address, requested=3)
    return info


def test_everything_of_a_device_is_refused_with_what_to_send_and_stays_usable(device: sdk.Device) -> None:
    square = model([node("Mul", ["x", "x"], ["y"])], {"x": (np.float32, (2,))}, {"y": np.float32})
    with device.queue() as queue:
        host, memory = device.host_buffer(8, "int8"), device.buffer(8, "int8")
        loaded = device.load(square)
        run = loaded.submit(np.ones(2, np.float32))
        filled = queue.fill(memory, 3)
        for thing in (device, queue, queue.batch(), host, memory, host[2:], memory[2:], loaded, run, filled):
            for way in (pickle.dumps, copy.copy, copy.deepcopy):
                with pytest.raises(TypeError, match=f"{type(thing).__name__} cannot be pickled or copied"):
                    way(thing)
        queue.copy(host, memory).wait()
        assert pickle.loads(pickle.dumps(host.array.copy())).tolist() == [3] * 8
        assert run.result()["y"].tolist() == [1, 1]


def test_info_and_errors_go_to_another_process_and_back(device: sdk.Device) -> None:
    poorer: dict[str, Any] = {**device.info.__dict__, "memory_bytes": None}

    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        assert pool.submit(told_elsewhere, device.info).result() == device.info
        with pytest.raises(sdk.OutOfDeviceMemory, match="there is none") as caught:
            pool.submit(told_elsewhere, sdk.DeviceInfo(**poorer)).result()
        assert (caught.value.device, caught.value.requested) == (device.address, 3)
        with pytest.raises(TypeError, match="Device cannot be pickled or copied"):
            pool.submit(repr, device).result()
