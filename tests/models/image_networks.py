"""The image networks that the onnx package brings, with random weights.

Their own weights are constants, made by ConstantOfShape, of which any wrong order of channels gives the right answer.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper, version_converter

FOLDER = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
IR_VERSION = 8


def with_random_weights(name: str, seed: int, opset: int | None = None) -> onnx.ModelProto:
    """The network with seeded He-normal weights, and statistics that keep activations from dying out.

    As it is, at opset 9 and IR version 3, or as exporters write it today, at another opset and IR version 8.
    """
    net = onnx.load(FOLDER / f"light_{name}.onnx")
    if opset is not None:
        net = version_converter.convert_version(net, opset)
        net.ir_version = IR_VERSION
    random = np.random.default_rng(seed)
    shapes = {tensor.name: numpy_helper.to_array(tensor) for tensor in net.graph.initializer}
    for made in [node for node in net.graph.node if node.op_type == "ConstantOfShape"]:
        shape = tuple(int(extent) for extent in shapes[made.input[0]])
        net.graph.initializer.append(numpy_helper.from_array(_weights_of(net, made.output[0], shape, random)))
        net.graph.initializer[-1].name = made.output[0]
        net.graph.node.remove(made)
    return net


def _weights_of(
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


def picture_for(net: onnx.ModelProto, seed: int = 1) -> dict[str, NDArray[np.float32]]:
    """A random input for the network, by name."""
    (entry,) = [i for i in net.graph.input if i.name not in {t.name for t in net.graph.initializer}]
    shape = tuple(d.dim_value for d in entry.type.tensor_type.shape.dim)
    return {entry.name: np.random.default_rng(seed).normal(size=shape).astype(np.float32)}
