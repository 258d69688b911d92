"""A model's weights are where the host can see and alter them, and they go when the model goes."""

from __future__ import annotations

import gc
import importlib.util
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest

import sdk
from tests.support.loaded import parts_of

TOKENS, VALUES = 2048, 257
WEIGHTS = "Const_24:0"
"""Ends the name of weights that every answer of magika's model depends on."""


def magika_model() -> Path:
    """Its file, without importing the package (which would import onnxruntime)."""
    found = importlib.util.find_spec("magika")
    assert found is not None
    assert found.submodule_search_locations
    return Path(found.submodule_search_locations[0], "models", "standard_v3_3", "model.onnx")


@pytest.fixture
def device() -> Iterator[sdk.Device]:
    with sdk.Device("emulator:generic?kernels=numpy") as opened:  # kernels that pack no float weights
        yield opened


def test_a_bit_of_a_weight_in_device_memory_changes_the_answer_and_back(device: sdk.Device) -> None:
    x = np.random.default_rng(9).integers(0, VALUES, (1, TOKENS), dtype=np.int32)
    model = device.load(magika_model(), shapes={"bytes": [x.shape]})
    honest = model(x)["target_label"]

    (buffer,) = parts_of(model).weights.buffers
    weights = next(t for t in onnx.load(magika_model()).graph.initializer if t.name.endswith(WEIGHTS))
    staging = device.host_buffer(buffer.shape, "uint8")
    with device.queue() as queue:
        queue.copy(staging, buffer).wait()
        place = staging.array.tobytes().index(onnx.numpy_helper.to_array(weights).tobytes())
        staging.array[place + 3] ^= 0x40  # the highest exponent bit of a float
        queue.copy(buffer, staging).wait()
        altered = model(x)["target_label"]
        staging.array[place + 3] ^= 0x40
        queue.copy(buffer, staging).wait()
    assert np.abs(honest - altered).max() > 1e-4
    assert np.array_equal(model(x)["target_label"], honest)


def test_a_closed_model_leaves_nothing_to_its_finaliser(device: sdk.Device) -> None:
    x = np.zeros((1, TOKENS), np.int32)
    model = device.load(magika_model())
    model(x)
    model.close()
    del model
    gc.collect()
    with device.queue() as queue:
        queue.nop().wait()
    assert device.errors() == []
