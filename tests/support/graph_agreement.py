"""What two engines make of one random graph: whether it agrees, and the smallest part that does not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from sdk.compiler import compile_model
from tests.support.programs import run
from tests.support.random_graphs import Graph, Step, shapes_of, single

Array = NDArray[Any]
Engine = Callable[[onnx.ModelProto, Mapping[str, Array]], Mapping[str, Array]]
"""Runs a model."""

RELATIVE, OF_THE_LARGEST = 1e-3, 1e-4
"""How far two engines may lie apart: of an element, and of the largest in its tensor (1 at least)."""


def on_kernels(kernels: str) -> Engine:
    """The compiler and the emulator's engine."""
    return lambda net, inputs: run(compile_model(net, shapes_of(inputs)), inputs, kernels)


def agree(found: Mapping[str, Array], expected: Mapping[str, Array]) -> bool:
    """Whether all that is expected was found, but for the last bits of floats."""
    return all(near(found[name], array) for name, array in expected.items())


def near(found: Array, expected: Array) -> bool:
    """The same for one array."""
    if (found.shape, found.dtype) != (expected.shape, expected.dtype):
        return False
    if expected.dtype.kind in "biu":
        return bool(np.array_equal(found, expected))
    absolute = OF_THE_LARGEST * float(np.max(np.abs(expected), initial=1))
    return bool(np.allclose(found, expected, rtol=RELATIVE, atol=absolute))


def smallest(graph: Graph, engine: Engine) -> str:
    """The smallest part of a graph that an engine computes otherwise than golden kernels do node by node."""
    for step in graph.steps:
        found = engine(single(step), step.given)
        if not agree(found, step.results):
            return f"{told(step)}\n gives {dict(found)}\n instead of {dict(step.results)}"
    for count in range(1, len(graph.steps) + 1):
        if not agree(engine(graph.model(count), graph.inputs), graph.expected(count)):
            return "the nodes together: " + "; ".join(map(told, graph.steps[:count]))
    return "nothing smaller than the whole"


def told(step: Step) -> str:
    """A node with its data."""
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in step.proto.attribute}
    operands = [str({**step.given, **step.constants}[name].tolist()) for name in step.proto.input]
    return f"{step.proto.op_type} {attributes} of {', '.join(operands)}"
