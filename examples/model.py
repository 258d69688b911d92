"""Run an ONNX model on the device.

$ python examples/model.py
"""

import numpy as np
from onnx import TensorProto, helper, numpy_helper

import sdk

weights = np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3)
graph = helper.make_graph(
    [helper.make_node("MatMul", ["x", "w"], ["scores"]), helper.make_node("Softmax", ["scores"], ["y"], axis=-1)],
    "classifier",
    [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
    [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3])],
    [numpy_helper.from_array(weights, "w")],
)
classifier = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)

with sdk.Device("emulator") as dev:
    model = dev.load(classifier, shapes={"x": [(2, 4)]})  # a path would do; shapes not named compile when first used
    print(*model.inputs, "->", *model.outputs)
    x = np.array([[1, 2, 3, 4], [4, 3, 2, 1]], np.float32)
    outputs = model({"x": x})  # or model(x), or model(x=x)
    e = np.exp(x @ weights)
    np.testing.assert_allclose(outputs["y"], e / e.sum(axis=-1, keepdims=True), rtol=1e-4)
    print(outputs["y"])
