"""What `npuctl demo` prints: a screenful that shows the most, or all that was asked for, within 80 columns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sdk.cli import demo
from sdk.cli.demo import SCREENFUL, Answer, a_screenful
from sdk.cli.frame import Frame

SKIPPED = {"a/empty": "empty", "b/empty": "empty", "c/short": "too little content (txt)"}
WORK = {
    "address": "emulator:generic",
    "kernels": "auto",
    "wall_seconds": 12345.678,
    "device_model_seconds": 123.456,
    "activity": dict.fromkeys(
        (
            "commands",
            "exec_commands",
            "copy_commands",
            "program_commands",
            "fast_program_commands",
            "bytes_copied",
            "busy_ticks",
        ),
        123_456_789,
    ),
    "device_processes": 13,
    "device_processes_with_onnxruntime": 0,
}


def answer(path: str, label: str, score: float, *, reference: str | None = None, difference: float = 0.0) -> Answer:
    return Answer(path, label, score, reference or label, difference)


MANY = [
    *(answer(f"python/{index}.py", "python", 0.5 + index / 2000) for index in range(600)),
    *(answer(f"c/{index}.c", "c", 0.99) for index in range(80)),
    answer("Makefile", "makefile", 1.0),
    answer("script.sh", "shell", 0.2),
    answer("off.md", "markdown", 0.999, difference=1e-3),
    answer("other.json", "json", 1.0, reference="yaml"),
]


def test_a_screenful_shows_disagreements_first_then_every_type_by_its_worst_score() -> None:
    shown = a_screenful(MANY)
    assert [one.path for one in shown[:3]] == ["off.md", "other.json", "script.sh"]
    assert len(shown) == SCREENFUL
    right = shown[2:]
    assert [one.score for one in right] == sorted(one.score for one in right)
    assert {one.label for one in right} == {"python", "c", "makefile", "shell"}
    assert {one.path for one in right if one.label == "python"} == {f"python/{index}.py" for index in range(8)}


def test_no_disagreement_is_left_out() -> None:
    wrong = [answer(f"{index}.py", "python", 0.9, reference="c") for index in range(3 * SCREENFUL)]
    assert set(a_screenful([*MANY, *wrong])) == {*wrong, *MANY[-2:]}


def test_few_answers_are_all_shown() -> None:
    assert sorted(a_screenful(MANY[-4:])) == sorted(MANY[-4:])


def printed(capsys: pytest.CaptureFixture[str], everything: bool) -> list[str]:
    demo._show(Frame("demo", as_json=False, timeout=None), MANY, SKIPPED, everything)
    return [line.rstrip() for line in capsys.readouterr().out.splitlines()]


def test_a_screenful_says_of_how_many_it_is_and_how_to_see_the_rest(capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(capsys, everything=False)
    assert len([line for line in lines if "agrees" in line]) == SCREENFUL - 2
    assert len([line for line in lines if "DIFFERS" in line]) == 2
    assert lines[-3:] == [
        f"{SCREENFUL} of {len(MANY)} files, of each type those with the lowest scores",
        f"all of them: {demo.tool_here()} demo --all",
        "skipped: 2 empty, 1 too little content (txt)",
    ]
    assert len(lines) <= SCREENFUL + 5
    assert max(map(len, lines)) <= 80


def test_everything_is_a_line_for_every_file(capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(capsys, everything=True)
    assert [line.split()[0] for line in lines[1 : len(MANY) + 1]] == [one.path for one in MANY]
    assert lines[len(MANY) + 1 :] == [f"skipped {path}: {reason}" for path, reason in SKIPPED.items()]


def test_what_the_device_did_fits_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    demo._show_work(Frame("demo", as_json=False, timeout=None), WORK)
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


@pytest.mark.parametrize(
    ("found", "typed", "tool"),
    [
        ("/usr/bin/npuctl", ".venv/bin/npuctl", "npuctl"),
        (None, ".venv/bin/npuctl", ".venv/bin/npuctl"),
        (None, "/somewhere/npuctl.py", "python -m npuctl"),
    ],
)
def test_the_next_step_can_be_typed_as_it_stands(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, found: str | None, typed: str, tool: str
) -> None:
    which: Any = lambda name: found  # noqa: E731
    monkeypatch.setattr("shutil.which", which)
    monkeypatch.setattr("sys.argv", [typed, "demo"])
    monkeypatch.chdir(tmp_path)
    step = demo.next_step()
    assert f"{tool} run MODEL.onnx --verify" in step
    assert len(step) <= 80
