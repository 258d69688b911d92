"""The cases of ONNX's backend suite, each with the suite's own function that runs and compares it."""

from __future__ import annotations

import dataclasses
import functools
import unittest
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx.backend.test import BackendTest
from onnx.backend.test.loader import load_model_tests

from sdk.device import Device
from sdk.onnx_backend import NpuBackend

KINDS = {
    "node": "NodeModel",
    "simple": "SimpleModel",
    "pytorch-converted": "PyTorchConvertedModel",
    "pytorch-operator": "PyTorchOperatorModel",
    "real": "RealModel",
}
"""What the suite's loader calls them, and what its runner does."""
DEVICE = "CPU"
"""Of the suite's two device strings, ours."""
TWO_UNITS_OF_FLOAT16 = 2.0**-9
"""In the last place, relative; bfloat16 is given as much by the suite."""
INEXACT = {name: {"atol": 1e-6} for name in ("test_dft_inverse", "test_dft_inverse_opset19")}
"""What is expected has 2e-7 where the right value is 0."""
DEFAULT_DOMAINS = ("", "ai.onnx")


class SuiteBackend(NpuBackend):
    """The backend that the suite is given: it has its device from the tests' fixture."""

    opened: Device

    @classmethod
    def device(cls, device: str) -> Device:
        """The one device of this test worker."""
        return cls.opened


@dataclasses.dataclass(frozen=True)
class Case:
    """One case of the suite."""

    kind: str
    name: str
    operator: str
    """The operator that it is about; its kind's name where it is about a whole model."""
    source: onnx.ModelProto | Path
    data: tuple[Any, ...]
    """What goes in and what is to come out; empty where the suite keeps it in files."""
    suite: type[unittest.TestCase]

    @property
    def id(self) -> str:
        """How refused.txt and pytest name it."""
        return f"{self.kind}/{self.name}"

    @functools.cached_property
    def model(self) -> onnx.ModelProto:
        """Its model."""
        return self.source if isinstance(self.source, onnx.ModelProto) else onnx.load(self.source)

    @property
    def operators(self) -> set[str]:
        """Every operator in it, those in subgraphs and functions too, domains but ONNX's own in front."""
        return {operator_name(node) for node in nodes_of(self.model)}

    @property
    def arrays(self) -> list[NDArray[Any]]:
        """The tensors that go in and are to come out, as far as the suite has them in memory."""
        return [array for item in self.data for array in _arrays(item)]

    def run(self) -> None:
        """Run it. Raises AssertionError for a wrong result, unittest.SkipTest where the backend refuses the model."""
        method = f"test_{self.name}_{DEVICE.lower()}"
        getattr(self.suite(method), method)()


def operator_name(node: onnx.NodeProto) -> str:
    """The operator of a node, with its domain unless that is ONNX's own."""
    return node.op_type if node.domain in DEFAULT_DOMAINS else f"{node.domain}.{node.op_type}"


def nodes_of(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Every node, those in subgraphs and functions too."""
    yield from _nodes(model.graph.node)
    for function in model.functions:
        yield from _nodes(function.node)


def graphs_of(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """The graph and all subgraphs."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                if inner.node:
                    yield from graphs_of(inner)


def _nodes(nodes: Any) -> Iterator[onnx.NodeProto]:
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _nodes(inner.node)


def _arrays(item: Any) -> Iterator[NDArray[Any]]:
    """The tensors in what the suite hands in: arrays, scalars, TensorProtos, lists of such."""
    if isinstance(item, onnx.TensorProto):
        yield onnx.numpy_helper.to_array(item)
    elif isinstance(item, (list, tuple)):
        for inner in item:
            yield from _arrays(inner)
    elif isinstance(item, (np.ndarray, np.generic)):
        yield np.asarray(item)


@functools.cache
def all_cases() -> tuple[Case, ...]:
    """Every case, node cases first."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some cases compute their data by numpy's overflows
        suites = BackendTest(SuiteBackend, __name__, test_kwargs=_tolerances()).test_cases
        return tuple(
            case for kind, category in KINDS.items() for case in _cases(kind, suites[f"OnnxBackend{category}Test"])
        )


def _tolerances() -> dict[str, dict[str, float]]:
    """By case, tolerances in place of the suite's own where those are less than what it compares with is exact to."""
    halves = [
        entry.name
        for entry in load_model_tests(kind="node")
        if any(output.type.tensor_type.elem_type == onnx.TensorProto.FLOAT16 for output in entry.model.graph.output)
    ]
    return {**{name: {"rtol": TWO_UNITS_OF_FLOAT16} for name in halves}, **INEXACT}


def _cases(kind: str, suite: type[unittest.TestCase]) -> Iterator[Case]:
    listed = sorted(load_model_tests(kind=kind), key=lambda entry: entry.name)
    about = {entry.name: operator_name(entry.model.graph.node[0]) for entry in listed if kind == "node"}
    for entry in listed:
        original, _, _ = entry.name.partition("_expanded")  # the same by the operator's function body
        name = entry.name.removeprefix("test_")
        data = tuple(item for data_set in entry.data_sets or () for part in data_set for item in part)
        yield Case(kind, name, about.get(original, kind), entry.model or _file(entry), data, suite)


def _file(entry: Any) -> Path:
    if entry.model_dir is not None:
        return Path(entry.model_dir) / "model.onnx"
    return Path(onnx.__file__).parents[1] / str(entry.url)
