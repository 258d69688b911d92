"""A long load is told of on a terminal, and nowhere else."""

from __future__ import annotations

import io
import sys

import pytest

from sdk.cli import load_progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_where_stderr_is_no_terminal_nobody_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with load_progress.on_terminal() as tell:
        assert tell is None


@pytest.mark.parametrize("silent_s", [0.0, 3600.0])
def test_a_terminal_is_told_of_a_long_load_and_cleared_however_it_ends(
    monkeypatch: pytest.MonkeyPatch, silent_s: float
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(load_progress, "SILENT_S", silent_s)
    with pytest.raises(KeyboardInterrupt), load_progress.on_terminal() as tell:
        assert tell is not None
        tell(1, 8)
        tell(7, 8)
        raise KeyboardInterrupt
    assert terminal.getvalue() == ("\rloading: 12 %\rloading: 87 %\r\x1b[K" if silent_s == 0 else "")
