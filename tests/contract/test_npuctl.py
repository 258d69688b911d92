"""npuctl from outside: real processes, exit codes, documents that fit the shipped schemas."""

from __future__ import annotations

import os
import pty
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import sdk
from tests.support.children import child_commands
from tests.support.npuctl import PATIENCE_S, Npuctl, environment
from tests.support.paths import ROOT
from tests.support.pipes import read_rest
from tests.support.waiting import wait_until

SHORT_S = "1.5"


@pytest.fixture
def npuctl(tmp_path: Path) -> Npuctl:
    return Npuctl(tmp_path)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Npuctl, str]]:
    """(tool, address) of one emulator shared by this module's tests."""
    folder = tmp_path_factory.mktemp("served")
    tool = Npuctl(folder)
    with tool.served(folder / "npu.sock"):
        yield tool, f"vfio-user:{folder / 'npu.sock'}"


# --- without a device ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["list", "info", "regs"])
def test_a_query_without_a_device_exits_3(npuctl: Npuctl, verb: str) -> None:
    document = npuctl.document(verb, code=3)
    assert document["devices"] == []
    assert [error["code"] for error in document["errors"]] == ["device-not-found"]


@pytest.mark.parametrize("address", ["pci:ff:1f.7", "sysfs:ff:1f.7"])
@pytest.mark.parametrize("verb", ["list", "info", "regs", "bench"])
def test_a_device_that_is_not_there_exits_3(npuctl: Npuctl, verb: str, address: str) -> None:
    assert npuctl(verb, "-d", address).returncode == 3


def test_a_visible_device_that_is_not_there_exits_3(npuctl: Npuctl) -> None:
    document = npuctl.document("list", code=3, NPU_VISIBLE_DEVICES="nonesuch")
    assert [error["code"] for error in document["errors"]] == ["device-not-found"]
    assert "'nonesuch'" in document["errors"][0]["message"]


def test_the_doctor_of_a_machine_without_a_card_speaks_of_the_emulator(npuctl: Npuctl) -> None:
    document = npuctl.document("doctor")
    checks = {check["name"]: check for check in document["checks"]}
    assert document["devices"] == []
    assert checks["card"]["status"] == "info"
    assert "programs use an emulator" in checks["card"]["found"]
    assert checks["emulator"]["status"] == "ok"
    assert "fail" not in {check["status"] for check in document["checks"]}


def test_the_doctor_of_a_card_that_is_not_there_exits_3(npuctl: Npuctl) -> None:
    assert npuctl.document("doctor", "-d", "pci:0000:03:00.0", code=3)["checks"] == []


@pytest.mark.parametrize("verb", ["reset", "bind", "unbind"])
def test_a_change_without_a_device_exits_3(npuctl: Npuctl, verb: str) -> None:
    assert npuctl(verb, "--yes").returncode == 3


def test_an_unknown_device_is_named_with_what_there_is(served: tuple[Npuctl, str]) -> None:
    tool, address = served
    done = tool("info", "-d", "nobody")
    assert done.returncode == 3
    assert "'nobody'" in done.stderr
    assert address in done.stderr
    assert tool("list", "-d", "all", "-d", "nobody").returncode == 3


@pytest.mark.parametrize(
    "arguments",
    [
        ("unknown",),
        ("list", "--nonsense"),
        ("list", "--timeout", "0"),
        ("list", "--timeout", "nan"),
        ("emulate", "--socket", ""),
        ("info", "-d", "emulator"),
        ("regs", "no_such_register"),
        ("regs", "control=1"),
        ("regs", "scratch=banana"),
        ("regs", "scratch=0x100000000"),
        ("regs", "--unsafe", "identity=1"),
        ("regs", "--no-open"),
        ("run", "missing.onnx"),
        ("bench", "-d", "emulator:no-such-profile"),
        ("bench", "-d", "all"),
        ("emulate", "--core", "none", "--uart", "pty"),
    ],
)
def test_a_wrong_command_line_exits_2(npuctl: Npuctl, arguments: tuple[str, ...]) -> None:
    done = npuctl(*arguments)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr


def test_help_fits_80_columns_and_names_every_verb(npuctl: Npuctl) -> None:
    done = npuctl("--help", COLUMNS="200")
    assert done.returncode == 0
    assert max(map(len, done.stdout.splitlines())) <= 80
    shown = (
        "list",
        "info",
        "regs",
        "run",
        "bench",
        "emulate",
        "reset",
        "doctor",
        "bind",
        "unbind",
        "fw",
        "chat",
        "demo",
    )
    for verb in shown:
        assert f"\n  {verb} " in done.stdout
        assert npuctl(verb, "--help").returncode == 0


def test_a_misspelt_verb_is_answered_with_what_was_meant(npuctl: Npuctl) -> None:
    assert "did you mean list?" in npuctl("lst").stderr


def test_a_wrong_log_level_is_a_usage_error(npuctl: Npuctl) -> None:
    assert npuctl("list", NPU_LOG="loud").returncode == 2


def test_shell_completion_knows_the_verbs(npuctl: Npuctl) -> None:
    done = npuctl(_NPUCTL_COMPLETE="bash_complete", COMP_WORDS="npuctl re", COMP_CWORD="1")
    assert {line.partition(",")[2] for line in done.stdout.split()} >= {"reset", "regs"}


# --- with a served device --------------------------------------------------------------------------------------


def test_list_shows_a_served_emulator(served: tuple[Npuctl, str]) -> None:
    tool, address = served
    (device,) = tool.document("list")["devices"]
    assert (device["address"], device["emulated"], device["profile"]) == (address, True, "generic")


def test_a_wrong_visible_device_does_not_hide_a_served_emulator(served: tuple[Npuctl, str]) -> None:
    tool, address = served
    document = tool.document("list", code=7, NPU_VISIBLE_DEVICES="garbage")
    assert [device["address"] for device in document["devices"]] == [address]
    assert [error["device"] for error in document["errors"]] == ["garbage"]
    checks = {
        check["name"]: check for check in tool.document("doctor", code=5, NPU_VISIBLE_DEVICES="garbage")["checks"]
    }
    assert (checks["visible-devices"]["status"], checks["visible-devices"]["remedy"]) == (
        "fail",
        "unset NPU_VISIBLE_DEVICES",
    )


@pytest.mark.parametrize("arguments", [("list",), ("info", "--no-open")])
def test_a_socket_that_nobody_serves_is_no_device(npuctl: Npuctl, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    address = f"vfio-user:{tmp_path / 'nobody.sock'}"
    document = npuctl.document(*arguments, "-d", address, code=3)
    assert document["devices"] == []
    assert [error["code"] for error in document["errors"]] == ["device-not-found"]


def test_info_of_an_idle_emulator_opens_it_and_says_so(served: tuple[Npuctl, str]) -> None:
    tool, _ = served
    (device,) = tool.document("info")["devices"]
    assert device["opened"] is True
    assert device["memory_bytes"] > 0
    assert device["contract"] == "0.5"
    assert tool.document("info", "--no-open")["devices"][0]["opened"] is False


def test_info_of_an_emulator_in_use_shows_what_is_published(
    served: tuple[Npuctl, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tool, address = served
    with sdk.Device(address):  # published in another folder
        (device,) = tool.document("info")["devices"]
    assert device["opened"] is False and device["holder"] is None
    assert device["profile"] == "generic"
    monkeypatch.setenv("NPU_RUNTIME_DIR", str(tool.runtime_folder))
    with sdk.Device(address):
        (device,) = tool.document("info")["devices"]
        assert f"pid: {os.getpid()}" in tool("info").stdout
    assert device["opened"] is False and device["holder"]["pid"] == os.getpid()
    assert tool.document("info")["devices"][0]["holder"] is None


def test_list_shows_who_holds_a_device_within_80_columns(
    served: tuple[Npuctl, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tool, address = served
    assert tool.document("list")["devices"][0]["holder"] is None
    monkeypatch.setenv("NPU_RUNTIME_DIR", str(tool.runtime_folder))
    with sdk.Device(address):
        (device,) = tool.document("list")["devices"]
        text = tool("list", COLUMNS="80").stdout
    assert device["holder"]["pid"] == os.getpid() and device["holder"]["since"].endswith("Z")
    assert f"held by PID {os.getpid()}" in " ".join(text.split())
    assert max(map(len, text.splitlines())) <= 80


def test_registers_are_read_by_name_and_scratch_is_written(served: tuple[Npuctl, str]) -> None:
    tool, address = served
    (device,) = tool.document("regs", "identity", "scratch=0xabc")["devices"]
    assert device["registers"] == [
        {"name": "identity", "offset": "0x0000", "value": "0x55504e31", "fields": {"magic": "0x55504e31"}},
        {"name": "scratch", "offset": "0x00a0", "value": "0x00000abc", "fields": {"value": "0xabc"}},
    ]
    assert tool("regs", "identity").stdout.splitlines()[:2] == [address, "opened with a reset"]
    (everything,) = tool.document("regs")["devices"]
    assert len(everything["registers"]) > len(device["registers"])


def test_reset_asks_first_and_has_nobody_to_ask(served: tuple[Npuctl, str]) -> None:
    tool, address = served
    assert tool("reset").returncode == 2
    (device,) = tool.document("reset", "--yes")["devices"]
    assert device["address"] == address and device["opened_with_reset"] is True
    assert tool("reset", "--yes").stdout.splitlines()[-1] == f"{address}: opened with a reset"


@pytest.mark.parametrize(("answer", "code"), [(b"y\n", 0), (b"n\n", 1)])
def test_reset_asks_on_a_terminal(served: tuple[Npuctl, str], answer: bytes, code: int) -> None:
    tool, address = served
    ours, theirs = pty.openpty()
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "npuctl", "reset", "-d", address],
            env=environment(tool.runtime_folder),
            stdin=theirs,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.write(ours, answer)
        assert process.wait(PATIENCE_S) == code
    finally:
        os.close(ours)
        os.close(theirs)


@pytest.mark.parametrize("visible", [True, False])
def test_a_device_in_use_is_not_reset(
    served: tuple[Npuctl, str], visible: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool, address = served
    if visible:
        monkeypatch.setenv("NPU_RUNTIME_DIR", str(tool.runtime_folder))
    with sdk.Device(address) as held:
        document = tool.document("reset", "--yes", "-d", address, code=1)
        assert held.registers.identity.read() == 0x5550_4E31
    (error,) = document["errors"]
    assert error["code"] == "device-busy"
    if visible:
        assert error["holder"]["pid"] == os.getpid() and f"held by PID {os.getpid()}" in error["message"]
    else:
        assert error["holder"] is None and "not visible" in error["message"]


def test_good_and_bad_devices_together_exit_7(served: tuple[Npuctl, str], tmp_path: Path) -> None:
    tool, address = served
    missing = f"vfio-user:{tmp_path / 'nobody.sock'}"
    document = tool.document("regs", "identity", "-d", address, "-d", missing, code=7)
    assert [device["address"] for device in document["devices"]] == [address]
    assert [error["device"] for error in document["errors"]] == [missing]


def test_one_of_several_must_be_named_for_a_change(served: tuple[Npuctl, str]) -> None:
    tool, address = served
    second = tool.runtime_folder / "second.sock"
    before = len(tool.document("list")["devices"])
    with tool.served(second) as process:
        while len(tool.document("list")["devices"]) == before:
            assert process.poll() is None
        assert tool("reset", "--yes").returncode == 2
        assert tool("regs", "scratch=1").returncode == 2
        assert len(tool.document("regs", "scratch")["devices"]) == before + 1
        assert len(tool.document("reset", "--yes", "-d", "all")["devices"]) == before + 1
        assert [d["address"] for d in tool.document("reset", "--yes", "-d", address)["devices"]] == [address]


def test_bench_reports_measurements(served: tuple[Npuctl, str]) -> None:
    tool, address = served
    (device,) = tool.document("bench", "--quick", "-d", address)["devices"]
    assert device["address"] == address
    assert device["nop_round_trip"]["p50_seconds"] <= device["nop_round_trip"]["p99_seconds"]
    assert device["single_commands_per_s"] > 0


def test_no_colour_reaches_a_pipe(served: tuple[Npuctl, str]) -> None:
    tool, _ = served
    assert "\x1b" not in tool("list").stdout
    assert "\x1b" not in tool("list", NO_COLOR="1", FORCE_COLOR="1").stdout.replace("\x1b[1m", "").replace(
        "\x1b[0m", ""
    )


# --- things that go wrong --------------------------------------------------------------------------------------


@pytest.fixture
def silent_server(tmp_path: Path) -> Iterator[str]:
    """The address of a socket that takes connections and never answers."""
    path = tmp_path / "silent.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        yield f"vfio-user:{path}"


def test_the_time_out_holds_against_a_device_that_never_answers(npuctl: Npuctl, silent_server: str) -> None:
    document = npuctl.document("regs", "-d", silent_server, "--timeout", SHORT_S, code=6)
    assert document["devices"] == []
    assert [error["code"] for error in document["errors"]] == ["timeout"]
    assert SHORT_S in document["errors"][0]["message"]


def test_ctrl_c_exits_130(npuctl: Npuctl, silent_server: str) -> None:
    tool = subprocess.Popen(
        [sys.executable, "-m", "npuctl", "regs", "-d", silent_server],
        env=environment(npuctl.runtime_folder),
        stderr=subprocess.PIPE,
        cwd=ROOT,
    )
    try:
        wait_for_a_worker(tool.pid)
        tool.send_signal(signal.SIGINT)
        _, errors = tool.communicate(timeout=PATIENCE_S)
    finally:
        tool.kill()
    assert tool.returncode == 130
    assert b"Traceback" not in errors


def wait_for_a_worker(pid: int) -> None:
    wait_until(lambda: bool(child_commands(pid)), "a worker is there", PATIENCE_S)


def test_a_reader_that_closes_the_pipe_early_is_fine(served: tuple[Npuctl, str]) -> None:
    tool, _ = served
    process = subprocess.Popen(
        [sys.executable, "-m", "npuctl", "regs"],
        env=environment(tool.runtime_folder),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.close()
    errors = read_rest(process.stderr)
    assert process.stderr is not None
    process.stderr.close()
    assert process.wait(PATIENCE_S) == 0
    assert errors == ""


def test_a_served_emulator_ends_on_sigterm_and_leaves_nothing(npuctl: Npuctl, tmp_path: Path) -> None:
    path = tmp_path / "short.sock"
    with npuctl.served(path) as process:
        process.terminate()
        assert process.wait(PATIENCE_S) in (0, -signal.SIGTERM)
    assert not path.exists()
    assert npuctl("list").returncode == 3
