"""`npuctl demo`: classify files with magika's trained model on a device, every answer checked against onnxruntime."""

from __future__ import annotations

import dataclasses
import shutil
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click
import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from driver_shim.shared import import_guard
from sdk.cli import timeouts
from sdk.cli.demo_files import expand, own_files, shown
from sdk.cli.device_selection import device_option, open_for_comparison
from sdk.cli.exit_codes import ExitCode, Failure
from sdk.cli.frame import Frame
from sdk.cli.magika_peer import FEATURES, INPUT, OUTPUT, REFERENCE
from sdk.cli.verb import verb
from sdk.validate import barred

if TYPE_CHECKING:
    from sdk.device import Device
    from sdk.log_pages import Activity
    from sdk.validate.peer_process import Message

PEER = "sdk.cli.magika_peer"
SCREENFUL = 20
"""Files shown of this project's own."""
BATCH = 16
"""Files a run of the model; the last run takes what is left."""
SCORE_TOLERANCE = 1e-4
"""Largest difference of any score from onnxruntime's."""


class Answer(NamedTuple):
    """What the device says of one file, and what onnxruntime says."""

    path: str
    label: str
    score: float
    reference_label: str
    largest_difference: float

    @property
    def agrees(self) -> bool:
        """Same label, and every score within the tolerance."""
        return self.label == self.reference_label and self.largest_difference <= SCORE_TOLERANCE


@verb("demo", limit_s=timeouts.WORK_S)
@click.argument("paths", nargs=-1, type=click.Path(exists=True, path_type=Path))
@click.option("--all", "everything", is_flag=True, help="Show every file's answer. PATHS are shown whole anyway.")
@device_option
def command(frame: Frame, paths: tuple[Path, ...], everything: bool, wanted: tuple[str, ...]) -> None:
    """Classify files (default: this project's own) by content, on the device.

    A trained network of the magika package runs on the device; onnxruntime computes the same in a process of its own.
    Exit 0 only if all answers agree.
    """
    from sdk.validate import peer_process

    import_guard.install()
    files = expand(paths) if paths else own_files()
    peer_process.require("magika", extra="demo")
    frame.note(f"onnxruntime classifies {len(files)} files first, to compare with")
    peer = peer_process.ask(PEER, {"paths": [str(path) for path in files]}, {}, timeouts.PEER_S)
    if not peer.facts["classified"]:
        _show_skipped(frame, peer.facts["skipped"])
        raise Failure("none of the files has enough content for the model")
    with open_for_comparison(wanted, frame) as device:
        before, began = device.activity(), time.perf_counter()
        scores = classify(device, peer.facts["model"], peer.arrays[FEATURES])
        wall = time.perf_counter() - began
        work = _difference(before, device.activity())
        processes, holding = barred.holders(device.info.pid) if device.info.pid else ([], [])
        info = device.info
    answers = _answers(peer, scores)
    _show(frame, answers, peer.facts["skipped"], everything or bool(paths))
    entry = {
        "address": info.address,
        "model": peer.facts["model_name"],
        "files": [{**answer._asdict(), "agrees": answer.agrees} for answer in answers],
        "skipped": [{"path": path, "reason": reason} for path, reason in peer.facts["skipped"].items()],
        "reference": f"onnxruntime {peer.facts['onnxruntime']}",
        "kernels": info.kernels,
        "wall_seconds": wall,
        "device_model_seconds": work["busy_ticks"] / info.tick_hz if info.tick_hz else None,
        "activity": work,
        "device_processes": len(processes),
        "device_processes_with_onnxruntime": len(holding),
    }
    frame.add(entry)
    _show_work(frame, entry)
    wrong = sum(not answer.agrees for answer in answers)
    if holding:
        frame.fail(
            Failure(f"onnxruntime is loaded in the device's processes {holding}", ExitCode.UNHEALTHY), info.address
        )
    if wrong:
        frame.fail(Failure(f"{wrong} of {len(answers)} answers disagree", ExitCode.UNHEALTHY), info.address)
    else:
        frame.say(f"All {len(answers)} answers agree with onnxruntime {peer.facts['onnxruntime']}.")
        frame.say(next_step())


def classify(device: Device, model_path: str, features: NDArray[np.int32]) -> NDArray[np.float32]:
    """Scores [files, labels] of token rows [files, tokens], `BATCH` files a run, all runs in flight at once."""
    batches = [features[start : start + BATCH] for start in range(0, len(features), BATCH)]
    shapes = dict.fromkeys(batch.shape for batch in batches)
    model = device.load(model_path, shapes={INPUT: list(shapes)})
    events = [model.submit({INPUT: batch}) for batch in batches]
    return np.concatenate([event.result()[OUTPUT] for event in events])


def _difference(before: Activity, after: Activity) -> dict[str, int]:
    earlier = dataclasses.asdict(before)
    return {name: value - earlier[name] for name, value in dataclasses.asdict(after).items()}


def _answers(peer: Message, scores: NDArray[np.float32]) -> list[Answer]:
    labels, reference = peer.facts["labels"], peer.arrays[REFERENCE]
    differences = np.abs(scores - reference).max(axis=1)
    best, expected = scores.argmax(axis=1), reference.argmax(axis=1)
    return [
        Answer(path, labels[best[row]], float(scores[row, best[row]]), labels[expected[row]], float(differences[row]))
        for row, path in enumerate(peer.facts["classified"])
    ]


def a_screenful(answers: Sequence[Answer]) -> list[Answer]:
    """All that disagree; then agreeing ones up to `SCREENFUL`, of every type the lowest scores, lowest first."""
    wrong = [answer for answer in answers if not answer.agrees]
    right = sorted((answer for answer in answers if answer.agrees), key=_score)
    seen: Counter[str] = Counter()
    ranks = []
    for answer in right:
        ranks.append(seen[answer.label])  # 0 is the worst of its type
        seen[answer.label] += 1
    varied = [answer for _, answer in sorted(zip(ranks, right, strict=True), key=lambda pair: pair[0])]
    return sorted(wrong, key=_score) + sorted(varied[: max(0, SCREENFUL - len(wrong))], key=_score)


def _score(answer: Answer) -> float:
    return answer.score


def next_step() -> str:
    """What a newcomer may type now."""
    return f"Next, a model of your own: {tool_here()} run MODEL.onnx --verify"


def tool_here() -> str:
    """The tool as it can be called here."""
    tool = "npuctl"
    if shutil.which(tool) is not None:
        return tool
    return shown(sys.argv[0]) if Path(sys.argv[0]).name == tool else "python -m npuctl"


def _show(frame: Frame, answers: Sequence[Answer], skipped: Mapping[str, str], everything: bool) -> None:
    listed = answers if everything else a_screenful(answers)
    frame.console.print(_table(listed))
    if everything:
        _show_skipped(frame, skipped)
        return
    if len(listed) < len(answers):
        frame.say(f"{len(listed)} of {len(answers)} files, of each type those with the lowest scores")
        frame.say(f"all of them: {tool_here()} demo --all")
    if skipped:
        reasons = ", ".join(f"{count} {reason}" for reason, count in Counter(skipped.values()).items())
        frame.say(f"skipped: {reasons}")


def _table(answers: Sequence[Answer]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("file", overflow="fold")
    table.add_column("label")
    table.add_column("score", justify="right")
    table.add_column("onnxruntime")
    for answer in answers:
        verdict = "agrees" if answer.agrees else f"DIFFERS: {answer.reference_label}, {answer.largest_difference:.1e}"
        table.add_row(shown(answer.path), answer.label, f"{answer.score:.4f}", verdict)
    return table


def _show_skipped(frame: Frame, skipped: Mapping[str, str]) -> None:
    for path, reason in skipped.items():
        frame.say(f"skipped {shown(path)}: {reason}")


def _show_work(frame: Frame, entry: dict[str, Any]) -> None:
    work = entry["activity"]
    device_seconds = entry["device_model_seconds"]
    modelled = "" if device_seconds is None else f", {device_seconds * 1e3:.3f} ms (device_model)"
    frame.say()
    frame.say(f"{entry['address']}, kernels {entry['kernels']}:")
    frame.say(f"  commands: {work['commands']:,} (runs {work['exec_commands']:,}, copies {work['copy_commands']:,})")
    frame.say(f"  program commands: {work['program_commands']:,} ({work['fast_program_commands']:,} on fast kernels)")
    frame.say(f"  {work['bytes_copied']:,} bytes copied, {work['busy_ticks']:,} busy ticks{modelled}")
    frame.say(f"  {entry['wall_seconds']:.2f} s (wall), loading and compiling included")
    count = entry["device_processes"]
    if count and not entry["device_processes_with_onnxruntime"]:
        frame.say(f"  onnxruntime: barred from this process, loaded in none of the device's {count}")
