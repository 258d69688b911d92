"""The image networks that onnx brings, with random weights, on the device's kernels against onnxruntime's.

Their own weights are constants, made by ConstantOfShape, of which any wrong order of channels gives the right answer.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper, version_converter

from sdk.compiler import compile_model
from tests.support.onnxruntime_peer import run as peer
from tests.support.programs import run

FOLDER = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
NETWORKS = ("squeezenet", "shufflenet", "resnet50", "densenet121", "inception_v1", "inception_v2")
LARGE_NETWORKS = ("bvlc_alexnet", "zfnet512", "vgg19")
"""Their last layers have hundreds of megabytes of weights."""
RELATIVE_TOLERANCE = 1e-4


def with_random_weights(name: str, seed: int, opset: int | None = None) -> onnx.ModelProto:
    """The network with seeded He-normal weights, and statistics that keep activations from dying out.

    As it is, at opset 9 and IR version 3, or as exporters write it today, at another opset and IR version 8.
    """
    net = onnx.load(FOLDER / f"light_{name}.onnx")
    if opset is not None:
        net = version_converter.convert_version(net, opset)
        net.ir_version = 8
    random = np.random.default_rng(seed)
    shapes = {tensor.name: numpy_helper.to_array(tensor) for tensor in net.graph.initializer}
    for made in [node for node in net.graph.node if node.op_type == "ConstantOfShape"]:
        shape = tuple(int(extent) for extent in shapes[made.input[0]])
        net.graph.initializer.append(numpy_helper.from_array(weights_of(net, made.output[0], shape, random)))
        net.graph.initializer[-1].name = made.output[0]
        net.graph.node.remove(made)
    return net


def weights_of(
    net: onnx.ModelProto, name: str, shape: tuple[int, ...], random: np.random.Generator
) -> NDArray[np.float32]:
    """He-normal for products; positive variances and scales, and small biases and means."""
    user = next((node for node in net.graph.node if name in node.input), None)
    position = list(user.input).index(name) if user is not None else 0
    if len(shape) >= 2:
        return random.normal(0, np.sqrt(2 / np.prod(shape[1:])), shape).astype(np.float32)
    if user is not None and user.op_type == "BatchNormalization" and position in (1, 4):
        return random.uniform(0.5, 1.5, shape).astype(np.float32)
    return random.normal(0, 0.1, shape).astype(np.float32)


def agree(name: str, opset: int | None = None) -> None:
    net = with_random_weights(name, len(name), opset)
    (entry,) = [i for i in net.graph.input if i.name not in {t.name for t in net.graph.initializer}]
    shape = tuple(d.dim_value for d in entry.type.tensor_type.shape.dim)
    x = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    inputs: dict[str, Any] = {entry.name: x}
    expected = peer(net.SerializeToString(), inputs)
    results = run(compile_model(net), inputs, "numpy")
    assert results.keys() == expected.keys()
    for output, reference in expected.items():
        scale = np.abs(reference).max()
        assert scale > 0 and np.isfinite(scale)
        assert np.ptp(reference) > RELATIVE_TOLERANCE * scale, "outputs that are all alike prove nothing"
        assert np.abs(results[output] - reference).max() <= RELATIVE_TOLERANCE * scale


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_gives_onnxruntimes_answers(name: str) -> None:
    agree(name)


@pytest.mark.parametrize("name", ["squeezenet", "shufflenet", "resnet50"])
def test_a_network_of_a_newer_opset_does_too(name: str) -> None:
    agree(name, opset=17)


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE_NETWORKS)
def test_a_network_with_large_last_layers_does_too(name: str) -> None:
    agree(name)
