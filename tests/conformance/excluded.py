"""Which cases are no demand on the device, each for one of five reasons. What is left must pass, or be in refused.txt.

Excluded cases run all the same: the device must refuse them, or be right.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterator

import numpy as np
import onnx

from driver_shim.protocol.types import INT64_STORAGE_MAX, INT64_STORAGE_MIN, UnsupportedType, wire_type
from tests.conformance.cases import Case, graphs_of


class Reason(enum.StrEnum):
    """Why a case is no demand."""

    TRAINING = "training"
    STRUCTURES = "strings, sequences, optionals, maps"
    RANDOM = "random"
    TYPES = "types that are not on the wire"
    UNBOUNDED = "output shapes that depend on data, without a bound"


OPERATORS: dict[str, Reason] = {
    "Bernoulli": Reason.RANDOM,
    "ConcatFromSequence": Reason.STRUCTURES,
    "ImageDecoder": Reason.UNBOUNDED,
    "Optional": Reason.STRUCTURES,
    "OptionalGetElement": Reason.STRUCTURES,
    "OptionalHasElement": Reason.STRUCTURES,
    "RandomUniformLike": Reason.RANDOM,
    "SequenceAt": Reason.STRUCTURES,
    "SequenceConstruct": Reason.STRUCTURES,
    "SequenceEmpty": Reason.STRUCTURES,
    "SequenceErase": Reason.STRUCTURES,
    "SequenceInsert": Reason.STRUCTURES,
    "SequenceLength": Reason.STRUCTURES,
    "SequenceMap": Reason.STRUCTURES,
    "SplitToSequence": Reason.STRUCTURES,
    "ai.onnx.preview.training.Adagrad": Reason.TRAINING,
    "ai.onnx.preview.training.Adam": Reason.TRAINING,
    "ai.onnx.preview.training.Gradient": Reason.TRAINING,
    "ai.onnx.preview.training.Momentum": Reason.TRAINING,
}
"""By an operator anywhere in the model."""

PATTERNS: dict[str, Reason] = {
    r"^node/training_dropout_": Reason.TRAINING,
    r"^node/batchnorm_.*_training_mode": Reason.TRAINING,
}
"""By the case's name: operators that have a mode for training."""


def reason_of(case: Case) -> Reason | None:
    """Why the case is excluded; None if it counts."""
    for operator in sorted(case.operators & OPERATORS.keys()):
        return OPERATORS[operator]
    for pattern, reason in PATTERNS.items():
        if re.search(pattern, case.id):
            return reason
    types = _types(case.model)
    if types & _STRUCTURES:
        return Reason.STRUCTURES
    if any(not _on_the_wire(kind) for kind in types) or _exceeds_int64(case):
        return Reason.TYPES
    return None


_STRUCTURES = {onnx.TensorProto.STRING, "sequence_type", "optional_type", "map_type"}


def _types(model: onnx.ModelProto) -> set[int | str]:
    """ONNX's numbers of the tensor types that the model declares or holds, and the names of what is no tensor."""
    return {kind for graph in graphs_of(model.graph) for kind in _types_of(graph)}


def _types_of(graph: onnx.GraphProto) -> Iterator[int | str]:
    for declared in (*graph.input, *graph.output, *graph.value_info):
        if declared.HasField("type"):
            yield from _kinds(declared.type)
    for tensor in graph.initializer:
        yield tensor.data_type
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR:
                yield attribute.t.data_type


def _kinds(declared: onnx.TypeProto) -> Iterator[int | str]:
    kind = declared.WhichOneof("value")
    if kind == "tensor_type":
        yield declared.tensor_type.elem_type
    elif kind is not None:
        yield kind


def _on_the_wire(kind: int | str) -> bool:
    if kind == onnx.TensorProto.UNDEFINED:
        return True  # left to inference
    try:
        wire_type(int(kind))
    except (UnsupportedType, ValueError):
        return False
    return True


def _exceeds_int64(case: Case) -> bool:
    """Whether int64 elements that go in or come out exceed what the device keeps of them."""
    whole = [array for array in case.arrays if array.dtype == np.int64 and array.size]
    return any(array.min() < INT64_STORAGE_MIN or array.max() > INT64_STORAGE_MAX for array in whole)
