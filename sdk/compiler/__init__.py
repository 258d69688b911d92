"""The compiler: ONNX models to programs for the device.

`loading.py` opens models and `reader.py` makes a `Graph` of one, once for all shapes; `lowering/` turns operators into
commands, `passes/` fold and fuse those, `plan.py` places tensors and encodes. The onnx package is imported when one of
these functions is first called.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sdk.compiler.compiled import ANY_SHAPE, CompiledProgram, Constant, Plan, Signature, TensorInfo

if TYPE_CHECKING:
    from sdk.compiler.graph import Graph
    from sdk.compiler.loading import ModelSource


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
) -> CompiledProgram:
    """See `compile.compile_model`."""
    from sdk.compiler import compile as compilation

    return compilation.compile_model(source, shapes, values)


__all__ = [
    "ANY_SHAPE",
    "CompiledProgram",
    "Constant",
    "Plan",
    "Signature",
    "TensorInfo",
    "compile_model",
    "model_signature",
    "read_model",
]
