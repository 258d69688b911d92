"""A stranger's own image on the emulator: the command of docs/bring-up.md, its board, its UART, its end."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.support.children import environment, session_ends, session_members
from tests.support.paths import ROOT
from tests.support.pipes import read_line, read_rest, read_until
from tests.support.riscv import (
    CLINT,
    HERE,
    MIE,
    POWER_OFF,
    RAM,
    UART,
    WFI,
    addi,
    beq,
    code,
    csrw,
    j,
    lbu,
    li,
    lw,
    sb,
    sw,
)
from tests.support.small_elf import Segment, elf32
from tests.support.time_scale import patience
from tests.support.waiting import POLL_S

END_S = patience(120.0)
LSR = 5
MTIMECMP_HIGH = CLINT + 0x4004
MANY_BYTES = 150_000
"""More than a pipe and a backlog hold."""


def say(text: str, uart: int = UART) -> list[int]:
    """x5 holds the UART's address afterwards."""
    return [*li(5, uart), *(word for letter in text for word in (addi(6, 0, ord(letter)), sb(6, 5)))]


def end(exit_code: int) -> list[int]:
    return [*li(5, POWER_OFF), *li(6, exit_code << 16 | 0x3333), sw(6, 5), HERE]


ECHO = [lbu(7, 5, LSR), *li(8, 0x60), beq(7, 8, -12), lbu(6, 5), sb(6, 5)]
"""Waits for a byte and sends it back; it is in x6."""


def echo_until(letter: str) -> list[int]:
    return [*say("?\n"), *ECHO, addi(9, 0, ord(letter)), beq(6, 9, 8), j(-32), *end(0)]


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path


def image(folder: Path, *program: int) -> Path:
    """An ELF file of a program in RAM."""
    path = folder / "own.elf"
    path.write_bytes(elf32([Segment(RAM, code(*program))], RAM))
    return path


@contextmanager
def emulator(folder: Path, *arguments: object, before: str = "") -> Iterator[subprocess.Popen[bytes]]:
    """`npuctl emulate` in a session of its own, of which nothing is left in the end."""
    command = [sys.executable, "-m", "npuctl", "emulate", "--socket", folder / "own.sock", *arguments]
    shell = f"{before}exec " + " ".join(f"'{part}'" for part in command)
    with (folder / "log").open("wb") as messages:
        process = subprocess.Popen(
            ["sh", "-c", shell],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=messages,
            env=environment(),
            bufsize=0,
            start_new_session=True,
            cwd=ROOT,
        )
    try:
        yield process
        process.wait(END_S)
        assert session_ends(process.pid)
    finally:
        for pid in session_members(process.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait(END_S)
        for stream in (process.stdin, process.stdout):
            assert stream is not None
            with suppress(BrokenPipeError):
                stream.close()


def run(folder: Path, *arguments: object, before: str = "") -> tuple[bytes, int]:
    """Output and exit code."""
    with emulator(folder, *arguments, before=before) as process:
        output, _ = process.communicate(timeout=END_S)
    return output, process.returncode


def first_line(process: subprocess.Popen[bytes]) -> bytes:
    return read_line(process.stdout, END_S).encode()


def log(folder: Path) -> str:
    return (folder / "log").read_text("utf-8")


def test_its_output_is_on_the_terminal_and_its_exit_code_is_the_emulators(folder: Path) -> None:
    elf = image(folder, *say("hello\n"), *end(42))
    assert run(folder, "--firmware", elf, "--uart", "stdio") == (b"hello\n", 42)


def documented_board(folder: Path) -> Path:
    """The board of the page, as it stands there."""
    page = (ROOT / "docs" / "bring-up.md").read_text("utf-8")
    (text,) = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    path = folder / "board.toml"
    path.write_text(text, "utf-8")
    return path


def test_the_documented_board_starts_what_its_rom_holds(folder: Path) -> None:
    serial, mailbox, ram = 0x1001_0000, 0x4000_0000, RAM
    rom = [*li(9, mailbox), lw(10, 9), *li(11, ram), sw(10, 11), *say("rom\n", serial), *end(7)]
    (folder / "rom.bin").write_bytes(code(*rom))
    assert run(folder, "--board", documented_board(folder), "--uart", "stdio") == (b"rom\n", 7)


def test_the_documented_board_ends_at_an_access_to_nothing(folder: Path) -> None:
    (folder / "rom.bin").write_bytes(code(*say("rom\n", 0x1001_0000), *li(9, UART), lw(6, 9), *end(7)))
    assert run(folder, "--board", documented_board(folder), "--uart", "stdio") == (b"rom\n", 1)
    assert re.search(r"load at 0x10000000 by pc 0x2000\w+: nothing is there", log(folder))


def test_an_image_that_cannot_be_read_is_told_of(folder: Path) -> None:
    path = folder / "own.elf"
    path.write_bytes(b"no image")
    output, status = run(folder, "--firmware", path, "--uart", "stdio")
    assert (output, status) == (b"", 1)
    assert "7f 45 4c 46" in log(folder)
    assert "Traceback" not in log(folder)


@pytest.mark.parametrize("closing", ["<&- ", "<&- >&- ", "</dev/null "])
def test_standard_streams_may_be_closed(folder: Path, closing: str) -> None:
    elf = image(folder, *say("on\n"), *end(3))
    output, status = run(folder, "--firmware", elf, "--uart", "stdio", before=f"exec {closing}; ")
    assert (output, status) == (b"" if ">&-" in closing else b"on\n", 3)


def test_a_pipe_that_is_read_late_loses_nothing(folder: Path) -> None:
    loop = [addi(7, 7, -1), sb(6, 5), beq(7, 0, 8), j(-12)]
    elf = image(folder, *say(">\n"), *li(7, MANY_BYTES), *loop, *end(0))
    with emulator(folder, "--firmware", elf, "--uart", "stdio") as process:
        assert first_line(process) == b">\n"
        output, _ = process.communicate(timeout=END_S)
    assert (output, process.returncode) == (b"\n" * MANY_BYTES, 0)


def test_a_deadline_beyond_all_sleep_is_waited_for(folder: Path) -> None:
    far = [addi(6, 0, -1), *li(5, MTIMECMP_HIGH), sw(6, 5), *li(6, 1 << 7), csrw(MIE, 6)]
    elf = image(folder, *far, *say("waits\n"), WFI, *end(9))
    with emulator(folder, "--firmware", elf, "--uart", "stdio") as process:
        assert first_line(process) == b"waits\n"
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1.0)
        process.terminate()
    assert process.returncode == 0
    assert "Traceback" not in log(folder)


def test_what_is_typed_arrives(folder: Path) -> None:
    elf = image(folder, *echo_until("."))
    with emulator(folder, "--firmware", elf, "--uart", "stdio") as process:
        assert first_line(process) == b"?\n"
        output, _ = process.communicate(b"abc def" * 50 + b".", timeout=END_S)
    assert (output, process.returncode) == (b"abc def" * 50 + b".", 0)


def test_interrupting_the_foreground_ends_emulator_and_core(folder: Path) -> None:
    elf = image(folder, *say("spins\n"), HERE)
    with emulator(folder, "--firmware", elf, "--uart", "stdio") as process:
        assert first_line(process) == b"spins\n"
        os.killpg(process.pid, signal.SIGINT)
    assert process.returncode == 0


def test_the_core_does_not_outlive_a_killed_emulator(folder: Path) -> None:
    elf = image(folder, *say("spins\n"), HERE)
    with emulator(folder, "--firmware", elf, "--uart", "stdio") as process:
        assert first_line(process) == b"spins\n"
        assert len(session_members(process.pid)) >= 2
        process.kill()
        assert read_rest(process.stdout, END_S) == "", "the core had the other end, too"


def announced(folder: Path, process: subprocess.Popen[bytes], pattern: str) -> str:
    """Where its log says that the UART is."""
    deadline = time.monotonic() + END_S
    while not (found := re.search(pattern + r"\n", log(folder))):
        assert process.poll() is None and time.monotonic() < deadline, log(folder)
        time.sleep(POLL_S)
    return found[1]


def test_over_a_pseudo_terminal_it_answers_whoever_opens_it(folder: Path) -> None:
    elf = image(folder, *echo_until("."))
    with emulator(folder, "--firmware", elf, "--uart", "pty") as process:
        name = announced(folder, process, r"the UART is at (/dev/pts/\d+)")
        terminal = os.open(name, os.O_RDWR | os.O_NOCTTY)
        try:
            os.write(terminal, b"typed")
            got = read_until(terminal, lambda got: got.endswith(b"typed"), END_S)
            os.write(terminal, b".")  # the end: what is unread when the other side closes a terminal is lost
            process.wait(END_S)
        finally:
            os.close(terminal)
    assert (got, process.returncode) == (b"?\ntyped", 0)


def test_a_pseudo_terminal_that_nobody_opens_stops_nothing(folder: Path) -> None:
    loop = [addi(7, 7, -1), sb(6, 5), beq(7, 0, 8), j(-12)]
    elf = image(folder, *say(">"), *li(7, MANY_BYTES), *loop, *end(6))
    assert run(folder, "--firmware", elf, "--uart", "pty") == (b"", 6)


def ask(clients: Sequence[socket.socket], text: bytes) -> bytes:
    """What the last client gets for it."""
    clients[-1].sendall(text)
    # the first client may be there early enough for what is printed before
    got = read_until(clients[-1].fileno(), lambda got: got.endswith(text), END_S)
    assert got.endswith(text), got
    return got


def test_over_tcp_the_newest_client_has_the_uart(folder: Path) -> None:
    elf = image(folder, *echo_until("."))
    with emulator(folder, "--firmware", elf, "--uart", "tcp:0") as process:
        port = int(announced(folder, process, r"the UART is at 127\.0\.0\.1:(\d+)"))
        clients: list[socket.socket] = []
        try:
            for number in range(20):
                clients.append(socket.create_connection(("127.0.0.1", port), END_S))
                text = f"client {number}".encode()
                assert ask(clients, text).endswith(text)
            assert clients[0].recv(64) in (b"?\n", b"")
            assert ask(clients, b"x.") == b"x."
        finally:
            for client in clients:
                client.close()
    assert process.returncode == 0
