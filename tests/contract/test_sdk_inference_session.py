"""`sdk.InferenceSession`: programs written to onnxruntime run; what of it cannot be had is refused by name."""

from __future__ import annotations

import gc
import json
import os
import pickle
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

import sdk
from sdk import InferenceSession, SessionOptions
from sdk.inference_session import PROVIDER, NodeArg
from tests.support.children import ends, run
from tests.support.models import model, node
from tests.support.needs import module_of_extra
from tests.support.rigs import in_process_rig

EMULATOR = "emulator:?kernels=numpy&core=none"
"""One that no other test opens: sessions share the device of an address with whatever has it open."""
X: NDArray[Any] = np.array([[-1, 2, -3]], np.float32)


def net() -> onnx.ModelProto:
    made = model(
        [
            node("Relu", ["x"], ["y"]),
            node("Add", ["x", "w"], ["s"]),
            node("Cast", ["s"], ["z"], to=onnx.TensorProto.INT32),
        ],
        {"x": (np.float32, ("batch", 3))},
        {"z": np.int32, "y": np.float32},
        {"w": np.array([10, 20, 30], np.float32)},
    )
    made.producer_name, made.model_version, made.doc_string, made.domain = "somebody", 7, "a net", "org.example"
    made.graph.doc_string = "two outputs"
    onnx.helper.set_model_props(made, {"author": "us"})
    return made


@pytest.fixture
def device() -> Iterator[sdk.Device]:
    with in_process_rig() as rig, rig.device() as opened:
        yield opened


@pytest.fixture
def session(device: sdk.Device) -> Iterator[InferenceSession]:
    with InferenceSession(net(), device=device) as made:
        yield made


def test_outputs_come_as_a_list_in_the_order_asked_for(session: InferenceSession) -> None:
    z, y = session.run(None, {"x": X})
    np.testing.assert_array_equal(z, np.array([[9, 22, 27]], np.int32))
    np.testing.assert_array_equal(y, [[0, 2, 0]])
    (again,) = session.run(["y"], {"x": X})
    np.testing.assert_array_equal(again, y)
    assert [array.dtype for array in session.run(["y", "z"], {"x": X})] == [np.float32, np.int32]
    assert len(session.run([], {"x": X})) == 2


def test_lists_and_numbers_take_the_declared_type(session: InferenceSession) -> None:
    np.testing.assert_array_equal(session.run(["y"], {"x": [[1, -2, 3]]})[0], [[1, 0, 3]])


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ((["q"], {"x": X}), ValueError, "output 'q' is unknown; the model gives: z, y"),
        ((None, {"q": X}), TypeError, "input 'q' is unknown"),
        ((None, {}), TypeError, "input 'x' is missing"),
        ((None, {"x": X.astype(np.float64)}), TypeError, "expected float32, got float64"),
        ((None, {"x": X[0]}), ValueError, "expected shape"),
        ((None, [X]), TypeError, "input_feed takes arrays by input name, got list"),
        ((None, {"x": X}, "options"), TypeError, "run_options are onnxruntime's"),
    ],
)
def test_a_wrong_call_says_what_is_wrong(
    arguments: Any, kind: type[Exception], message: str, session: InferenceSession
) -> None:
    with pytest.raises(kind, match=message):
        session.run(*arguments)


def test_it_tells_of_its_model_and_its_provider(session: InferenceSession, device: sdk.Device) -> None:
    assert session.get_inputs() == [NodeArg("x", "tensor(float)", ["batch", 3])]
    assert [entry[:2] for entry in session.get_outputs()] == [("z", "tensor(int32)"), ("y", "tensor(float)")]
    assert session.get_providers() == [PROVIDER]
    assert session.get_provider_options() == {PROVIDER: {"device": device.address}}
    assert session.get_overridable_initializers() == []
    meta = session.get_modelmeta()
    assert meta[:6] == ("somebody", net().graph.name, "org.example", "a net", "two outputs", 7)
    assert meta.custom_metadata_map == {"author": "us"}
    session.disable_fallback()


@pytest.mark.parametrize("kind", ["path", "bytes", "proto"])
def test_a_model_is_a_path_bytes_or_an_object(kind: str, tmp_path: Path, device: sdk.Device) -> None:
    path = tmp_path / "net.onnx"
    onnx.save(net(), path)
    with InferenceSession({"path": path, "bytes": path.read_bytes(), "proto": net()}[kind], device=device) as session:
        np.testing.assert_array_equal(session.run(["y"], {"x": X})[0], np.maximum(X, 0))
        assert session.get_modelmeta().producer_name == "somebody"


@pytest.mark.parametrize("overrides", [{}, {"batch": 1}])
def test_what_is_no_model_is_refused_as_by_load(overrides: dict[str, int], tmp_path: Path, device: sdk.Device) -> None:
    options = SessionOptions()
    for name, extent in overrides.items():
        options.add_free_dimension_override_by_name(name, extent)
    with pytest.raises(sdk.UnsupportedModel):
        InferenceSession(b"\xffgarbage", options, device=device)
    with pytest.raises(FileNotFoundError):
        InferenceSession(tmp_path / "none.onnx", options, device=device)
    unsupported = model([node("Multinomial", ["x"], ["y"])], {"x": (np.float32, ("batch", 2, 2))}, {"y": np.float32})
    with pytest.raises(sdk.UnsupportedModel, match="Multinomial"):
        InferenceSession(unsupported, options, device=device)


# --- options and providers ----------------------------------------------------------------------------------------


def test_dimensions_that_are_given_an_extent_are_compiled_at_once(
    device: sdk.Device, caplog: pytest.LogCaptureFixture
) -> None:
    options = SessionOptions()
    options.add_free_dimension_override_by_name("batch", 1)
    with InferenceSession(net(), options, device=device) as session:
        assert session.get_inputs()[0].shape == [1, 3]
        assert session.get_session_options() is options
        session.run(None, {"x": X})
    assert not caplog.records
    with pytest.raises(ValueError, match="'batch' takes an int from 0, got '1'"):
        options.add_free_dimension_override_by_name("batch", "1")  # type: ignore[arg-type]


def test_an_override_of_another_dimension_leaves_this_one_free(device: sdk.Device) -> None:
    options = SessionOptions()
    options.add_free_dimension_override_by_name("length", 1)
    with InferenceSession(net(), options, device=device) as session:
        assert session.run(["y"], {"x": np.ones((2, 3), np.float32)})[0].shape == (2, 3)


def test_settings_that_change_nothing_are_taken(device: sdk.Device) -> None:
    options = SessionOptions()
    options.intra_op_num_threads = 3
    options.graph_optimization_level = 99
    options.enable_profiling = False
    options.optimized_model_filepath = ""
    assert options.intra_op_num_threads == 3 and options.enable_mem_pattern
    with InferenceSession(net(), options, [PROVIDER], device=device) as session:
        assert session.run(None, {"x": X})


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda o: setattr(o, "enable_profiling", True), "SessionOptions.enable_profiling is onnxruntime's"),
        (lambda o: setattr(o, "optimized_model_filepath", "x"), "a compiled program is no ONNX model"),
        (lambda o: o.add_session_config_entry("k", "v"), "SessionOptions.add_session_config_entry is onnxruntime's"),
        (lambda o: o.register_custom_ops_library("x.so"), "write the operator as an ONNX function"),
        (lambda o: setattr(o, "intra_op_threads", 1), "'SessionOptions' object has no attribute 'intra_op_threads'"),
        (lambda o: o.nothing, "'SessionOptions' object has no attribute 'nothing'"),
    ],
)
def test_settings_that_would_change_something_are_refused_by_name(use: Any, message: str) -> None:
    with pytest.raises(AttributeError, match=message):
        use(SessionOptions())


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"providers": ["CUDAExecutionProvider"]}, ValueError, "'CUDAExecutionProvider' is not here; leave providers"),
        ({"providers": [PROVIDER, "CUDAExecutionProvider"]}, ValueError, "'CUDAExecutionProvider' is not here"),
        ({"providers": []}, ValueError, "providers are \\[\\]; give"),
        ({"providers": ["CPUExecutionProvider"]}, ValueError, "or with the host after it"),
        ({"providers": ["CPUExecutionProvider", PROVIDER]}, ValueError, "or with the host after it"),
        ({"providers": [PROVIDER, ("CPUExecutionProvider", {"a": 1})]}, ValueError, "CPUExec.* has no option 'a'"),
        ({"providers": PROVIDER}, TypeError, r"providers takes a list: \['Npu"),
        ({"providers": [(PROVIDER, {"device_id": 0})]}, ValueError, "has no option 'device_id'"),
        ({"provider_options": [{}, {}]}, ValueError, "2 provider_options for 1 providers"),
        ({"disabled_optimizers": ["x"]}, TypeError, "'disabled_optimizers' is onnxruntime's and not supported"),
        ({"sess_options": object()}, TypeError, "must be an sdk.SessionOptions.* got a builtins.object"),
        ({"device": "emulator", "providers": [(PROVIDER, {"device": "pci:0"})]}, ValueError, "two devices are named"),
    ],
)
def test_a_wrong_construction_says_what_is_wrong(
    arguments: dict[str, Any], kind: type[Exception], message: str, leaves_nothing: None
) -> None:
    with pytest.raises(kind, match=message):
        InferenceSession(net(), **arguments)


def test_the_host_runs_what_the_device_cannot_where_it_is_named(device: sdk.Device) -> None:
    module_of_extra("onnxruntime", "models")
    drawn = model(
        [node("Bernoulli", ["x"], ["b"]), node("Relu", ["b"], ["y"])], {"x": (np.float32, (2,))}, {"y": np.float32}
    )
    with pytest.raises(sdk.UnsupportedModel, match="Bernoulli"):
        InferenceSession(drawn, device=device)
    with InferenceSession(drawn, providers=[PROVIDER, "CPUExecutionProvider"], device=device) as session:
        assert session.get_providers() == [PROVIDER, "CPUExecutionProvider"]
        assert session.get_provider_options()["CPUExecutionProvider"] == {}
        (y,) = session.run(None, {"x": np.full(2, 0.5, np.float32)})
        assert set(y) <= {0, 1}


def test_defaults_may_be_overridden(device: sdk.Device) -> None:
    made = net()
    made.graph.input.append(onnx.helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, [3]))
    with InferenceSession(made, device=device) as session:
        assert [info.name for info in session.get_inputs()] == ["x"]
        assert session.get_overridable_initializers() == [NodeArg("w", "tensor(float)", [3])]
        np.testing.assert_array_equal(session.run(["z"], {"x": X})[0], [[9, 22, 27]])
        np.testing.assert_array_equal(session.run(["z"], {"x": X, "w": [1, 1, 1]})[0], [[0, 3, -2]])


def test_onnxruntimes_own_options_are_refused_by_name() -> None:
    theirs = module_of_extra("onnxruntime", "models").SessionOptions()
    with pytest.raises(TypeError, match=r"sdk\.SessionOptions, which has the same settings, got a onnxruntime"):
        InferenceSession(net(), theirs)


REFUSED = [
    "io_binding",
    "run_with_iobinding",
    "run_with_ort_values",
    "set_providers",
    "end_profiling",
    "enable_fallback",
]


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_had_is_refused_by_name(name: str, session: InferenceSession) -> None:
    assert not hasattr(session, name)
    with pytest.raises(AttributeError, match=rf"InferenceSession\.{name} is onnxruntime's and not supported.*: \w+"):
        getattr(session, name)()


def test_all_that_onnxruntime_has_is_here_or_refused_by_name(session: InferenceSession) -> None:
    theirs = module_of_extra("onnxruntime", "models")
    for ours, peer in ((session, theirs.InferenceSession), (SessionOptions(), theirs.SessionOptions)):
        for name in [name for name in dir(peer) if not name.startswith("_")]:
            try:
                getattr(ours, name)
            except AttributeError as error:
                assert "is onnxruntime's and not supported on a device: " in str(error), name


# --- running in the background ------------------------------------------------------------------------------------


class Answers:
    """Collects what callbacks are told."""

    def __init__(self) -> None:
        self.told: list[tuple[list[NDArray[Any]], Any, str]] = []
        self._more = threading.Semaphore(0)

    def __call__(self, outputs: list[NDArray[Any]], user_data: Any, error: str) -> None:
        self.told.append((outputs, user_data, error))
        self._more.release()

    def wait(self, count: int) -> None:
        for _ in range(count):
            assert self._more.acquire(timeout=60)


def test_runs_in_the_background_tell_a_callback(session: InferenceSession) -> None:
    answers = Answers()
    for value in range(20):
        session.run_async(["y"], {"x": np.full((1, 3), value, np.float32)}, answers, value)
    answers.wait(20)
    assert sorted(user_data for _, user_data, _ in answers.told) == list(range(20))
    for (y,), value, error in answers.told:
        assert (y == value).all() and error == ""


def test_a_background_run_that_fails_tells_why(session: InferenceSession) -> None:
    answers = Answers()
    session.run_async(None, {"x": X.astype(np.int32)}, answers, "mine")
    answers.wait(1)
    ((outputs, user_data, error),) = answers.told
    assert (outputs, user_data) == ([], "mine") and error.startswith("TypeError: input 'x': expected float32")


def test_a_wrong_background_run_is_refused_at_once(session: InferenceSession) -> None:
    with pytest.raises(ValueError, match="output 'q' is unknown"):
        session.run_async(["q"], {"x": X}, print, None)
    with pytest.raises(TypeError, match="callback must be callable"):
        session.run_async(None, {"x": X}, None, None)  # type: ignore[arg-type]


# --- the device, and the end --------------------------------------------------------------------------------------


def test_a_session_on_a_device_of_its_callers_leaves_it_open(device: sdk.Device) -> None:
    session = InferenceSession(net(), device=device)
    session.close()
    session.close()
    with pytest.raises(sdk.Closed):
        session.run(None, {"x": X})
    with pytest.raises(sdk.Closed, match="the session is closed"):
        session.run_async(None, {"x": X}, print, None)
    assert not device.closed


def test_sessions_of_one_address_share_a_device_which_the_last_closes(leaves_nothing: None) -> None:
    first = InferenceSession(net(), device=EMULATOR)
    second = InferenceSession(net(), providers=[(PROVIDER, {"device": EMULATOR})])
    assert first._device is second._device
    first.close()
    np.testing.assert_array_equal(second.run(["y"], {"x": X})[0], np.maximum(X, 0))
    kept = second._device
    second.close()
    assert kept.closed


def test_a_session_after_its_device_died_unnoticed_has_a_new_device(leaves_nothing: None) -> None:
    with InferenceSession(net(), device=EMULATOR) as first:
        pid = first._device.info.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        assert ends(pid)
        with InferenceSession(net(), device=EMULATOR) as second:
            np.testing.assert_array_equal(second.run(["y"], {"x": X})[0], np.maximum(X, 0))
            assert first._device.closed


def test_a_session_that_failed_to_load_leaves_nothing(leaves_nothing: None) -> None:
    with pytest.raises(sdk.UnsupportedModel):
        InferenceSession(b"", device=EMULATOR)


def test_a_session_that_is_let_go_leaves_nothing(leaves_nothing: None) -> None:
    session = InferenceSession(net(), device=EMULATOR)
    answers = Answers()
    session.run_async(None, {"x": X}, answers, None)
    answers.wait(1)
    del session
    gc.collect()


def test_closing_a_session_from_its_callback_ends_it(leaves_nothing: None) -> None:
    session = InferenceSession(net(), device=EMULATOR)
    closed = threading.Event()

    def close(outputs: list[NDArray[Any]], user_data: Any, error: str) -> None:
        session.close()
        closed.set()

    session.run_async(None, {"x": X}, close, None)
    assert closed.wait(60)


def test_a_session_cannot_be_sent_to_another_process(session: InferenceSession) -> None:
    with pytest.raises(TypeError, match=r"InferenceSession cannot be pickled or copied.*: send its file's path"):
        pickle.dumps(session)


# --- the same program on both -------------------------------------------------------------------------------------

PROGRAM = """
import json, sys, threading
import numpy as np
import {module} as ort

options = ort.SessionOptions()
options.intra_op_num_threads = 2
options.log_severity_level = 3
options.add_free_dimension_override_by_name("batch", 1)
session = ort.InferenceSession(sys.argv[1], options, providers={providers})
x = np.array([[-1, 2, -3]], np.float32)
done = threading.Event()
told = []

def callback(outputs, user_data, error):
    told.extend([[array.tolist() for array in outputs], user_data, error])
    done.set()

session.run_async(["z", "y"], {{"x": x}}, callback, "mine")
assert done.wait(60)
meta = session.get_modelmeta()
print(json.dumps([
    [[entry.name, entry.type, entry.shape] for entry in session.get_inputs()],
    [[entry.name, entry.type] for entry in session.get_outputs()],
    [array.tolist() for array in session.run(None, {{"x": x}})],
    [array.tolist() for array in session.run(["y"], {{"x": x.tolist()}})],
    [meta.producer_name, meta.graph_name, meta.domain, meta.description, meta.graph_description, meta.version,
     meta.custom_metadata_map],
    [entry.name for entry in session.get_overridable_initializers()],
    told,
]))
"""


def test_the_same_program_says_the_same_on_onnxruntime_and_here(tmp_path: Path) -> None:
    module_of_extra("onnxruntime", "models")
    path = tmp_path / "net.onnx"
    onnx.save(net(), path)
    theirs = run(PROGRAM.format(module="onnxruntime", providers='["CPUExecutionProvider"]'), str(path))
    ours = run(PROGRAM.format(module="sdk", providers='[("NpuExecutionProvider", {"device": "emulator"})]'), str(path))
    assert json.loads(ours) == json.loads(theirs)


def test_names_of_onnxruntimes_module_are_here_or_say_what_to_do() -> None:
    options = sdk.SessionOptions()
    options.graph_optimization_level = sdk.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.execution_mode = sdk.ExecutionMode.ORT_SEQUENTIAL
    for name in ("RunOptions", "OrtValue", "get_available_providers", "get_device", "set_default_logger_severity"):
        with pytest.raises(AttributeError, match=rf"module 'sdk' has no attribute '{name}': \w+"):
            getattr(sdk, name)
    with pytest.raises(AttributeError, match=r"has no attribute 'nonsense'$"):
        sdk.nonsense  # noqa: B018
