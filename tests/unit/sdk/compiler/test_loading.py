"""Sources of models: what is read is the reader's own, and what is no ONNX model is told for what it is."""

from __future__ import annotations

import io
import json
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from driver_shim.errors import UnsupportedModel
from sdk.compiler import compile_model, read_model
from sdk.compiler.graph import Graph
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
    "pointer.onnx": (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d\n", "a Git LFS pointer"),
    "page.onnx": (b"<!DOCTYPE html><html>404</html>", "an HTML page"),
    "model.safetensors": (safetensors(), "a safetensors file: weights without a graph"),
}


def weighted(weights: NDArray[Any]) -> onnx.ModelProto:
    inputs = {"x": (np.float32, (2, weights.shape[0]))}
    return model([node("MatMul", ["x", "w"], ["y"])], inputs, {"y": np.float32}, {"w": weights})


WEIGHTS = np.arange(64 * 32, dtype=np.float32).reshape(64, 32)


def weights_of(graph: Graph) -> NDArray[Any]:
    assert not graph.problems
    return graph.initializers["w"]


def test_what_a_caller_changes_in_a_model_later_does_not_show() -> None:
    given = weighted(WEIGHTS)
    read = read_model(given)
    given.graph.node[0].op_type = "Add"
    given.graph.initializer[0].raw_data = bytes(WEIGHTS.nbytes)
    assert read.nodes[0].op == "MatMul"
    np.testing.assert_array_equal(weights_of(read), WEIGHTS)


def test_weights_stay_in_the_file_and_are_read_only(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(weighted(WEIGHTS).SerializeToString())
    array = weights_of(read_model(path))
    np.testing.assert_array_equal(array, WEIGHTS)
    assert not array.flags.owndata and not array.flags.writeable


def test_a_file_that_was_written_to_is_not_compiled_from(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(weighted(WEIGHTS).SerializeToString())
    read = read_model(path)
    expected = compile_model(read)
    with path.open("r+b") as stream:
        stream.seek(-8, os.SEEK_END)
        stream.write(b"12345678")
    os.utime(path, ns=(0, 0))
    with pytest.raises(UnsupportedModel, match="was changed after the model was loaded"):
        compile_model(read)
    assert expected.image


def test_a_file_that_was_replaced_or_deleted_still_serves(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(weighted(WEIGHTS).SerializeToString())
    read = read_model(path)
    expected = compile_model(read)
    other = tmp_path / "other.onnx"
    other.write_bytes(weighted(WEIGHTS + 1).SerializeToString())
    other.rename(path)
    assert compile_model(read) == expected
    path.unlink()
    assert compile_model(read) == expected


def external(folder: Path, location: str = "data/weights.bin", **more: int) -> Path:
    """A model whose weights lie in another file, which is not written."""
    proto = weighted(WEIGHTS)
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in {"location": location, **more}.items():
        tensor.external_data.add(key=key, value=str(value))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "net.onnx"
    path.write_bytes(proto.SerializeToString())
    return path


def test_external_data_are_found_by_offset_and_length(tmp_path: Path) -> None:
    path = external(tmp_path, offset=3, length=WEIGHTS.nbytes)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "weights.bin").write_bytes(b"abc" + WEIGHTS.tobytes() + b"more")
    array = weights_of(read_model(path))
    np.testing.assert_array_equal(array, WEIGHTS)
    assert not array.flags.owndata


@pytest.mark.parametrize("link", ["symbolic", "hard"])
def test_a_download_cache_may_link_model_and_data_elsewhere(tmp_path: Path, link: str) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "main"
    blobs.mkdir()
    external(blobs, "net.onnx_data").rename(blobs / "aaaa")
    (blobs / "bbbb").write_bytes(WEIGHTS.tobytes())
    snapshot.mkdir(parents=True)
    for name, blob in (("net.onnx", "aaaa"), ("net.onnx_data", "bbbb")):
        if link == "hard":
            os.link(blobs / blob, snapshot / name)
        else:
            (snapshot / name).symlink_to(os.path.relpath(blobs / blob, snapshot))
    np.testing.assert_array_equal(weights_of(read_model(snapshot / "net.onnx")), WEIGHTS)


@pytest.mark.parametrize("location", ["../weights.bin", "data/../../weights.bin", "", "{absolute}"])
def test_a_location_that_leaves_the_models_folder_is_refused(tmp_path: Path, location: str) -> None:
    outside = tmp_path / "weights.bin"
    outside.write_bytes(WEIGHTS.tobytes())
    graph = read_model(external(tmp_path / "inside", location.format(absolute=outside)))
    assert [problem.subject.name for problem in graph.problems] == ["w"]
    assert "no path inside the model's folder" in graph.problems[0].reason


@pytest.mark.parametrize(
    ("data", "more", "reason"),
    [
        (None, {}, "cannot be read: No such file"),
        (WEIGHTS.tobytes()[:-1], {}, "its data end at byte 8192, and the file 'data/weights.bin' at byte 8191"),
        (WEIGHTS.tobytes(), {"offset": 4}, "its data end at byte 8196"),
        (WEIGHTS.tobytes(), {"offset": -4}, "the offset '-4'"),
        (WEIGHTS.tobytes(), {"length": 8188}, "8188 bytes of data for a tensor of 8192"),
        (b"", {}, "at byte 0"),
    ],
)
def test_external_data_that_do_not_go_with_the_tensor_are_told(
    tmp_path: Path, data: bytes | None, more: dict[str, int], reason: str
) -> None:
    path = external(tmp_path, "data/weights.bin", **more)
    if data is not None:
        (tmp_path / "data").mkdir()
        (tmp_path / "data" / "weights.bin").write_bytes(data)
    (problem,) = read_model(path).problems
    assert reason in problem.reason and "damaged" not in problem.reason


def test_external_data_in_no_regular_file_are_refused(tmp_path: Path) -> None:
    path = external(tmp_path, "endless")
    (tmp_path / "endless").symlink_to("/dev/zero")
    (problem,) = read_model(path).problems
    assert "no regular file" in problem.reason


def test_a_file_that_may_never_end_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "endless.onnx").symlink_to("/dev/zero")
    with pytest.raises(UnsupportedModel, match=r"endless.onnx' is neither a regular file nor a pipe"):
        read_model(tmp_path / "endless.onnx")


def test_a_model_in_memory_has_no_folder_for_external_data(tmp_path: Path) -> None:
    path = external(tmp_path)
    for source in (path.read_bytes(), onnx.load(str(path), load_external_data=False)):
        (problem,) = read_model(source).problems
        assert "give the model's path" in problem.reason


READ_ALL = """
import resource, sys
import numpy as np
from sdk.compiler import read_model
read_model(sys.argv[1])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
graph = read_model(sys.argv[2])
assert not graph.problems
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


@pytest.mark.parametrize("external_data", [False, True])
def test_reading_a_model_takes_no_memory_for_its_weights(tmp_path: Path, external_data: bool) -> None:
    path, small = tmp_path / "net.onnx", tmp_path / "small.onnx"
    small.write_bytes(net().SerializeToString())
    weights = np.zeros((4096, 2048), np.float32)
    onnx.save_model(weighted(weights), str(path), save_as_external_data=external_data, location="weights.bin")
    done = subprocess.run(
        [sys.executable, "-c", READ_ALL, small, path], capture_output=True, text=True, timeout=60, check=True
    )
    assert int(done.stdout) < weights.nbytes / 4


@pytest.mark.parametrize("name", FOREIGN)
def test_other_formats_are_named_with_what_to_do(tmp_path: Path, name: str) -> None:
    data, kind = FOREIGN[name]
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(UnsupportedModel) as caught:
        read_model(path)
    assert kind in caught.value.message and caught.value.remedy is not None


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
