"""A small network that reads handwritten digits: trained here, in numpy, on scikit-learn's digits of 8 × 8 dots."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_digits

Floats = NDArray[np.float32]
CHANNELS = (1, 8, 16)
CLASSES, WINDOW, POOL, SIDE = 10, 3, 2, 8
EPOCHS, BATCH, RATE, MOMENTUM = 6, 32, 0.05, 0.9
TEST_SHARE = 4
"""One picture of so many is held back for the test."""
HIGHEST = 16
"""A dot's value where the pen was."""


class Digits(NamedTuple):
    """Pictures [n, 1, 8, 8] of 0 to 1, and what they show."""

    pictures: Floats
    labels: NDArray[np.int64]


def digits() -> tuple[Digits, Digits]:
    """To train with, and to test with."""
    pictures, labels = load_digits(return_X_y=True)
    pictures = (pictures / HIGHEST).astype(np.float32).reshape(-1, 1, SIDE, SIDE)
    held_back = np.arange(len(labels)) % TEST_SHARE == 0
    return Digits(pictures[~held_back], labels[~held_back]), Digits(pictures[held_back], labels[held_back])


def accuracy(scores: Floats, labels: NDArray[np.int64]) -> float:
    """Share of the pictures whose highest score is the right one's."""
    return float((scores.argmax(axis=1) == labels).mean())


class _Convolution:
    """A convolution of 3 × 3 dots, ReLU and the maximum of each 2 × 2."""

    def __init__(self, taken: int, given: int, random: np.random.Generator) -> None:
        self.weight = random.normal(0, (2 / taken / WINDOW**2) ** 0.5, (given, taken, WINDOW, WINDOW)).astype(
            np.float32
        )
        self.bias = np.zeros(given, np.float32)

    def forward(self, x: Floats) -> Floats:
        self._columns = _columns(x)
        n, _, h, w = x.shape
        sums = (self._columns @ self.weight.reshape(len(self.weight), -1).T + self.bias).reshape(n, h, w, -1)
        tiles = np.maximum(sums, 0).transpose(0, 3, 1, 2).reshape(n, -1, h // POOL, POOL, w // POOL, POOL)
        found: Floats = tiles.max(axis=(3, 5))
        self._passed = (tiles == found[:, :, :, None, :, None]) & (tiles > 0)
        return found

    def backward(self, slope: Floats) -> tuple[Floats, list[Floats]]:
        """Slopes of what came in, and of weight and bias."""
        tiles = (self._passed * slope[:, :, :, None, :, None]).astype(np.float32)
        n, k, h, _, w, _ = tiles.shape
        sums = tiles.reshape(n, k, h * POOL, w * POOL)
        rows = sums.transpose(0, 2, 3, 1).reshape(-1, k)
        weight = (rows.T @ self._columns).reshape(self.weight.shape)
        turned = self.weight[:, :, ::-1, ::-1].transpose(0, 2, 3, 1).reshape(k * WINDOW**2, -1)
        came_in = (_columns(sums) @ turned).reshape(n, h * POOL, w * POOL, -1).transpose(0, 3, 1, 2)
        return came_in, [weight, rows.sum(axis=0)]


def _columns(x: Floats) -> Floats:
    """The 3 × 3 dots around each dot, of all channels, as a row."""
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (WINDOW, WINDOW), axis=(2, 3))
    return windows.transpose(0, 2, 3, 1, 4, 5).reshape(-1, x.shape[1] * WINDOW**2)


def _batches(count: int, random: np.random.Generator) -> Iterator[NDArray[np.int64]]:
    order = random.permutation(count)
    yield from (order[start : start + BATCH] for start in range(0, count, BATCH))


@functools.cache
def trained() -> tuple[Floats, ...]:
    """Weight and bias of both convolutions and of the last layer, by stochastic gradient descent with momentum."""
    random = np.random.default_rng(0)
    data, _ = digits()
    layers = [_Convolution(taken, given, random) for taken, given in itertools.pairwise(CHANNELS)]
    features = CHANNELS[-1] * (SIDE // POOL ** len(layers)) ** 2
    last = random.normal(0, features**-0.5, (features, CLASSES)).astype(np.float32)
    parameters = [*(p for layer in layers for p in (layer.weight, layer.bias)), last, np.zeros(CLASSES, np.float32)]
    speeds = [np.zeros_like(parameter) for parameter in parameters]
    for _ in range(EPOCHS):
        for chosen in _batches(len(data.labels), random):
            slopes = _slopes(layers, parameters[-2:], data.pictures[chosen], data.labels[chosen])
            for parameter, speed, slope in zip(parameters, speeds, slopes, strict=True):
                speed[...] = MOMENTUM * speed - RATE * slope
                parameter += speed
    return tuple(parameters)


def _slopes(layers: list[_Convolution], last: list[Floats], x: Floats, labels: NDArray[np.int64]) -> list[Floats]:
    """Of the mean cross-entropy, with respect to every parameter, in order."""
    for layer in layers:
        x = layer.forward(x)
    flat = x.reshape(len(x), -1)
    scores = flat @ last[0] + last[1]
    shares = np.exp(scores - scores.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    shares[np.arange(len(labels)), labels] -= 1
    shares /= len(labels)
    found = [flat.T @ shares, shares.sum(axis=0)]
    slope = (shares @ last[0].T).reshape(x.shape)
    for layer in reversed(layers):
        slope, own = layer.backward(slope)
        found = own + found
    return found


def model() -> onnx.ModelProto:
    """`pictures` [batch, 1, 8, 8] → `scores` [batch, 10]."""
    names = ["conv1.weight", "conv1.bias", "conv2.weight", "conv2.bias", "last.weight", "last.bias"]
    window = {"kernel_shape": [WINDOW, WINDOW], "pads": [1, 1, 1, 1]}
    pool = {"kernel_shape": [POOL, POOL], "strides": [POOL, POOL]}
    nodes = [
        helper.make_node("Conv", ["pictures", *names[0:2]], ["conv1"], name="conv1", **window),
        helper.make_node("Relu", ["conv1"], ["relu1"], name="relu1"),
        helper.make_node("MaxPool", ["relu1"], ["pool1"], name="pool1", **pool),
        helper.make_node("Conv", ["pool1", *names[2:4]], ["conv2"], name="conv2", **window),
        helper.make_node("Relu", ["conv2"], ["relu2"], name="relu2"),
        helper.make_node("MaxPool", ["relu2"], ["pool2"], name="pool2", **pool),
        helper.make_node("Flatten", ["pool2"], ["flat"], name="flatten"),
        helper.make_node("Gemm", ["flat", *names[4:6]], ["scores"], name="last"),
    ]
    graph = helper.make_graph(
        nodes,
        "digits",
        [helper.make_tensor_value_info("pictures", TensorProto.FLOAT, ["batch", 1, SIDE, SIDE])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", CLASSES])],
        [numpy_helper.from_array(value, name) for name, value in zip(names, trained(), strict=True)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
