"""What a chat says of the device, in lines that fit a terminal."""

from __future__ import annotations

import dataclasses

import pytest

from sdk.chat.figures import Figures, Meter, Phase
from sdk.chat.sampling import Sampler, Sampling
from sdk.chat.sequence import TokenSequence
from sdk.cli.chat_report import Setting
from tests.support.small_chat import StandInCounters, StandInModel, StandInState

SETTING = Setting("m.gguf", "emulator:generic", "auto", 1e9, 10**11, 1234.5, Sampler(Sampling(1.25), 2**32 - 1))


@pytest.fixture
def sequence() -> TokenSequence:
    return TokenSequence(StandInModel(8), StandInState(1_048_576), Meter(StandInCounters()))


def test_lines_fit_80_columns_whatever_the_numbers(sequence: TokenSequence) -> None:
    phase = Phase(1_048_576, 0.5, 10**9, 10**12)
    lines = SETTING.lines(Figures(phase, phase, 1_048_576, 999.0), sequence)
    assert max(map(len, lines)) <= 80


def test_both_clocks_are_named_and_divided_right(sequence: TokenSequence) -> None:
    figures = Figures(Phase(40, 2.0, 10**8, 400), Phase(10, 4.0, 5 * 10**8, 8500), first_token_seconds=2.5)
    text = "\n".join(SETTING.lines(figures, sequence))
    assert (
        "prefill: 40 tokens, for each 10 bytes crossed the bus\n    20.0 tokens/s (wall), 400.0 tokens/s (dev" in text
    )
    assert "decode: 10 tokens, for each 850 bytes crossed the bus\n    2.5 tokens/s (wall), 20.0 tokens/s (dev" in text
    assert "2.50 s to the first token (wall)" in text
    assert f"seed {2**32 - 1}: --seed repeats it" in text


def test_what_is_not_known_is_not_made_up(sequence: TokenSequence) -> None:
    setting = dataclasses.replace(SETTING, tick_hz=None, weights_bytes=None)
    text = "\n".join(setting.lines(Figures(Phase(4, 1.0, 0, 4)), sequence))
    assert "device_model" not in text
    assert "weights: unknown" in text
    assert "decode: no tokens made" in text
