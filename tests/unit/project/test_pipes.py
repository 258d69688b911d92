"""What reads from another process ends, whatever that one does."""

from __future__ import annotations

import os
import pty

import pytest

from tests.support.children import start
from tests.support.pipes import read_line, read_rest, read_until


def test_it_ends_when_the_other_side_has_hung_up() -> None:
    ours, theirs = os.pipe()
    os.write(theirs, b"half a li")
    os.close(theirs)
    assert read_until(ours, lambda got: got.endswith(b"\n")) == b"half a li"
    os.close(ours)


def test_it_ends_when_the_other_side_of_a_terminal_is_gone() -> None:
    ours, theirs = pty.openpty()
    os.write(theirs, b"typed")
    os.close(theirs)
    assert read_until(ours, lambda _: False) == b"typed"
    os.close(ours)


def test_it_gives_up_on_who_says_nothing() -> None:
    ours, theirs = os.pipe()
    os.write(theirs, b"half")
    with pytest.raises(AssertionError, match=r"nothing more within 0.01 s after b'half'"):
        read_until(ours, lambda _: False, 0.01)
    os.close(ours)
    os.close(theirs)


def test_a_line_takes_nothing_of_what_follows() -> None:
    process = start("print('one'); print('two'); print('three'); print('four', end='')")
    try:
        assert read_line(process.stdout) == "one\n"
        assert read_line(process.stdout) == "two\n"
        assert read_rest(process.stdout) == "three\nfour"
        assert read_line(process.stdout) == ""
    finally:
        process.communicate(timeout=60)
