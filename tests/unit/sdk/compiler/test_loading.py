"""Sources of models: what is read is the reader's own, and what is no ONNX model is told for what it is."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest

from driver_shim.errors import UnsupportedModel
from sdk.compiler import read_model
from tests.support.models import model, node


def net() -> onnx.ModelProto:
    return model([node("Relu", ["x"], ["y"])], {"x": (np.float32, (2,))}, {"y": np.float32})


def zipped() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("archive/data.pkl", b"")
    return stream.getvalue()


def safetensors() -> bytes:
    header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(4)


FOREIGN = {
    "model.gguf": (b"GGUF\x03\x00\x00\x00", "a GGUF file"),
    "model.tflite": (b"\x1c\x00\x00\x00TFL3", "a TensorFlow Lite model"),
    "model.pt": (zipped(), "a ZIP archive, as PyTorch and Keras write them"),
    "old.pt": (pickle.dumps({"w": 1}, protocol=2), "a pickle, as older PyTorch wrote them"),
    "model.h5": (b"\x89HDF\r\n\x1a\n", "an HDF5 file, as Keras writes them"),
    "model.safetensors": (safetensors(), "a safetensors file: weights without a graph"),
}


def test_a_model_in_memory_is_copied() -> None:
    given = net()
    read = read_model(given)
    given.graph.node[0].op_type = "Tanh"
    assert read.graph.node[0].op_type == "Relu"


@pytest.mark.parametrize("name", FOREIGN)
def test_other_formats_are_named_with_the_way_to_onnx(tmp_path: Path, name: str) -> None:
    data, kind = FOREIGN[name]
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(UnsupportedModel) as caught:
        read_model(path)
    assert kind in caught.value.message and caught.value.remedy is not None and "ONNX" in caught.value.remedy


def test_junk_is_called_nothing_in_particular() -> None:
    with pytest.raises(UnsupportedModel, match="the model is no ONNX model") as caught:
        read_model(b"\xff" * 16)
    assert caught.value.remedy is None


@pytest.mark.parametrize(
    ("files", "what"), [((), "it holds no .onnx file"), (("b.onnx", "a.onnx"), "name one of its files: a.onnx, b.onnx")]
)
def test_a_folder_is_no_model_but_may_hold_some(tmp_path: Path, files: tuple[str, ...], what: str) -> None:
    for name in files:
        (tmp_path / name).touch()
    with pytest.raises(IsADirectoryError) as caught:
        read_model(tmp_path)
    assert what in str(caught.value) and str(tmp_path) in str(caught.value)
