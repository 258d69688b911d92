"""`npuctl compile`: what a model takes and how long, and what the device would not run; no device is needed."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from emulator.model.profile import named_profile
from sdk.cli import timeouts
from sdk.cli.chip_table import ChipEstimate, on_chips, remarks_on, table_of
from sdk.cli.exit_codes import Failure
from sdk.cli.frame import Frame
from sdk.cli.verb import verb

if TYPE_CHECKING:
    from sdk.compiler import TensorInfo
    from sdk.compiler.compiled import Plan
    from sdk.compiler.placement import NodePlacement

_NOTHING: dict[str, Any] = {"nodes": [], "by_value": [], "plan": None, "estimate": None, "chips": []}
DEFAULT_TARGET = "generic"
MOST_NAMED = 20
"""Lines of nodes that text for people names."""


@verb("compile", limit_s=timeouts.WORK_S)
@click.argument("model_path", metavar="MODEL.onnx", type=click.Path(exists=True, dir_okay=False))
@click.option("--check", is_flag=True, help="Only say what would be refused, or run on the host.")
@click.option("--fallback", type=click.Choice(["error", "cpu"]), default="error", show_default=True)
@click.option("--shape", "given", multiple=True, metavar="NAME=1,3,224,224", help="An input's shape; repeatable.")
@click.option(
    "--target",
    metavar="CHIP[,CHIP...]",
    default=DEFAULT_TARGET,
    show_default=True,
    help="The chip: a profile's name, or FILE.toml; several are shown side by side.",
)
def command(frame: Frame, model_path: str, check: bool, fallback: str, given: tuple[str, ...], target: str) -> None:
    """Compile a model without a device, and say what it takes.

    Dimensions that the model leaves open are 1 unless --shape says otherwise. A model that the device would not run as
    it is ends with exit code 1, unless --fallback cpu leaves the rest to the host.
    """
    from sdk.compiler import compile_program, read_model
    from sdk.compiler.compile import NeedsValues

    frame.folds = True
    targets = [each.strip() for each in target.split(",")]
    chip = named_profile(targets[0]) if len(targets) == 1 else DEFAULT_TARGET  # which refuses nothing for its types
    graph = read_model(model_path)
    shapes = _shapes(frame, graph.signature.inputs, given)
    try:
        program = compile_program(graph, target=chip, fallback="cpu", shapes=shapes)
        chips = [] if program.plan is None else on_chips(program, targets)
    except NeedsValues as error:
        named = ", ".join(map(repr, error.inputs))
        frame.sections["compile"] = {**_NOTHING, "model": model_path, "target": target, "by_value": list(error.inputs)}
        frame.tell(f"compiled when run, once for each value of {named}, on which shapes depend")
        return
    except (ValueError, FileNotFoundError) as error:
        raise click.UsageError(str(error)) from error
    plan = program.plan
    frame.sections["compile"] = {
        "model": model_path,
        "target": target,
        "nodes": [entry._asdict() for entry in program.report],
        "by_value": [],
        "plan": None if plan is None else _facts(plan),
        "estimate": chips[0].record()["estimate"] if chips else None,
        "chips": [each.record() for each in chips],
    }
    moved = [entry for entry in program.report if entry.code is not None]
    _say_where(frame, program.report, moved)
    if not check and plan is not None:
        _say_plan(frame, plan)
        _say_chips(frame, chips)
    if moved and fallback == "error":
        raise Failure(
            f"the device does not run {len(moved)} of {len(program.report)} nodes",
            slug="unsupported-model",
            remedy="--fallback cpu leaves them to onnxruntime; in programs fallback='cpu'",
        )


def _shapes(frame: Frame, inputs: Sequence[TensorInfo], given: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """A shape for every input that has none of its own. Raises click.UsageError."""
    shapes = {}
    for text in given:
        name, assigns, numbers = text.partition("=")
        extents = [part.strip() for part in numbers.split(",") if part.strip()]
        if not assigns or not all(part.isdigit() for part in extents):
            raise click.UsageError(f"--shape {text}: write NAME=1,3,224,224")
        shapes[name] = tuple(map(int, extents))
    opened = []
    for info in inputs:
        if info.name not in shapes and not all(isinstance(extent, int) for extent in info.shape):
            if info.shape == ("...",):
                raise click.UsageError(f"the model does not say the rank of {info.name!r}: give its shape with --shape")
            shapes[info.name] = tuple(extent if isinstance(extent, int) else 1 for extent in info.shape)
            opened.append(str(info))
    if opened:
        frame.remark(f"open dimensions are taken for 1: {', '.join(opened)}")
    return shapes


def _say_where(frame: Frame, report: Sequence[NodePlacement], moved: Sequence[NodePlacement]) -> None:
    if not moved:
        frame.tell(f"the device runs all {len(report)} nodes")
        return
    kinds = Counter((entry.op, entry.code, entry.reason) for entry in moved)
    frame.tell(f"the device runs {len(report) - len(moved)} of {len(report)} nodes; not:")
    for (op, code, reason), count in list(kinds.items())[:MOST_NAMED]:
        frame.tell(f"  {count} x {op}: {reason} ({code})")
    if len(kinds) > MOST_NAMED:
        frame.tell(f"  and {len(kinds) - MOST_NAMED} more kinds")


def _say_plan(frame: Frame, plan: Plan) -> None:
    frame.tell(f"{plan.commands} commands, {plan.macs:,} multiply-accumulates, {plan.moved_bytes:,} bytes moved")
    frame.tell(
        f"device memory {plan.peak_bytes:,} bytes: constants {plan.constants_bytes:,},"
        f" inputs and outputs {plan.operands_bytes:,},\n  workspace {plan.workspace_bytes:,}"
        f" (largest hole {plan.largest_hole_bytes:,}, without reuse {plan.unshared_workspace_bytes:,})"
    )


def _say_chips(frame: Frame, chips: Sequence[ChipEstimate]) -> None:
    """One chip in a line, several as a table."""
    if len(chips) > 1:
        frame.say()
        frame.console.print(table_of(chips))
        frame.tell("device_model: computed from each chip's figures, unfitted; real ones take longer")
    elif chips and (estimate := chips[0].estimate) is not None:
        least = "at least " if estimate.bounds_only_without else ""
        frame.tell(
            f"{least}{estimate.latency_ticks:,} ticks, {estimate.latency_seconds * 1e3:.3f} ms a run"
            f" (device_model, {estimate.profile})"
        )
    for remark in remarks_on(chips):
        frame.tell(remark)


def _facts(plan: Plan) -> dict[str, Any]:
    facts = {field.name: getattr(plan, field.name) for field in dataclasses.fields(plan) if field.name != "live"}
    return {**facts, "peak_bytes": plan.peak_bytes, "live": [each._asdict() for each in plan.live]}
