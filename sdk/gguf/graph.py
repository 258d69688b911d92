"""A graph of ONNX in the making: nodes, constants, and names that no two of them share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

OPSET, IR_VERSION = 24, 11
CONTRIB = "com.microsoft"
_CONTRIB_OPSET = 1

ELEMENT_TYPES: dict[np.dtype[Any], int] = {
    np.dtype(np.float32): TensorProto.FLOAT,
    np.dtype(np.float16): TensorProto.FLOAT16,
    np.dtype(ml_dtypes.bfloat16): TensorProto.BFLOAT16,
    np.dtype(np.int64): TensorProto.INT64,
    np.dtype(np.uint8): TensorProto.UINT8,
}


class Graph:
    """Nodes in order, straight into the model, since weights are large; methods return the name of what they make."""

    def __init__(self) -> None:
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(CONTRIB, _CONTRIB_OPSET)]
        self._model = onnx.ModelProto(ir_version=IR_VERSION, producer_name="npu-sdk", opset_import=opsets)
        self._graph = self._model.graph
        self._constants: set[str] = set()
        self._names: dict[str, int] = {}

    def _unused(self, name: str) -> str:
        """The name, with a number where it was taken before."""
        count = self._names[name] = self._names.get(name, 0) + 1
        return name if count == 1 else f"{name}.{count}"

    def constant(self, name: str, array: NDArray[Any]) -> str:
        """A constant; the same name is the same constant."""
        if name not in self._constants:
            self._constants.add(name)
            tensor = self._graph.initializer.add(name=name, data_type=ELEMENT_TYPES[array.dtype])
            tensor.dims.extend(array.shape)
            tensor.raw_data = np.ascontiguousarray(array).tobytes()
        return name

    def whole_numbers(self, *values: int) -> str:
        """A constant vector of int64, named after its values."""
        return self.constant(f"int64{list(values)}", np.array(values, np.int64))

    def node(self, op: str, inputs: Sequence[str], output: str, domain: str = "", **attributes: Any) -> str:
        """A node with one output, which gives it its name: the one given, or that with a number where it is taken."""
        return self.nodes(op, inputs, [output], domain, **attributes)[0]

    def nodes(
        self, op: str, inputs: Sequence[str], outputs: Sequence[str], domain: str = "", **attributes: Any
    ) -> list[str]:
        """A node with several outputs, the first of which gives it its name."""
        named = [self._unused(output) for output in outputs]
        self._graph.node.append(helper.make_node(op, inputs, named, name=named[0], domain=domain, **attributes))
        return named

    def input(self, name: str, dtype: int, shape: Sequence[str | int]) -> str:
        """An input of the graph."""
        self._graph.input.append(helper.make_tensor_value_info(name, dtype, shape))
        return name

    def output(self, name: str, dtype: int, shape: Sequence[str | int]) -> None:
        """An output of the graph, which a node makes."""
        self._graph.output.append(helper.make_tensor_value_info(name, dtype, shape))

    def model(self, name: str, metadata: Mapping[str, str]) -> onnx.ModelProto:
        """All of it, as a model."""
        self._graph.name = name
        helper.set_model_props(self._model, dict(metadata))
        return self._model
