"""The compiler: ONNX models to programs for the device.

`loading.py` reads models, `graph.py` checks their form, `lowering/` turns operators into commands, `ir.py` folds and
fuses, `plan.py` places tensors and encodes. The onnx package is imported when one of these functions is first called.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from sdk.compiler.compiled import CompiledProgram, Constant, Plan, Signature, TensorInfo

if TYPE_CHECKING:
    import onnx

    from sdk.compiler.loading import ModelSource


def read_model(source: ModelSource) -> onnx.ModelProto:
    """See `loading.read_model`."""
    from sdk.compiler import loading

    return loading.read_model(source)


def model_signature(model: onnx.ModelProto) -> Signature:
    """See `compile.model_signature`."""
    from sdk.compiler import compile as compilation

    return compilation.model_signature(model)


def compile_model(model: onnx.ModelProto, shapes: Mapping[str, Sequence[int]] | None = None) -> CompiledProgram:
    """See `compile.compile_model`."""
    from sdk.compiler import compile as compilation

    return compilation.compile_model(model, shapes)


__all__ = [
    "CompiledProgram",
    "Constant",
    "Plan",
    "Signature",
    "TensorInfo",
    "compile_model",
    "model_signature",
    "read_model",
]
