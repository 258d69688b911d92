"""Compiled programs are kept on disk where NPU_CACHE_DIR says so; a miss is explained, damage is mended."""

from __future__ import annotations

import json
import logging
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from sdk.compiler import CompiledProgram, cache, cache_limit, compile_model, read_model
from sdk.compiler.states import StateLayout
from tests.support.decoders import Concatenating
from tests.support.models import model, node
from tests.support.programs import run

F32 = np.float32
LARGE = np.random.default_rng(1).normal(size=(600, 600)).astype(F32)


def net(scale: float = 1.0) -> bytes:
    """One initialiser as it stands, one that is folded with another, an int64 one that says a shape."""
    nodes = [
        node("Mul", ["w", "k"], ["folded"]),
        node("MatMul", ["x", "folded"], ["p"]),
        node("MatMul", ["p", "v"], ["q"]),
        node("Reshape", ["q", "shape"], ["y"]),
    ]
    constants = {"w": LARGE, "v": LARGE, "k": np.array(scale, F32), "shape": np.array([-1, 300])}
    return bytes(model(nodes, {"x": (F32, ("n", 600))}, {"y": F32}, constants).SerializeToString())


SHAPES = {"x": (2, 600)}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NPU_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def entries(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/*.program"))


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    found = [record.getMessage() for record in caplog.records if "compile cache" in record.getMessage()]
    caplog.clear()
    return found


def compiled(source: Any, caplog: pytest.LogCaptureFixture, **more: Any) -> tuple[CompiledProgram, list[str]]:
    with caplog.at_level(logging.INFO, "npu"):
        program = compile_model(source, more.pop("shapes", SHAPES), **more)
    return program, messages(caplog)


def test_without_a_folder_nothing_is_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert compiled(net(), caplog)[1] == []


def test_a_program_comes_from_the_cache_the_second_time(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    first, (why,) = compiled(net(), caplog)
    assert why == "compile cache: the model was never compiled with this cache"
    (path,) = entries(folder)
    second, (found,) = compiled(net(), caplog)
    assert found == f"compile cache: {path} has the program"
    assert second == first
    x = np.ones((2, 600), F32)
    np.testing.assert_array_equal(run(second, {"x": x})["y"], run(first, {"x": x})["y"])


def test_what_the_model_holds_is_not_written_again(folder: Path) -> None:
    program = compile_model(net(), SHAPES)
    (path,) = entries(folder)
    assert LARGE.nbytes < path.stat().st_size < 1.5 * LARGE.nbytes
    assert [constant.key.partition(":")[0] for constant in program.constants] == ["sha256", "initializer"]


def test_equal_programs_give_equal_files(folder: Path) -> None:
    compile_model(net(), SHAPES)
    (path,) = entries(folder)
    first = path.read_bytes()
    path.unlink()
    compile_model(net(), SHAPES)
    assert path.read_bytes() == first


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"shapes": {"x": (4, 600)}}, 'the model was compiled with another shapes {"x": [2, 600]} there, {"x": [4,'),
        ({"target": "other"}, "another target  there, other now"),
        ({"source": net(2.0)}, "the model was never compiled with this cache"),
    ],
)
def test_a_miss_says_what_differs(
    folder: Path, caplog: pytest.LogCaptureFixture, change: dict[str, Any], reason: str
) -> None:
    compile_model(net(), SHAPES)
    _, (why,) = compiled(change.pop("source", net()), caplog, **change)
    assert reason in why


def test_another_compiler_is_a_miss(
    folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    compile_model(net(), SHAPES)
    monkeypatch.setattr(cache, "compiler_digest", lambda: "f" * 64)
    _, (why,) = compiled(net(), caplog)
    assert "another compiler" in why and "ffffffffffffffff now" in why
    assert len(entries(folder)) == 2


def test_a_changed_weight_is_another_model_whatever_the_files_say_of_themselves(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "net.onnx"
    for scale in (1, 2, 1):
        constants = {"w": LARGE * F32(scale)}
        net = model([node("MatMul", ["x", "w"], ["y"])], {"x": (F32, (2, 600))}, {"y": F32}, constants)
        (tmp_path / "weights.bin").unlink(missing_ok=True)  # onnx would append to it
        onnx.save(net, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
        for file in (path, tmp_path / "weights.bin"):
            os.utime(file, (0, 0))
        _, (told,) = compiled(path, caplog)
    assert len(entries(folder)) == 2
    assert told.endswith("has the program")


@pytest.mark.parametrize("place", [0, 5, 18, 40, -1, -700_000])
def test_a_damaged_entry_is_made_anew(folder: Path, caplog: pytest.LogCaptureFixture, place: int) -> None:
    first, _ = compiled(net(), caplog)
    (path,) = entries(folder)
    good = path.read_bytes()
    damaged = bytearray(good)
    damaged[place] ^= 0xFF
    path.write_bytes(damaged)
    again, told = compiled(net(), caplog)
    assert again == first
    # Bytes that only fill up to a cache line mean nothing.
    assert told == [f"compile cache: {path} has the program"] or "made anew" in told[0]
    assert path.read_bytes() == good or "made anew" not in told[0]


@pytest.mark.parametrize("length", [0, 10, 200, 1_000_000])
def test_a_truncated_entry_is_made_anew(folder: Path, caplog: pytest.LogCaptureFixture, length: int) -> None:
    first, _ = compiled(net(), caplog)
    (path,) = entries(folder)
    good = path.read_bytes()
    os.truncate(path, length)
    again, (told,) = compiled(net(), caplog)
    assert again == first and "made anew" in told
    assert path.read_bytes() == good


def test_a_folder_that_cannot_be_written_costs_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    file.touch()
    monkeypatch.setenv("NPU_CACHE_DIR", str(file))
    program, told = compiled(net(), caplog)
    assert program.image
    assert "the program is not kept" in told[-1]


def test_inputs_compiled_for_by_value_are_part_of_the_key(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = model([node("Reshape", ["x", "s"], ["y"])], {"x": (F32, (2, 3)), "s": (np.int64, (2,))}, {"y": F32})
    graph = read_model(source)
    for value, shape in (([3, 2], (3, 2)), ([1, 6], (1, 6)), ([3, 2], (3, 2))):
        program, _ = compiled(graph, caplog, shapes={}, values={"s": np.array(value)})
        assert program.outputs[0].shape == shape
    assert len(entries(folder)) == 2


def test_the_context_that_a_file_beside_the_model_tells_is_part_of_the_key(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "decoder.onnx"
    onnx.save_model(Concatenating().model(), path)
    layout = StateLayout(blocks=4, slots=2, entries=4)
    options: dict[str, Any] = {"shapes": {"input_ids": (1, 2)}, "states": layout}
    for context, told in ((50, "never compiled"), (50, "has the program"), (60, "states")):
        (tmp_path / "config.json").write_text(json.dumps({"n_ctx": context}))
        _, messages = compiled(path, caplog, **options)
        assert told in messages[-1]
    assert len(entries(folder)) == 2


def used_before(path: Path, seconds: float) -> None:
    os.utime(path, (time.time() - seconds,) * 2)


@pytest.fixture
def room_for_two(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(cache_limit, "LIMIT_BYTES", int(2.5 * LARGE.nbytes))
    return folder


def test_what_was_used_longest_ago_goes_for_a_new_entry_and_the_log_says_so(
    room_for_two: Path, caplog: pytest.LogCaptureFixture
) -> None:
    paths: list[Path] = []
    for scale in (1.0, 2.0):
        compile_model(net(scale), SHAPES)
        (path,) = set(entries(room_for_two)) - set(paths)
        paths.append(path)
        used_before(path, 100 - len(paths))
    compile_model(net(1.0), SHAPES)  # a use: it is the newer one now
    with caplog.at_level(logging.DEBUG, "npu"):
        compile_model(net(3.0), SHAPES)
    told = [each for each in messages(caplog) if "is removed" in each]
    assert len(told) == 1 and str(paths[1]) in told[0]
    left = entries(room_for_two)
    assert paths[0] in left and len(left) == 2
    assert not paths[1].parent.exists()


def test_an_entry_that_is_larger_than_all_that_may_be_kept_is_not_kept(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_limit, "LIMIT_BYTES", LARGE.nbytes // 2)
    program = compile_model(net(), SHAPES)
    assert program.image and entries(folder) == []


def test_a_program_whose_entry_went_can_still_be_read(room_for_two: Path) -> None:
    compile_model(net(1.0), SHAPES)
    mapped = compile_model(net(1.0), SHAPES)
    expected = [constant.array.copy() for constant in mapped.constants]
    for scale in (2.0, 3.0, 4.0):
        compile_model(net(scale), SHAPES)
    assert len(entries(room_for_two)) == 2
    assert all(np.array_equal(constant.array, kept) for constant, kept in zip(mapped.constants, expected, strict=True))


def test_what_an_ended_writer_left_behind_goes_and_that_of_a_living_one_stays(folder: Path) -> None:
    compile_model(net(1.0), SHAPES)
    place = entries(folder)[0].parent
    old, new, foreign = (place / name for name in (".old.part", ".new.part", ".keep"))
    for path in (old, new, foreign):
        path.write_bytes(b"half")
    for path in (old, foreign):
        used_before(path, 2 * cache_limit.LEFT_BEHIND_S)
    compile_model(net(2.0), SHAPES)
    assert (old.exists(), new.exists(), foreign.exists()) == (False, True, True)


def test_progress_is_told_and_may_end_the_compilation() -> None:
    told: list[tuple[int, int]] = []
    compile_model(net(), SHAPES, progress=lambda done, of: told.append((done, of)))
    assert told == [(i, 4) for i in range(4)]

    def cancel(done: int, of: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compile_model(net(), SHAPES, progress=cancel)


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo], ids=["folder", "pipe"])
def test_an_entry_that_is_no_file_is_no_obstacle(folder: Path, caplog: pytest.LogCaptureFixture, make: Any) -> None:
    first, _ = compiled(net(), caplog)
    (path,) = entries(folder)
    path.unlink()
    make(path)
    again, told = compiled(net(), caplog)
    assert again == first and "made anew" in told[0]
