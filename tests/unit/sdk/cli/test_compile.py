"""`npuctl compile` says what a model takes and what the device would not run, without any device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from emulator.model.profile import profile_names
from sdk.cli.chip_table import time_text
from sdk.compiler.compile import HANDLED
from tests.support.models import model, node
from tests.support.npuctl import Npuctl
from tests.support.profiles import profile_file

F32 = np.float32


@pytest.fixture
def npuctl(tmp_path: Path) -> Npuctl:
    return Npuctl(tmp_path)


def save(folder: Path, op: str, shape: Any = (2, 3, 3)) -> str:
    nodes = [node("Relu", ["x"], ["a"]), node(op, ["a"], ["b"]), node("Neg", ["a"], ["y"])]
    onnx.save(model(nodes, {"x": (F32, shape)}, {"y": F32}), folder / "net.onnx")
    return str(folder / "net.onnx")


def unknown_operator() -> str:
    """An operator that exists and has no lowering: which one that is may change."""
    return next(op for op in ("Det", "Unique", "StringNormalizer") if op not in HANDLED)


def test_a_model_that_the_device_runs_is_planned_and_estimated(npuctl: Npuctl, tmp_path: Path) -> None:
    done = npuctl("compile", save(tmp_path, "Exp"))
    assert done.returncode == 0, done.stderr
    assert "the device runs all 3 nodes" in done.stdout
    assert "device memory" in done.stdout and "ticks" in done.stdout
    found = npuctl.document("compile", save(tmp_path, "Exp"))["compile"]
    assert found["plan"]["peak_bytes"] >= 2 * 72
    assert found["estimate"]["profile"] == "generic"
    assert [entry["where"] for entry in found["nodes"]] == ["device"] * 3


def test_check_says_what_would_be_refused_and_ends_with_1(npuctl: Npuctl, tmp_path: Path) -> None:
    op = unknown_operator()
    done = npuctl("compile", "--check", save(tmp_path, op))
    assert done.returncode == 1
    assert f"1 x {op}: the operator is not supported (unsupported-operator)" in done.stdout
    assert "the device does not run 1 of 3 nodes" in done.stderr and "--fallback cpu" in done.stderr


def test_check_with_fall_back_says_what_would_run_on_the_host(npuctl: Npuctl, tmp_path: Path) -> None:
    done = npuctl("compile", "--check", "--fallback", "cpu", save(tmp_path, unknown_operator()))
    assert done.returncode == 0, done.stderr
    assert "the device runs 2 of 3 nodes; not:" in done.stdout


def test_open_dimensions_are_taken_for_1_unless_given(npuctl: Npuctl, tmp_path: Path) -> None:
    path = save(tmp_path, "Exp", ("n", 3))
    done = npuctl("compile", path)
    assert "open dimensions are taken for 1: x: float32[n, 3]" in done.stderr
    small, large = (
        npuctl.document("compile", path, *options)["compile"]["plan"]["operands_bytes"]
        for options in ([], ["--shape", "x=100,3"])
    )
    assert large > small


@pytest.mark.parametrize(
    ("options", "answer"),
    [
        (["--shape", "x=a"], "write NAME=1,3,224,224"),
        (["--shape", "z=1"], "the model has no input 'z'"),
        (["--shape", "x=7"], "(7,) does not go with it"),
        (["--target", "none"], "unknown profile 'none'"),
        (["--target", "generic,none"], "unknown profile 'none'"),
        (["--target", "generic,"], "unknown profile ''"),
        (["--target", "none.toml"], "none.toml"),
    ],
)
def test_wrong_options_are_usage_errors(npuctl: Npuctl, tmp_path: Path, options: list[str], answer: str) -> None:
    done = npuctl("compile", save(tmp_path, "Exp"), *options)
    assert (done.returncode, answer in done.stderr) == (2, True), done.stderr


def test_a_file_of_ones_own_is_a_target_and_a_bad_one_is_refused_line_by_line(npuctl: Npuctl, tmp_path: Path) -> None:
    found = npuctl.document("compile", save(tmp_path, "Exp"), "--target", str(profile_file(tmp_path)))["compile"]
    assert found["estimate"]["profile"] == "small"
    bad = profile_file(tmp_path, engines=0)
    done = npuctl("compile", save(tmp_path, "Exp"), "--target", str(bad))
    assert done.returncode == 2 and "engines is 0; it must be" in done.stderr, done.stderr


def product(folder: Path) -> str:
    net = model(
        [node("MatMul", ["x", "w"], ["y"])], {"x": (F32, (64, 256))}, {"y": F32}, {"w": np.ones((256, 64), F32)}
    )
    onnx.save(net, folder / "product.onnx")
    return str(folder / "product.onnx")


def test_several_chips_are_shown_side_by_side_in_80_columns(npuctl: Npuctl, tmp_path: Path) -> None:
    chips = ",".join(profile_names())
    done = npuctl("compile", product(tmp_path), "--target", chips)
    assert done.returncode == 0, done.stderr
    assert max(map(len, done.stdout.splitlines())) <= 80
    rows = {line.split()[0]: line for line in done.stdout.splitlines() if line.startswith(profile_names())}
    assert rows.keys() >= set(profile_names())
    assert "hanguang800 has no rate for fp32; it has: int8; node 'make_y'" in done.stdout
    assert "mlu370-x8: bounds only, for lack of its tick_hz, engines, tiles" in done.stdout
    found = npuctl.document("compile", product(tmp_path), "--target", chips)["compile"]
    assert [chip["target"] for chip in found["chips"]] == list(profile_names())
    by_name = {chip["target"]: chip for chip in found["chips"]}
    assert by_name["hanguang800"]["estimate"] is None and "no rate" in by_name["hanguang800"]["refusal"]
    told = by_name["h20"]["estimate"]
    assert told["device_model_latency_ticks"] >= told["device_model_bound_ticks"] > 0
    assert told["device_model_latency_seconds"] == pytest.approx(told["device_model_latency_ticks"] / 1_853_000_000)


def test_one_chip_that_lacks_a_type_ends_with_1_as_what_the_device_cannot_run(npuctl: Npuctl, tmp_path: Path) -> None:
    done = npuctl("compile", product(tmp_path), "--target", "hailo8")
    assert done.returncode == 1
    assert "1 x MatMul: hailo8 has no rate for fp32; it has: int8 (unsupported-type)" in done.stdout


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.00 us"),
        (1.27e-6, "1.27 us"),
        (42e-6, "42.0 us"),
        (5e-4, "500 us"),
        (0.0123, "12.3 ms"),
        (3700, "3,700 s"),
    ],
)
def test_times_have_three_digits_in_the_unit_that_suits(seconds: float, text: str) -> None:
    assert time_text(seconds) == text


def test_shapes_that_depend_on_an_inputs_value_are_told(npuctl: Npuctl, tmp_path: Path) -> None:
    net = model([node("Reshape", ["x", "s"], ["y"])], {"x": (F32, (2, 3)), "s": (np.int64, (2,))}, {"y": F32})
    onnx.save(net, tmp_path / "net.onnx")
    done = npuctl("compile", "--check", str(tmp_path / "net.onnx"))
    assert (done.returncode, "once for each value of 's'" in done.stdout) == (0, True)


def test_a_model_that_is_none_is_refused(npuctl: Npuctl, tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(b"GGUF1234")
    done = npuctl("compile", "--check", str(tmp_path / "net.onnx"))
    assert done.returncode == 1 and "GGUF" in done.stderr
