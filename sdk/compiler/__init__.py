"""The compiler: ONNX models to programs for the device.

`loading.py` opens models and `reader.py` makes a `Graph` of one, once for all shapes; `lowering/` turns operators into
commands, `passes/` fold and fuse those, `plan.py` places tensors and encodes. The onnx package is imported when one of
these functions is first called.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdk.compiler.compiled import ANY_SHAPE, CompiledProgram, Constant, LiveRange, Plan, Signature, TensorInfo

if TYPE_CHECKING:
    from sdk.compiler.graph import Graph
    from sdk.compiler.loading import ModelSource
    from sdk.compiler.program import Program
    from sdk.compiler.states import StateLayout, StatePair


def read_model(source: ModelSource | Graph) -> Graph:
    """See `compile.read_model`."""
    from sdk.compiler import compile as compilation

    return compilation.read_model(source)


def model_signature(source: ModelSource | Graph) -> Signature:
    """See `compile.model_signature`."""
    from sdk.compiler import compile as compilation

    return compilation.model_signature(source)


def compile_model(
    source: ModelSource | Graph,
    shapes: Mapping[str, Sequence[int]] | None = None,
    values: Mapping[str, Any] | None = None,
    *,
    states: StateLayout | None = None,
    pairs: Sequence[StatePair] | None = None,
    target: str | Path = "",
    progress: Callable[[int, int], None] | None = None,
) -> CompiledProgram:
    """See `compile.compile_model`."""
    from sdk.compiler import compile as compilation

    return compilation.compile_model(
        source, shapes, values, states=states, pairs=pairs, target=target, progress=progress
    )


def compile_program(
    model: ModelSource | Graph,
    *,
    target: str | Path = "generic",
    fallback: str = "error",
    shapes: Mapping[str, Sequence[int]] | None = None,
    values: Mapping[str, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Program:
    """Compile a model without a device.

    `target` names the chip, or is the path of a profile of one's own. With `fallback="cpu"` nodes that the device has
    no command for, or multiplies no such numbers, are left to the host; with "error" they are an error. `shapes` gives
    inputs' shapes by name, where the model leaves dimensions open; `values` those inputs' values that shapes depend on.
    `progress(done, of)` is told of every node, and may raise to cancel.

    Raises UnsupportedModel, which lists all that stands against it; ValueError; FileNotFoundError.
    """
    from sdk.compiler import ahead

    return ahead.compile_program(model, target, fallback, shapes, values, progress)


__all__ = [
    "ANY_SHAPE",
    "CompiledProgram",
    "Constant",
    "LiveRange",
    "Plan",
    "Signature",
    "TensorInfo",
    "compile_model",
    "compile_program",
    "model_signature",
    "read_model",
]
