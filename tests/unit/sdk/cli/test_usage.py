"""What npuctl says of its command line: help that fits 80 columns, and mistakes answered with what is meant."""

from __future__ import annotations

import re
from pathlib import Path

import click
import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import helper

from sdk.cli import compile as compile_verb
from sdk.cli import device_selection, run
from sdk.cli.application import VERBS, npuctl
from sdk.cli.exit_codes import Failure
from sdk.cli.frame import Frame
from sdk.cli.fw import VERBS as FW_VERBS
from sdk.errors import NpuError, UnsupportedModel
from tests.support.models import model

EVERY_VERB = [(), *((verb,) for verb in VERBS), *(("fw", verb) for verb in FW_VERBS)]
BROKEN_WORD = re.compile(r"\w-$")
CLICKS_OWN_WORDS = re.compile(r"RANGE|\bTEXT\b|\bFLOAT\b|x[<>]|[<>]=?x")


@pytest.fixture(autouse=True)
def nothing_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("NPU_DEVICE", "NPU_VISIBLE_DEVICES", "NPU_TIMEOUT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NPU_RUNTIME_DIR", str(tmp_path))
    monkeypatch.delattr("os.execve")  # a command line that is taken for right must not replace the tests' process


def said(*arguments: str, code: int) -> str:
    done = CliRunner().invoke(npuctl, arguments, prog_name="npuctl")
    assert done.exit_code == code, done.output
    return done.output


@pytest.mark.parametrize("verb", EVERY_VERB, ids=" ".join)
def test_help_breaks_no_word_and_speaks_of_no_click_type(verb: tuple[str, ...]) -> None:
    lines = said(*verb, "--help", code=0).splitlines()
    assert max(map(len, lines)) <= 80
    assert [line for line in lines if BROKEN_WORD.search(line) or CLICKS_OWN_WORDS.search(line)] == []


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        (["list", "--timeout", "abc"], "'abc': give seconds, e.g. 30 or inf"),
        (["list", "--timeout", "0"], "0: give seconds, e.g. 30 or inf"),
        (["list", "--timeout", "nan"], "nan: give seconds, e.g. 30 or inf"),
        (["run", "--repeat", "a", "x.onnx"], "'a': give a whole number from 1 on"),
        (["run", "--repeat", "0", "x.onnx"], "0: give a whole number from 1 on"),
        (["console", "--linger", "-1"], "-1: give seconds, 0 or more"),
        (["emulate", "--usbip", "70000"], "70000: give a port, 0 to 65535"),
        (["emulate", "--ambient-celsius", "hot"], "'hot': give degrees Celsius, e.g. 35"),
        (["emulate", "--ambient-celsius", "-300"], "-300: give degrees Celsius, e.g. 35"),
    ],
)
def test_a_wrong_number_is_answered_with_what_is_meant(arguments: list[str], answer: str) -> None:
    assert answer in said(*arguments, code=2)


@pytest.mark.parametrize("select", [device_selection.queried, device_selection.changed])
def test_an_address_without_a_socket_is_answered_with_its_form(select: object) -> None:
    assert callable(select)
    with pytest.raises(click.UsageError, match="vfio-user:PATH"):
        select(["vfio-user:"])


def test_a_file_that_is_no_model_starts_no_emulator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(*_: object) -> None:
        raise AssertionError("a device was opened")

    monkeypatch.setattr(run, "open_for_work", opened)
    (tmp_path / "plain.txt").write_text("hello, this is no model")
    body = getattr(run.command.callback, "__wrapped__", None)
    assert body is not None
    with pytest.raises(UnsupportedModel, match=r"plain\.txt' is no ONNX model, or a damaged one"):
        body(Frame("run", as_json=False, timeout=None), str(tmp_path / "plain.txt"), (), (), None, 1, False)


def test_a_message_of_several_lines_is_folded_to_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    node = "/features/features.0/features.0.1/" + "BatchNormalization" * 3
    reasons = [f"BatchNormalization (53 nodes, first '{node}'): the operator is not supported", "no " * 40]
    report = Frame("run", as_json=False, timeout=None)
    report.fail(UnsupportedModel("\n  ".join(["the model cannot run on the device:", *reasons])))
    shown = capsys.readouterr().err
    assert max(map(len, shown.splitlines())) <= 80
    told = "".join(["npuctl: the model cannot run on the device:", *reasons])
    assert "".join(shown.split()) == "".join(told.split())
    assert report.errors[0]["message"].splitlines()[1] == "  " + reasons[0]


def test_what_compile_and_run_tell_fits_80_columns_however_long_names_are(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    name = "encoder/" + "a_layer_with_a_long_name/" * 4
    nodes = [helper.make_node(op, [name], [f"{op}_y"], name=name + op) for op in ("Multinomial", "NonZero")]
    net = model(nodes, {name: (np.float32, ("batch_dimension", 3))}, {"NonZero_y": np.int64})
    onnx.save(net, tmp_path / "net.onnx")
    body = getattr(compile_verb.command.callback, "__wrapped__", None)
    assert body is not None
    with pytest.raises(Failure) as caught:
        body(Frame("compile", as_json=False, timeout=None), str(tmp_path / "net.onnx"), False, "error", (), "generic")
    report = Frame("compile", as_json=False, timeout=None)
    report.folds = True
    report.fail(caught.value)
    shown = capsys.readouterr()
    assert max(map(len, (shown.out + shown.err).splitlines())) <= 80
    assert name in "".join(shown.err.split())


def test_a_path_in_a_message_and_the_command_of_a_remedy_stay_whole(capsys: pytest.CaptureFixture[str]) -> None:
    path, command = "/a/folder/" * 10 + "net.onnx", "pip install 'npu-sdk[models]' " * 3 + "now"
    report = Frame("run", as_json=False, timeout=None)
    report.folds = True
    report.fail(NpuError(f"{path}: it cannot be read", remedy=command))
    lines = [line.strip() for line in capsys.readouterr().err.splitlines()]
    assert path + ":" in lines and f"({command})" in lines
