"""Move a program from onnxruntime to the device: two lines of it change.

$ python examples/port_from_onnxruntime.py
"""

import tempfile

import numpy as np
from onnx import TensorProto, helper, numpy_helper, save

import sdk as ort  # 1: was "import onnxruntime as ort"


def save_classifier(path: str) -> None:
    """A network that somebody exported to a file."""
    weights = np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["scores"]), helper.make_node("Softmax", ["scores"], ["y"], axis=-1)],
        "classifier",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(weights, "w")],
    )
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


with tempfile.NamedTemporaryFile(suffix=".onnx") as file:
    save_classifier(file.name)

    options = ort.SessionOptions()
    options.intra_op_num_threads = 2  # has no effect on a device, so it is taken; what would have one is refused
    session = ort.InferenceSession(
        file.name,
        options,
        providers=[("NpuExecutionProvider", {"device": "emulator"})],  # 2: was ["CPUExecutionProvider"]
    )
    name = session.get_inputs()[0].name
    x = np.array([[1, 2, 3, 4], [4, 3, 2, 1]], np.float32)
    (y,) = session.run(None, {name: x})

print(session.get_providers()[0], y)
np.testing.assert_allclose(y.sum(axis=1), 1, rtol=1e-5)
