"""Say what a picture shows: a network that reads handwritten digits, whose last layer is trained here.

$ pip install scikit-learn
$ python examples/classify_image.py
"""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_digits

import sdk

FILTERS, CLASSES, SIDE, HIGHEST, HELD_BACK = 48, 10, 8, 16, 400

pictures, labels = load_digits(return_X_y=True)
pictures = (pictures / HIGHEST).astype(np.float32).reshape(-1, 1, SIDE, SIDE)
seen, unseen = slice(None, -HELD_BACK), slice(-HELD_BACK, None)


def network(weights: dict[str, np.ndarray], outputs: dict[str, int]) -> onnx.ModelProto:
    """Filters, the strongest answer of each 2 × 2 dots, and scores if there are weights for them."""
    nodes = [
        helper.make_node("Conv", ["picture", "filters", "thresholds"], ["answers"], name="filter", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["answers"], ["positive"]),
        helper.make_node("MaxPool", ["positive"], ["strongest"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Flatten", ["strongest"], ["features"]),
    ]
    if "last" in weights:
        nodes.append(helper.make_node("Gemm", ["features", "last", "bias"], ["scores"], name="score"))
    graph = helper.make_graph(
        nodes,
        "digits",
        [helper.make_tensor_value_info("picture", TensorProto.FLOAT, ["batch", 1, SIDE, SIDE])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", size]) for name, size in outputs.items()],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def trained(dev: sdk.Device) -> onnx.ModelProto:
    """Random filters; the device computes what they find, and the last layer is fitted to that by least squares."""
    random = np.random.default_rng(0)
    weights = {
        "filters": random.normal(0, 0.5, (FILTERS, 1, 3, 3)).astype(np.float32),
        "thresholds": random.normal(0, 0.2, FILTERS).astype(np.float32),
    }
    size = FILTERS * (SIDE // 2) ** 2
    features = dev.load(network(weights, {"features": size}))(pictures[seen])["features"]
    features = np.hstack([features, np.ones((len(features), 1), np.float32)])
    wanted = np.eye(CLASSES, dtype=np.float32)[labels[seen]]
    fitted = np.linalg.solve(features.T @ features + np.eye(size + 1), features.T @ wanted).astype(np.float32)
    return network({**weights, "last": fitted[:-1], "bias": fitted[-1]}, {"scores": CLASSES})


if __name__ == "__main__":
    with sdk.Device("emulator") as dev:
        model = dev.load(trained(dev))  # or the path of a model of your own
        scores = model(pictures[unseen])["scores"]
        correct = (scores.argmax(axis=1) == labels[unseen]).mean()
        for row in pictures[-1, 0]:
            print("".join(" .:oO@"[int(dot * 5)] * 2 for dot in row))
        print(f"this is a {scores[-1].argmax()}; of {HELD_BACK} pictures {correct:.1%} are recognised")
        assert correct > 0.95
