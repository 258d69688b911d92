"""The image networks that onnx brings, with random weights, on the device's kernels against onnxruntime's."""

from __future__ import annotations

import numpy as np
import pytest

from sdk.compiler import compile_model
from tests.models.image_networks import picture_for, with_random_weights
from tests.support.onnxruntime_peer import run as peer
from tests.support.programs import run

NETWORKS = ("squeezenet", "shufflenet", "resnet50", "densenet121", "inception_v1", "inception_v2")
LARGE_NETWORKS = ("bvlc_alexnet", "zfnet512", "vgg19")
"""Their last layers have hundreds of megabytes of weights."""
RELATIVE_TOLERANCE = 1e-4


def agree(name: str, opset: int | None = None) -> None:
    net = with_random_weights(name, len(name), opset)
    inputs = picture_for(net)
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


@pytest.mark.slow
@pytest.mark.parametrize("opset", [17, 21, 24])
@pytest.mark.parametrize("name", [*NETWORKS, *LARGE_NETWORKS])
def test_every_network_does_at_every_opset_that_exporters_write(name: str, opset: int) -> None:
    agree(name, opset)
