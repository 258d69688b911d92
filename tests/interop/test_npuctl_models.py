"""npuctl runs models and checks them against onnxruntime, which never enters the tool's or the device's processes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from tests.support.npuctl import Npuctl


@pytest.fixture
def npuctl(tmp_path: Path) -> Npuctl:
    return Npuctl(tmp_path)


def save_product(path: Path, kind: int = TensorProto.FLOAT) -> Path:
    """y = x · w, 2 × 3 times 3 × 2."""
    weight = helper.make_tensor("w", kind, [3, 2], [1, 2, 3, 4, 5, 6])
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y/out"])],
        "product",
        [helper.make_tensor_value_info("x", kind, [2, 3])],
        [helper.make_tensor_value_info("y/out", kind, [2, 2])],
        [weight],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_a_model_runs_on_given_inputs_and_its_outputs_are_written(npuctl: Npuctl, tmp_path: Path) -> None:
    model = save_product(tmp_path / "product.onnx")
    np.save(tmp_path / "x.npy", np.array([[1, 0, 0], [0, 1, 1]], np.float32))
    arguments = ["-i", f"x={tmp_path / 'x.npy'}", "-o", str(tmp_path / "out"), "--verify"]
    (device,) = npuctl.document("run", str(model), *arguments)["devices"]
    assert device["seeded_inputs"] is False
    assert device["verification"]["agrees"] is True
    assert np.load(tmp_path / "out" / "y_out.npy").tolist() == [[1, 2], [8, 10]]
    dtypes = json.loads((tmp_path / "out" / "dtypes.json").read_text())
    assert dtypes == {"y_out.npy": {"output": "y/out", "dtype": "float32"}}


def test_without_inputs_it_says_that_it_makes_seeded_ones(npuctl: Npuctl, tmp_path: Path) -> None:
    done = npuctl("run", str(save_product(tmp_path / "product.onnx")), "--verify", "--repeat", "3")
    assert done.returncode == 0, done.stderr
    assert "no input given; using arrays from seed 1" in done.stderr
    assert "largest difference" in done.stdout


def test_a_run_that_fails_on_made_up_inputs_says_that_they_were_and_how_to_give_real_ones(
    npuctl: Npuctl, tmp_path: Path
) -> None:
    nodes = [helper.make_node("Gather", ["table", "ids"], ["y"])]
    ids, y = (helper.make_tensor_value_info(n, k, [16]) for n, k in (("ids", TensorProto.INT64), ("y", 1)))
    graph = helper.make_graph(nodes, "lookup", [ids], [y], [helper.make_tensor("table", 1, [1], [7])])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "g.onnx")
    done = npuctl("run", str(tmp_path / "g.onnx"))
    assert done.returncode == 1, done.stderr
    assert "index-out-of-range" in done.stderr
    assert "the inputs were made up at random" in done.stderr and "-i NAME=FILE.npy" in done.stderr
    assert max(map(len, done.stderr.splitlines())) <= 80
    np.save(tmp_path / "ids.npy", np.full(16, 1))
    given = npuctl("run", str(tmp_path / "g.onnx"), "-i", f"ids={tmp_path / 'ids.npy'}")
    assert given.returncode == 1 and "at random" not in given.stderr


def test_a_difference_that_may_be_by_right_is_named(npuctl: Npuctl, tmp_path: Path) -> None:
    cast = helper.make_node("Cast", ["x"], ["y"], to=TensorProto.INT8)
    x, y = (helper.make_tensor_value_info(n, k, [1]) for n, k in (("x", TensorProto.FLOAT), ("y", TensorProto.INT8)))
    graph = helper.make_graph([cast], "cast", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "cast.onnx")
    np.save(tmp_path / "x.npy", np.array([300], np.float32))
    done = npuctl("run", str(tmp_path / "cast.onnx"), "-i", f"x={tmp_path / 'x.npy'}", "--verify")
    assert done.returncode == 5
    assert "docs/numerics.md: Cast: floats that do not fit" in done.stdout


def test_bfloat16_inputs_and_outputs_travel_as_uint16(npuctl: Npuctl, tmp_path: Path) -> None:
    model = save_product(tmp_path / "product.onnx", TensorProto.BFLOAT16)
    x = np.array([[1, 0, 0], [0, 1, 1]], ml_dtypes.bfloat16)
    np.save(tmp_path / "x.npy", x.view(np.uint16))
    done = npuctl("run", str(model), "-i", f"x={tmp_path / 'x.npy'}:bf16", "-o", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    raw = np.load(tmp_path / "out" / "y_out.npy")
    assert raw.view(ml_dtypes.bfloat16).astype(np.float32).tolist() == [[1, 2], [8, 10]]


@pytest.mark.parametrize(
    ("inputs", "code"),
    [
        (["-i", "x"], 2),
        (["-i", "z=a.npy"], 2),
        (["-i", "x=missing.npy"], 1),
    ],
)
def test_wrong_inputs_are_refused(npuctl: Npuctl, tmp_path: Path, inputs: list[str], code: int) -> None:
    done = npuctl("run", str(save_product(tmp_path / "product.onnx")), *inputs)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((2, 3), np.float64),
        np.zeros((2, 4), np.float32),
        np.zeros((2, 3), ">f4"),
        np.zeros((0, 3), np.float32),
        np.float32(1),
    ],
)
def test_an_array_that_does_not_fit_is_named_and_is_no_internal_error(
    npuctl: Npuctl, tmp_path: Path, wrong: NDArray[Any]
) -> None:
    np.save(tmp_path / "x.npy", wrong)
    done = npuctl("run", str(save_product(tmp_path / "product.onnx")), "-i", f"x={tmp_path / 'x.npy'}")
    assert done.returncode == 1, done.stderr
    assert "x.npy" in done.stderr
    assert "internal" not in done.stderr


def test_an_archive_is_no_input(npuctl: Npuctl, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=np.zeros((2, 3), np.float32))
    done = npuctl("run", str(save_product(tmp_path / "product.onnx")), "-i", f"x={tmp_path / 'x.npz'}")
    assert done.returncode == 1, done.stderr
    assert "archive" in done.stderr


def test_outputs_that_cannot_be_written_fail_with_1(npuctl: Npuctl, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    model = save_product(tmp_path / "product.onnx")
    assert npuctl("run", str(model), "-o", str(tmp_path / "file" / "out")).returncode == 1


def test_a_file_that_is_no_model_fails_with_1(npuctl: Npuctl, tmp_path: Path) -> None:
    bad = tmp_path / "bad.onnx"
    bad.write_bytes(b"\xff" * 64)
    document = npuctl.document("run", str(bad), code=1)
    assert document["errors"][0]["code"] == "unsupported-model"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A few files of different kinds, some of which no model is asked about."""
    where = tmp_path / "files"
    (where / ".hidden").mkdir(parents=True)
    (where / ".hidden" / "config.py").write_text("import os\n" * 20)
    (where / "program.py").write_text("import sys\n\n\ndef main() -> None:\n    print(sys.argv)\n" * 4)
    (where / "page.html").write_text("<!DOCTYPE html><html><head><title>a</title></head><body><p>b</p></body></html>")
    (where / "table.csv").write_text("name,size\n" + "".join(f"row{n},{n * n}\n" for n in range(40)))
    (where / "random.bin").write_bytes(np.random.default_rng(5).bytes(5000))
    (where / "empty").write_bytes(b"")
    (where / "short").write_bytes(b"abc")
    (where / "mounts").symlink_to("/proc/self/mounts")  # cannot be read from its end
    return where


@pytest.mark.parametrize("kernels", ["numpy", "golden"])
def test_the_demo_classifies_files_and_every_answer_agrees(npuctl: Npuctl, folder: Path, kernels: str) -> None:
    (device,) = npuctl.document("demo", str(folder), "-d", f"emulator:generic?kernels={kernels}")["devices"]
    labels = {Path(file["path"]).name: file["label"] for file in device["files"]}
    assert set(labels) == {"program.py", "page.html", "table.csv", "random.bin"}
    assert (labels["program.py"], labels["page.html"], labels["table.csv"]) == ("python", "html", "csv")
    assert all(file["agrees"] and file["largest_difference"] <= 1e-4 for file in device["files"])
    assert {Path(one["path"]).name: one["reason"] for one in device["skipped"]} == {
        "empty": "empty",
        "short": "too little content (txt)",
        "mounts": "cannot be read (Invalid argument)",
    }
    assert device["activity"]["exec_commands"] == 1
    assert device["device_processes"] >= 2


def test_the_demo_prints_a_table_and_what_the_device_did(npuctl: Npuctl, folder: Path) -> None:
    done = npuctl("demo", str(folder))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(" agrees") == 4
    assert "skipped " in done.stdout and "short: too little content" in done.stdout
    assert "busy ticks" in done.stdout
    assert "All 4 answers agree" in done.stdout.splitlines()[-2]
    assert "run MODEL.onnx --verify" in done.stdout.splitlines()[-1]


def test_a_demo_of_nothing_fails(npuctl: Npuctl, folder: Path) -> None:
    done = npuctl("demo", str(folder / "empty"))
    assert done.returncode == 1
    assert "none of the files" in done.stderr
