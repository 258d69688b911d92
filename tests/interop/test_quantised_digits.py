"""A trained network in int8, made by `sdk.quantize`, recognises on a device what the float network does."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

import sdk
from tests.models import digits
from tests.support.needs import module_of_extra
from tests.support.onnxruntime_peer import run as peer

module_of_extra("onnxruntime", "models")
CALIBRATION_PICTURES, BATCH = 320, 32
GIVEN_UP = 0.01
"""Of the accuracy, by quantising."""


@pytest.fixture(scope="module")
def device() -> Iterator[sdk.Device]:
    with sdk.Device("emulator:generic?kernels=numpy&core=none") as opened:
        yield opened


@pytest.mark.parametrize("form", ["qdq", "qoperator"])
def test_the_int8_network_recognises_what_the_float_one_does(device: sdk.Device, form: str) -> None:
    floats = digits.model()
    training, held_back = digits.digits()
    samples = [training.pictures[start : start + BATCH] for start in range(0, CALIBRATION_PICTURES, BATCH)]
    int8 = sdk.quantize(floats, samples, form=form)
    reached = []
    for name, net in (("float32", floats), (f"int8, {form}", int8)):
        scores = device.load(net)(held_back.pictures)["scores"]
        reached.append(digits.accuracy(scores, held_back.labels))
        print(f"digits, {name}: {reached[-1]:.2%} of {len(held_back.labels)} recognised, {net.ByteSize():,} bytes")
    assert reached[0] > 0.95
    assert reached[1] >= reached[0] - GIVEN_UP


def test_the_int8_network_answers_as_onnxruntime_does(device: sdk.Device) -> None:
    training, held_back = digits.digits()
    int8 = sdk.quantize(digits.model(), [training.pictures[:CALIBRATION_PICTURES]])
    answers = device.load(int8)(held_back.pictures)["scores"]
    expected = peer(int8.SerializeToString(), {"pictures": held_back.pictures})["scores"]
    # a value between two steps may fall either way; what follows is then a step or two off
    assert (answers == expected).mean() > 0.99
    assert (answers.argmax(axis=1) == expected.argmax(axis=1)).mean() > 0.99
    assert np.abs(answers - expected).max() <= 0.02 * np.abs(expected).max()
