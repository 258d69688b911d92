"""`sdk.onnx_backend` does what ONNX's interface says, on one device per address, which ends with the process."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx.backend.base import Backend, BackendRep

from sdk import Closed, UnsupportedModel, onnx_backend
from sdk.onnx_backend import NpuBackend
from tests.support.children import run, session_ends
from tests.support.models import model, node

EMULATOR = "emulator:?core=none"
X: NDArray[Any] = np.array([[-1, 2, -3]], np.float32)


@pytest.fixture(scope="module", autouse=True)
def nothing_kept() -> Iterator[None]:
    """The device that these tests share would else be kept until their process ends."""
    yield
    NpuBackend.device(EMULATOR).close()


@pytest.fixture
def backend() -> Any:
    """The backend on an emulator without a management core, which takes long to start."""
    return type("QuickBackend", (NpuBackend,), {"addresses": {"CPU": EMULATOR, "NPU": EMULATOR}})


def relu() -> onnx.ModelProto:
    return model([node("Relu", ["x"], ["y"]), node("Neg", ["x"], ["z"])],
                 {"x": (np.float32, (1, 3))}, {"z": np.float32, "y": np.float32})  # fmt: skip


def test_it_is_a_backend_of_onnx() -> None:
    assert issubclass(NpuBackend, Backend) and issubclass(onnx_backend.NpuBackendRep, BackendRep)
    for name in ("supports_device", "is_compatible", "prepare", "run_model", "run_node"):
        assert getattr(onnx_backend, name) == getattr(NpuBackend, name)


@pytest.mark.parametrize(
    ("device", "supported"),
    [
        ("CPU", True), ("NPU", True), ("CPU:0", True), ("emulator:generic", True), ("pci:0000:03:00.0", True),
        ("CUDA", False), ("CPU:1", False), ("usb:1234", False), ("sysfs:0000:03:00.0", False), ("", False),
    ],
)  # fmt: skip
def test_it_supports_the_devices_that_run_models(device: str, supported: bool) -> None:
    assert onnx_backend.supports_device(device) is supported


def test_a_device_that_is_not_supported_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="'CUDA' is not supported; there are 'CPU', 'NPU'"):
        onnx_backend.prepare(relu(), "CUDA")


def test_outputs_come_in_the_models_order_and_by_name(backend: Any) -> None:
    prepared = backend.prepare(relu())
    for outputs in (prepared.run([X]), prepared.run({"x": X})):
        np.testing.assert_array_equal(outputs[0], -X)
        np.testing.assert_array_equal(outputs["z"], -X)
        np.testing.assert_array_equal(outputs.y, np.maximum(X, 0))
        assert isinstance(outputs, tuple)


@pytest.mark.parametrize("kind", ["proto", "bytes", "path"])
def test_a_model_runs_once_from_whatever_holds_it(kind: str, backend: Any, tmp_path: Path) -> None:
    path = tmp_path / "relu.onnx"
    onnx.save(relu(), path)
    source = {"proto": relu(), "bytes": path.read_bytes(), "path": path}[kind]
    np.testing.assert_array_equal(backend.run_model(source, [X], device="NPU").y, np.maximum(X, 0))


def test_shapes_are_compiled_when_prepared(backend: Any, caplog: pytest.LogCaptureFixture) -> None:
    dynamic = model([node("Relu", ["x"], ["y"])], {"x": (np.float32, ("n", 3))}, {"y": np.float32})
    assert backend.prepare(dynamic, shapes={"x": [(1, 3)]}).run([X]).y.shape == (1, 3)
    assert not caplog.records  # no warning of a shape that was compiled late


@pytest.mark.parametrize("given", [{"outputs_info": [(np.float32, (2, 2))]}, {"opset_version": 13}, {}])
def test_a_node_runs_by_itself(given: dict[str, Any], backend: Any) -> None:
    left, right = np.ones((2, 3), np.float32), np.full((3, 2), 2, np.float32)
    outputs = backend.run_node(node("MatMul", ["a", "b"], ["c"]), [left, right], **given)
    np.testing.assert_array_equal(outputs.c, np.full((2, 2), 6, np.float32))


def test_a_node_without_some_of_its_inputs_takes_arrays_for_the_others(backend: Any) -> None:
    clip = node("Clip", ["x", "", "high"], ["y"])
    np.testing.assert_array_equal(backend.run_node(clip, [X, np.float32(1)]).y, [[-1, 1, -3]])
    twice = node("Add", ["x", "x"], ["y"])
    np.testing.assert_array_equal(backend.run_node(twice, [X]).y, X + X)
    with pytest.raises(TypeError, match="1 arrays given; the node reads 2: x, high"):
        backend.run_node(clip, [X])


def test_what_the_device_cannot_run_is_incompatible_and_raises_when_prepared(backend: Any) -> None:
    unsupported = model([node("Multinomial", ["x"], ["y"])], {"x": (np.float32, (2, 2))}, {"y": np.float32})
    assert backend.is_compatible(relu()) and not backend.is_compatible(unsupported)
    with pytest.raises(UnsupportedModel, match="Multinomial"):
        backend.prepare(unsupported)


@pytest.mark.parametrize("call", ["prepare", "run"])
def test_an_unknown_argument_is_refused_by_name(call: str, backend: Any) -> None:
    with pytest.raises(TypeError, match="'optimise' is unknown"):
        if call == "prepare":
            backend.prepare(relu(), optimise=True)
        else:
            backend.prepare(relu()).run([X], optimise=True)


def test_an_address_has_one_device_which_is_replaced_once_it_is_closed(backend: Any) -> None:
    first = backend.device("CPU")
    assert backend.device("NPU") is first and backend.device(EMULATOR) is first
    prepared = backend.prepare(relu())
    first.close()
    with pytest.raises(Closed):
        prepared.run([X])
    assert backend.device("CPU") is not first
    np.testing.assert_array_equal(backend.run_model(relu(), [X]).z, -X)


KEPT = """
import json, os, sys
import numpy as np
import onnx
import sdk.onnx_backend as backend

x = np.ones((2, 2), np.float32)
add = onnx.helper.make_node("Add", ["a", "b"], ["c"])
backend.run_node(add, [x, x])
pids = [backend.NpuBackend.device("CPU").info.pid]
if (child := os.fork()) == 0:
    backend.run_node(add, [x, x])
    with open(sys.argv[1], "w") as file:
        file.write(json.dumps(backend.NpuBackend.device("CPU").info.pid))
    sys.exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
backend.run_node(add, [x, x])
print(json.dumps(pids + [backend.NpuBackend.device("CPU").info.pid, backend.NpuBackend.device("CPU").info.emulated]))
"""


def test_the_device_is_kept_until_the_process_ends_and_a_forked_child_has_its_own(tmp_path: Path) -> None:
    first, last, emulated = json.loads(run(KEPT, str(tmp_path / "child")))
    childs = json.loads((tmp_path / "child").read_text())
    assert first == last != childs and emulated
    assert session_ends(first) and session_ends(childs)
