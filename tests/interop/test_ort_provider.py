"""onnxruntime itself, its wheel as published, runs whole graphs on a device by the library of `ort_provider/`."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.children import PROGRAM_TIMEOUT_S, environment, run, session_ends
from tests.support.needs import needs_ort_provider
from tests.support.paths import DOCS, ROOT

pytestmark = needs_ort_provider

BEGIN = """
import gc, os, signal, sys, threading, time
import numpy as np, onnx, onnxruntime
from onnx import TensorProto, helper, numpy_helper
from tests.support.children import ends
from tests.support.models import model, node
from tests.support.ort_provider import *

def error_of(work):
    try:
        work()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    raise AssertionError("no error came")

register()
"""


def test_networks_give_the_cpu_providers_answers() -> None:
    run(
        BEGIN
        + """
from tests.models.image_networks import picture_for, with_random_weights
assert agree(net(), {"x": X}).get_providers()[0] == "NpuExecutionProvider"
squeezenet = with_random_weights("squeezenet", 3, opset=17)
agree(squeezenet, picture_for(squeezenet))
"""
    )


def test_tensors_of_every_type_and_shape_go_there_and_back() -> None:
    run(
        BEGIN
        + """
first = session(net())  # keeps the device open
for dtype in ("float16", "int8", "uint8", "int32", "int64", "bool"):
    turned = model([node("Transpose", ["x"], ["y"])], {"x": (np.dtype(dtype), ("rows", 3))}, {"y": np.dtype(dtype)})
    for x in (X, X[:0], X[:1]):
        agree(turned, {"x": (x > 0).astype(dtype)})
halves = [node("Cast", ["x"], ["h"], to=TensorProto.BFLOAT16), node("Cast", ["h"], ["y"], to=TensorProto.FLOAT)]
agree(model(halves, {"x": (np.float32, (2, 3))}, {"y": np.float32}), {"x": X})
square = model([node("Mul", ["x", "x"], ["y"])], {"x": (np.float32, ())}, {"y": np.float32})
agree(square, {"x": np.array(3, np.float32)})
agree(model([node("Relu", ["x"], ["y"])], {"x": (np.float32, None)}, {"y": np.float32}), {"x": X})
"""
    )


def test_graphs_in_nodes_functions_and_defaults_are_passed_on() -> None:
    run(
        BEGIN
        + """
first = session(net())
floats, flag = (np.float32, (2, 3)), (np.bool_, ())

def value(name, kind, shape=(2, 3)):
    return helper.make_tensor_value_info(name, kind, shape)

then = helper.make_graph(
    [node("Add", ["x", "c"], ["t"])], "then", [], [value("t", TensorProto.FLOAT)],
    [numpy_helper.from_array(np.float32(2.5), "c")],
)
other = helper.make_graph([node("Mul", ["x", "w"], ["e"])], "else", [], [value("e", TensorProto.FLOAT)])
choice = model(
    [node("If", ["p"], ["y"], then_branch=then, else_branch=other)],
    {"x": floats, "p": flag}, {"y": np.float32}, {"w": np.float32(3)},
)
for chosen in (True, False):
    agree(choice, {"x": X, "p": np.array(chosen)})

body = helper.make_graph(
    [node("Add", ["a", "x"], ["b"]), node("Identity", ["go"], ["on"])], "body",
    [value("i", TensorProto.INT64, ()), value("go", TensorProto.BOOL, ()), value("a", TensorProto.FLOAT)],
    [value("on", TensorProto.BOOL, ()), value("b", TensorProto.FLOAT)],
)
agree(model([node("Loop", ["n", "t", "x"], ["y"], body=body)], {"x": floats}, {"y": np.float32},
            {"n": np.int64(4), "t": np.array(True)}), {"x": X})

gates = [node("LSTM", ["x", "w", "r"], ["y", "", "c"], hidden_size=2, activations=["Sigmoid", "Tanh", "Tanh"])]
weights = {"w": np.ones((1, 8, 3), np.float32) / 9, "r": np.ones((1, 8, 2), np.float32) / 7}
steps = np.ones((4, 1, 3), np.float32)
agree(model(gates, {"x": (np.float32, (4, 1, 3))}, {"y": np.float32, "c": np.float32}, weights), {"x": steps})

twice = helper.make_function("own", "Twice", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])],
                             [helper.make_opsetid("", 17)])
called = model([helper.make_node("Twice", ["x"], ["y"], domain="own")], {"x": floats}, {"y": np.float32})
called.functions.append(twice)
called.opset_import.append(helper.make_opsetid("own", 1))
agree(called, {"x": X})

added = model(
    [node("Add", ["x", "w"], ["y"])], {"x": floats, "w": (np.float32, (3,)), "unread": (np.float32, (1,))},
    {"y": np.float32, "x": np.float32}, {"w": np.array([1, 2, 3], np.float32)},
)
for given in ({}, {"w": np.array([10, 20, 30], np.float32)}):
    agree(added, {"x": X, "unread": np.zeros(1, np.float32), **given})
"""
    )


def test_sessions_run_at_once_in_threads_and_share_a_device() -> None:
    run(
        BEGIN
        + """
sessions = [session(net()), session(net())]
pid, wrong = emulator(), []
def work(mine):
    for _ in range(50):
        if not np.array_equal(mine.run(None, {"x": X})[0], Y):
            wrong.append(mine)
threads = [threading.Thread(target=work, args=(mine,)) for mine in sessions * 3]
for thread in threads: thread.start()
for thread in threads: thread.join()
assert not wrong
answered = threading.Event()
sessions[0].run_async(None, {"x": X}, lambda outputs, event, error: event.set() if not error else None, answered)
assert answered.wait(60)
del sessions[0]
gc.collect()
np.testing.assert_array_equal(sessions[0].run(None, {"x": X})[0], Y)
assert emulator() == pid, "the device stays as long as a session has it"
sessions.clear()
gc.collect()
assert session(net()) and emulator() != pid, "the last one closed it"
"""
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"devise": "emulator"}, "ValueError: NpuExecutionProvider has no option 'devise'"),
        ({"device": "pci:0000:99:00.0"}, "DeviceNotFound: pci:0000:99:00.0"),
        ({"device": "nonsense:1"}, "ValueError: "),
    ],
)
def test_options_and_devices_that_there_are_not_are_refused_by_name(options: dict[str, str], message: str) -> None:
    printed = run(BEGIN + f"print(error_of(lambda: session(net(), **{options!r})))")
    assert message in printed


def test_what_the_device_cannot_run_runs_in_onnxruntime_whole_and_said() -> None:
    program = """
feed = {"x": np.array([-1, 1], np.float32), "s": np.array(["a"])}
print(session(unsupported_net(), strict=False).run(None, feed))
print(error_of(lambda: session(unsupported_net())))
"""
    done = subprocess.run(
        [sys.executable, "-c", BEGIN + program],
        capture_output=True,
        text=True,
        env=environment(),
        timeout=PROGRAM_TIMEOUT_S,
        check=True,
    )
    answer, refusal = done.stdout.splitlines()[:2]
    assert answer == "[array([0., 1.], dtype=float32), array(['a'], dtype=object)]"
    assert "fallback" in refusal
    assert "the model runs in onnxruntime, not on the device" in done.stderr
    assert "StringNormalizer (node 'make_n'): the operator is not supported" in done.stderr


def test_an_error_of_the_device_at_load_is_an_error_and_no_reason_to_run_elsewhere() -> None:
    printed = run(
        BEGIN
        + """
import sdk
from sdk.model.device_model import DeviceModel
def full(self, shapes):
    raise sdk.OutOfDeviceMemory("the device is full")
DeviceModel._compile_for = full
print(error_of(lambda: session(net(), strict=False)))
"""
    )
    assert "OutOfDeviceMemory: the device is full" in printed


def test_inputs_that_the_device_refuses_are_an_error_of_the_run() -> None:
    printed = run(
        BEGIN
        + """
large = model([node("Add", ["x", "x"], ["y"])], {"x": (np.int64, (1,))}, {"y": np.int64})
mine = session(large)
print(error_of(lambda: mine.run(None, {"x": np.array([2**40])})))
np.testing.assert_array_equal(mine.run(None, {"x": np.array([4])})[0], [8])
"""
    )
    assert "CommandFailed: model run failed: value-out-of-range" in printed


def test_a_device_killed_under_a_session_is_an_error_and_another_session_has_a_new_one() -> None:
    printed = run(
        BEGIN
        + """
mine, errors = session(net()), []
def work():
    try:
        while True:
            np.testing.assert_array_equal(mine.run(None, {"x": X})[0], Y)
    except Exception as error:
        errors.append(f"{type(error).__name__}: {error}")
threads = [threading.Thread(target=work) for _ in range(4)]
for thread in threads: thread.start()
pid = emulator()
os.kill(pid, signal.SIGKILL)
for thread in threads: thread.join()
assert len(errors) == 4 and all("DeviceLost" in error for error in errors), errors
print(error_of(lambda: mine.run(None, {"x": X})))
again = session(net())
np.testing.assert_array_equal(again.run(None, {"x": X})[0], Y)
del mine
gc.collect()
np.testing.assert_array_equal(again.run(None, {"x": X})[0], Y)
pid = emulator()
os.kill(pid, signal.SIGKILL)
assert ends(pid)  # which no run has noticed when the next session opens the device
np.testing.assert_array_equal(session(net()).run(None, {"x": X})[0], Y)
"""
    )
    assert "DeviceLost" in printed


def test_a_device_that_was_reset_or_closed_says_so() -> None:
    printed = run(
        BEGIN
        + """
from sdk.shared_devices import share
first, second = session(net()), share(EMULATOR)
second.device.reset()
print(error_of(lambda: first.run(None, {"x": X})))
again = session(net())
np.testing.assert_array_equal(again.run(None, {"x": X})[0], Y)
second.device.close()
print(error_of(lambda: again.run(None, {"x": X})))
"""
    )
    assert "Closed: the device was reset" in printed and "Closed: the device is closed" in printed


def test_a_session_may_be_let_go_while_a_lock_of_ours_is_held() -> None:
    run(
        BEGIN
        + """
from sdk import shared_devices
circle = [session(net())]
circle.append(circle)
del circle
with shared_devices._pool.lock:
    gc.collect()  # which may come in the middle of anything
np.testing.assert_array_equal(session(net()).run(None, {"x": X})[0], Y)
"""
    )


ENDINGS = {
    "with a session": "",
    "with a session in a circle": "mine.cycle = mine; del mine",
    "with a device that was killed": "os.kill(pid, signal.SIGKILL)",
    "by an exception": "sys.exit(0)",
    "with a run at exit": "import atexit; atexit.register(mine.run, None, {'x': X})",
    "with runs in a thread": "threading.Thread(target=lambda: [mine.run(None, {'x': X}) for _ in range(200)]).start()",
    "with the library unregistered": "del mine; gc.collect(); onnxruntime.unregister_execution_provider_library('npu')",
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_program_ends_with_success_and_leaves_no_device(ending: str) -> None:
    program = """
mine = session(net())
np.testing.assert_array_equal(mine.run(None, {"x": X})[0], Y)
pid = emulator()
print(pid)
"""
    printed = run(BEGIN + program + ENDINGS[ending])
    assert session_ends(int(printed))


def test_ctrl_c_is_heard_when_the_run_has_ended() -> None:
    run(
        BEGIN
        + """
mine = session(net())
pid = emulator()
for _ in range(3):
    os.kill(pid, signal.SIGSTOP)  # the run waits
    def interrupt():
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.1)
        os.kill(pid, signal.SIGCONT)
    threading.Thread(target=interrupt).start()
    try:
        while True:
            mine.run(None, {"x": X})
    except KeyboardInterrupt as error:
        assert error.__context__ is None, error.__context__
np.testing.assert_array_equal(mine.run(None, {"x": X})[0], Y)
"""
    )


def test_ctrl_c_pressed_again_ends_a_run_that_does_not() -> None:
    run(
        BEGIN
        + """
mine = session(net())
mine.run(None, {"x": X})
pid = emulator()
os.kill(pid, signal.SIGSTOP)
def interrupt():
    for _ in range(2):
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGINT)
threading.Thread(target=interrupt).start()
try:
    try:
        mine.run(None, {"x": X})
    finally:
        print("it is raised here")
except KeyboardInterrupt as error:
    assert "KeyboardInterrupt" in str(error.__context__), error.__context__
else:
    raise AssertionError("nothing was heard")
finally:
    os.kill(pid, signal.SIGKILL)
"""
    )


def test_the_pages_example_runs(tmp_path: Path) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", (DOCS / "onnxruntime.md").read_text("utf-8"), re.DOTALL)
    (tmp_path / "build").symlink_to(ROOT / "build")
    prepare = f"""
import onnx, os
from tests.support.ort_provider import X, net
os.chdir({str(tmp_path)!r})
onnx.save(net(), "net.onnx")
"""
    answer = run(prepare + example + "\nprint(session.get_providers()[0], session.run(None, {'x': X})[0].tolist())")
    assert answer == "NpuExecutionProvider [[17.0, 17.0], [35.0, 36.0]]\n"


def test_the_library_is_loaded_again_after_it_was_unregistered() -> None:
    run(
        BEGIN
        + """
for _ in range(3):
    np.testing.assert_array_equal(session(net()).run(None, {"x": X})[0], Y)
    gc.collect()
    onnxruntime.unregister_execution_provider_library("npu")
    assert not [device for device in onnxruntime.get_ep_devices() if device.ep_name == "NpuExecutionProvider"]
    register()
"""
    )


def test_without_the_sdk_the_library_says_what_is_missing() -> None:
    program = BEGIN.replace("register()\n", "") + "sys.modules['sdk.ort_provider'] = None\nprint(error_of(register))"
    assert "ModuleNotFoundError: import of sdk.ort_provider halted" in run(program)
