"""`npuctl chat` from outside, with a stand-in for the model: streams, exit codes, the keys of a terminal."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support import chat_stand_in
from tests.support.needs import module_of_extra
from tests.support.npuctl import PATIENCE_S, Npuctl, environment
from tests.support.pipes import read_rest, read_until
from tests.support.small_chat import CONTEXT, byte_level_metadata, write_gguf

module_of_extra("jinja2", "chat")
module_of_extra("tokenizers", "chat")

STAND_IN = chat_stand_in.__name__
ANSWERS = "STAND_IN_ANSWERS"
SLOWLY = {"STAND_IN_SECONDS": "0.05"}
LONG = "a " * 100
CTRL_D = b"\x04"
A_MOMENT_S = 0.5


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Npuctl, str]]:
    """(tool, address) of one emulator shared by this module's tests."""
    folder = tmp_path_factory.mktemp("served")
    tool = Npuctl(folder, STAND_IN)
    with tool.served(folder / "npu.sock"):
        yield tool, f"vfio-user:{folder / 'npu.sock'}"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The path of a file with a small vocabulary."""
    return str(write_gguf(tmp_path_factory.mktemp("model") / "small.gguf", byte_level_metadata()))


def test_one_prompt_gets_one_answer_on_stdout_and_all_else_is_on_stderr(served: tuple[Npuctl, str], model: str) -> None:
    tool, address = served
    done = tool("chat", model, "--prompt", "Hi", "-d", address, STAND_IN_ANSWERS="Hello world é🙂")
    assert (done.returncode, done.stdout) == (0, "Hello world é🙂\n")
    told = (
        "prefill: ",
        "decode: ",
        "tokens/s (wall)",
        "tokens/s (device_model)",
        "bytes crossed the bus",
        "greedy",
    )
    for said in (f"at {address}", *told, "weights: 98,000,000 bytes resident", f"of {CONTEXT} tokens"):
        assert said in done.stderr
    figures = done.stderr.partition("kernels")[2].splitlines()[1:]
    assert figures and max(map(len, figures)) <= 80


def test_figures_can_be_left_out(served: tuple[Npuctl, str], model: str) -> None:
    tool, address = served
    done = tool("chat", model, "--prompt", "Hi", "-d", address, "--no-stats", STAND_IN_ANSWERS="Hello")
    assert done.stdout == "Hello\n" and "decode:" not in done.stderr


def test_without_a_device_a_private_emulator_is_started_and_named(tmp_path: Path, model: str) -> None:
    done = Npuctl(tmp_path, STAND_IN)("chat", model, "--prompt", "Hi", STAND_IN_ANSWERS="Hello")
    assert (done.returncode, done.stdout) == (0, "Hello\n")
    assert "started for this run" in done.stderr


def test_a_document_has_the_answer_and_what_it_took(served: tuple[Npuctl, str], model: str) -> None:
    tool, address = served
    document = tool.document("chat", model, "--prompt", "Hi", "-d", address, STAND_IN_ANSWERS="Hello world")
    answer = document["answer"]
    assert [device["address"] for device in document["devices"]] == [address]
    assert (answer["text"], answer["finish"], answer["prompt"]) == ("Hello world", "end", "Hi")
    assert answer["prefill"]["tokens"] == answer["prompt_tokens"]
    assert answer["decode"]["tokens"] == answer["tokens"] == 2
    assert answer["decode"]["device_model_seconds"] > 0
    assert answer["state_tokens"] == answer["prompt_tokens"] + answer["tokens"]
    assert answer["sampling"]["temperature"] == 0


def test_every_line_that_is_piped_in_is_a_prompt_of_one_conversation(served: tuple[Npuctl, str], model: str) -> None:
    tool, address = served
    first, second = tool.lines("chat", model, "-d", address, typed="Hi\n\nMore\n", STAND_IN_ANSWERS="the world\nand a")
    assert (first["answer"]["text"], second["answer"]["text"]) == ("the world", "and a")
    assert first["answer"]["reused_tokens"] == 0
    assert second["answer"]["reused_tokens"] == first["answer"]["state_tokens"]
    done = tool("chat", model, "-d", address, typed="Hi\nMore", STAND_IN_ANSWERS="the world\nand a")
    assert done.stdout == "the world\nand a\n"


def test_lines_may_be_commands(served: tuple[Npuctl, str], model: str) -> None:
    tool, address = served
    typed = "Hi\n/reset\n/etc is a folder\n/exit\nunread\n"
    first, second = tool.lines("chat", model, "-d", address, typed=typed, STAND_IN_ANSWERS="a")
    assert second["answer"]["prompt"] == "/etc is a folder"
    assert second["answer"]["reused_tokens"] < first["answer"]["prompt_tokens"]
    done = tool("chat", model, "-d", address, "--no-stats", typed="Hi\n/stats\n/help\n", STAND_IN_ANSWERS="a")
    assert done.stdout == "a\n"
    assert "decode: 1 tokens" in done.stderr and "/reset forgets" in done.stderr


def test_the_systems_message_comes_first(served: tuple[Npuctl, str], model: str) -> None:
    tool, address = served
    with_it, without = (
        tool.document("chat", model, "--prompt", "Hi", "-d", address, *more, STAND_IN_ANSWERS="a")["answer"]
        for more in (("--system", "the"), ())
    )
    assert with_it["prompt_tokens"] > without["prompt_tokens"]


def test_a_template_of_ones_own_is_taken(served: tuple[Npuctl, str], model: str, tmp_path: Path) -> None:
    tool, address = served
    template = tmp_path / "plain.jinja"
    template.write_text("{{ messages[-1].content }}", "utf-8")
    more = ("--template", str(template))
    answer = tool.document("chat", model, "--prompt", "the the", "-d", address, *more, STAND_IN_ANSWERS="a")["answer"]
    assert answer["prompt_tokens"] < 5


def test_an_answer_is_cut_after_max_tokens_and_that_is_said(served: tuple[Npuctl, str], model: str) -> None:
    tool, address = served
    done = tool("chat", model, "--prompt", "Hi", "-d", address, "--max-tokens", "3", STAND_IN_ANSWERS="aaaaaa")
    assert (done.returncode, done.stdout) == (0, "aaa\n")
    assert "stopped after 3 tokens; --max-tokens allows more" in done.stderr


def test_the_end_of_the_context_is_told_with_the_numbers(served: tuple[Npuctl, str], model: str) -> None:
    tool, address = served
    done = tool("chat", model, "--prompt", "Hi", "-d", address, "--context", "50", STAND_IN_ANSWERS=LONG)
    assert done.returncode == 0
    assert "the context of 50 tokens is full; /reset begins anew, --context 512 is the most" in done.stderr


def test_a_first_prompt_that_is_too_long_for_the_model_is_to_be_shorter(served: tuple[Npuctl, str], model: str) -> None:
    tool, address = served
    done = tool("chat", model, "--prompt", "x" * 600, "-d", address, STAND_IN_ANSWERS="a")
    assert done.returncode == 1
    assert f"the context has room for {CONTEXT} (say it in fewer words)" in done.stderr


def test_a_prompt_that_does_not_fit_is_refused_with_the_numbers(served: tuple[Npuctl, str], model: str) -> None:
    tool, address = served
    done = tool("chat", model, "--prompt", "x" * 100, "-d", address, "--context", "50", STAND_IN_ANSWERS="a")
    assert (done.returncode, done.stdout) == (1, "")
    assert "room for 50" in done.stderr and "--context 512" in done.stderr
    more = ("-d", address, "--context", "60")
    good, bad = tool.lines("chat", model, *more, code=1, typed=f"Hi\n{'x' * 100}\n", STAND_IN_ANSWERS="a")
    assert good["answer"]["text"] == "a"
    assert [error["code"] for error in bad["errors"]] == ["context-full"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("missing.gguf",),
        ("--context", "0"),
        ("--context", "513"),
        ("--max-tokens", "0"),
        ("--temperature", "-1"),
        ("--top-k", "0"),
        ("--top-p", "0"),
        ("--top-p", "1.5"),
        ("--repetition-penalty", "0"),
        ("--seed", "-1"),
    ],
)
def test_a_wrong_command_line_exits_2(tmp_path: Path, model: str, arguments: tuple[str, ...]) -> None:
    file = () if arguments[0].endswith("gguf") else (model,)
    done = Npuctl(tmp_path, STAND_IN)("chat", *file, *arguments, "--prompt", "Hi", STAND_IN_ANSWERS="a")
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"tokenizer.ggml.model": "bert"}, "'bert'"),
        ({"tokenizer.ggml.pre": "chameleon"}, "'chameleon'"),
        ({"tokenizer.chat_template": ""}, "--template FILE"),
        ({"tokenizer.chat_template": "{% for %}"}, "cannot be read"),
    ],
)
def test_a_file_that_cannot_chat_is_refused_before_a_device_is_opened(
    tmp_path: Path, changed: dict[str, str], said: str
) -> None:
    path = write_gguf(tmp_path / "wrong.gguf", byte_level_metadata(**changed))
    done = Npuctl(tmp_path, STAND_IN)("chat", str(path), "--prompt", "Hi", STAND_IN_ANSWERS="a")
    assert (done.returncode, done.stdout) == (1, "")
    assert said in done.stderr and "using" not in done.stderr


def test_a_device_that_is_not_there_exits_3(tmp_path: Path, model: str) -> None:
    done = Npuctl(tmp_path, STAND_IN)("chat", model, "--prompt", "Hi", "-d", "pci:ff:1f.7", STAND_IN_ANSWERS="a")
    assert done.returncode == 3


def test_help_fits_80_columns(tmp_path: Path) -> None:
    done = Npuctl(tmp_path)("chat", "--help", COLUMNS="200")
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_a_seed_repeats_a_run_and_one_that_was_drawn_is_told(served: tuple[Npuctl, str], model: str) -> None:
    tool, address = served
    drawn = ("chat", model, "--prompt", "Hi", "-d", address, "--temperature", "50", "--max-tokens", "8")
    first = tool.document(*drawn, STAND_IN_ANSWERS="aaaaaaaaa")["answer"]
    again = tool.document(*drawn, "--seed", str(first["sampling"]["seed"]), STAND_IN_ANSWERS="aaaaaaaaa")["answer"]
    assert again["text"] == first["text"] != "aaaaaaaa"


def test_a_reader_that_closes_the_pipe_early_is_fine(served: tuple[Npuctl, str], model: str) -> None:
    tool, address = served
    with started(tool, "chat", model, "--prompt", "Hi", "-d", address, answers=LONG) as process:
        assert process.stdout is not None
        process.stdout.close()
        errors = read_rest(process.stderr)
        assert process.wait(PATIENCE_S) == 0
    assert "Traceback" not in errors and "rror" not in errors


def test_ctrl_c_during_the_only_answer_exits_130(served: tuple[Npuctl, str], model: str) -> None:
    tool, address = served
    with started(tool, "chat", model, "--prompt", "Hi", "-d", address, answers=LONG) as process:
        assert process.stdout is not None
        read_until(process.stdout.fileno(), lambda got: b"a a" in got)
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE_S) == 130
        assert "Traceback" not in read_rest(process.stderr)


# --- on a terminal ---------------------------------------------------------------------------------------------


def test_on_a_terminal_ctrl_c_stops_the_answer_and_ctrl_d_ends(served: tuple[Npuctl, str], model: str) -> None:
    tool, address = served
    with on_a_terminal(tool, "chat", model, "-d", address, answers=f"{LONG}\nHello") as (process, terminal):
        read_until(terminal, lambda got: b"> " in got)
        os.write(terminal, b"Hi\n")
        read_until(terminal, lambda got: b"a a a" in got)
        os.killpg(process.pid, signal.SIGINT)
        read_until(terminal, lambda got: b"> " in got)
        os.write(terminal, b"More\n")
        read_until(terminal, lambda got: b"> " in got.partition(b"Hello")[2])
        os.killpg(process.pid, signal.SIGINT)  # with nothing to stop, it drops the line
        read_until(terminal, lambda got: b"> " in got)
        os.write(terminal, b"/nonsense\n")
        assert b"there is no /nonsense" in read_until(terminal, lambda got: b"> " in got)
        os.write(terminal, CTRL_D)
        assert b"decode:" in read_until(terminal, lambda got: b"greedy" in got)
        assert process.wait(PATIENCE_S) == 0


def test_on_a_terminal_ctrl_c_ends_what_is_no_talk_as_anywhere(served: tuple[Npuctl, str], model: str) -> None:
    tool, address = served
    arguments = ("chat", model, "-d", address, "--prompt", "Hi")
    with on_a_terminal(tool, *arguments, answers=LONG) as (process, terminal):
        read_until(terminal, lambda got: b"a a a" in got)
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(PATIENCE_S) == 130


def test_on_a_terminal_ctrl_c_twice_ends_a_chat_that_hangs(served: tuple[Npuctl, str], model: str) -> None:
    tool, address = served
    hangs = {"STAND_IN_SECONDS": "600"}
    with on_a_terminal(tool, "chat", model, "-d", address, answers="Hello world", **hangs) as (process, terminal):
        read_until(terminal, lambda got: b"> " in got)
        os.write(terminal, b"Hi\n")
        read_until(terminal, lambda got: chat_stand_in.ASLEEP.encode() in got)
        os.killpg(process.pid, signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(A_MOMENT_S)
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(PATIENCE_S) == 130


def test_a_model_cannot_drive_the_terminal(served: tuple[Npuctl, str], model: str) -> None:
    tool, address = served
    evil = "a\x1b[31mb\x07"
    arguments = ("chat", model, "-d", address, "--prompt", "Hi")
    with on_a_terminal(tool, *arguments, answers=evil) as (process, terminal):
        seen = read_until(terminal, lambda got: b"greedy" in got)
        assert process.wait(PATIENCE_S) == 0
    assert "a\ufffd[31mb\ufffd".encode() in seen
    assert tool(*arguments, STAND_IN_ANSWERS=evil).stdout == evil + "\n"


@contextmanager
def started(tool: Npuctl, *arguments: str, answers: str) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [sys.executable, "-m", tool.module, *arguments],
        env=environment(tool.runtime_folder, {ANSWERS: answers, **SLOWLY}),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        yield process
    finally:
        _end(process)
        for stream in (process.stdout, process.stderr):
            assert stream is not None
            stream.close()


@contextmanager
def on_a_terminal(
    tool: Npuctl, *arguments: str, answers: str, **variables: str
) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """The tool in a group of processes of its own, as a shell would start it; and what is seen of its terminal."""
    ours, theirs = pty.openpty()
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", tool.module, *arguments],
            env=environment(tool.runtime_folder, {ANSWERS: answers, "TERM": "dumb", **SLOWLY, **variables}),
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
        )
        try:
            yield process, ours
        finally:
            _end(process)
    finally:
        os.close(ours)
        os.close(theirs)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait(PATIENCE_S)
