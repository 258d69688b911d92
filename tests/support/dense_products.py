"""A graph with some packed products unpacked: what onnxruntime multiplies quickly, and the numbers stay the same."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx
from onnx import helper, numpy_helper

from emulator.model.operators.packed_products import unpack


def with_dense_products(model: onnx.ModelProto, bits: Collection[int] = (8,)) -> onnx.ModelProto:
    """A copy in which each MatMulNBits without zero points, of weights of so many bits, is a MatMul of their floats."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    nodes = []
    for node in graph.node:
        sizes = {attribute.name: attribute.i for attribute in node.attribute}
        if node.op_type != "MatMulNBits" or sizes["bits"] not in bits or len(node.input) > 3:
            nodes.append(node)
            continue
        codes, scales = (numpy_helper.to_array(constants[name]) for name in node.input[1:3])
        integers = unpack(codes.reshape(sizes["N"], -1), sizes["bits"]).reshape(*scales.shape, sizes["block_size"])
        weights = (integers - np.float32(1 << (sizes["bits"] - 1))) * scales[..., None]
        dense = np.ascontiguousarray(weights.reshape(sizes["N"], -1)[:, : sizes["K"]].T, scales.dtype)
        graph.initializer.append(numpy_helper.from_array(dense, f"{node.output[0]}.dense"))
        nodes.append(helper.make_node("MatMul", [node.input[0], f"{node.output[0]}.dense"], node.output, node.name))
    del graph.node[:]
    graph.node.extend(nodes)
    read = {name for node in nodes for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in read]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    return copy
