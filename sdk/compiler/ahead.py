"""Compilation without a device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from emulator.model.profile import load_profile
from sdk.compiler.compile import NeedsValues, NodeRefused, Progress, compile_model, model_signature, read_model
from sdk.compiler.foreseen import values_given
from sdk.compiler.graph import Graph
from sdk.compiler.loading import ModelSource
from sdk.compiler.placement import Placement, place
from sdk.compiler.problems import Problem, Reason
from sdk.compiler.program import Program
from sdk.compiler.tensor_data import Array

FALLBACKS = ("error", "cpu")


def compile_program(
    model: ModelSource | Graph,
    target: str | Path,
    fallback: str,
    shapes: Mapping[str, Sequence[int]] | None,
    values: Mapping[str, Array] | None,
    progress: Progress | None,
) -> Program:
    """See `sdk.compiler.compile_program`."""
    if fallback not in FALLBACKS:
        raise ValueError(f"fallback={fallback!r}: use one of {', '.join(map(repr, FALLBACKS))}")
    load_profile(target)
    graph = values_given(read_model(model)) if values else read_model(model)
    if fallback == "error":
        model_signature(graph)
    refused: dict[int, Problem] = {}
    while True:
        placement = place(graph, refused)
        if not placement.is_whole:
            return Program(graph, None, placement.report(), target=target, fallback=fallback)
        try:
            compiled = compile_model(graph, shapes, values, target=target, progress=progress)
        except NeedsValues:
            raise
        except NodeRefused as error:
            if fallback == "error":
                raise
            refused.update({position: _problem(placement, error, position) for position in error.positions})
        else:
            return Program(graph, compiled, placement.report(), target=target, fallback=fallback)


def _problem(placement: Placement, error: NodeRefused, position: int) -> Problem:
    subject = next(node.subject for node in placement.graph.nodes if node.subject.position == position)
    found = error.problems[0]
    return Problem(found.reason, subject, Reason(found.code))
