"""What onnxruntime's quantiser cannot take, and what it leaves in disorder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np
import onnx
from onnx import numpy_helper

BIASED = {"Conv": 2, "ConvTranspose": 2, "Gemm": 2}
"""Operator → the position of its bias."""


NEED_NOT_BE_INPUTS = 4
"""IR version from which initialisers may be left out of the inputs."""


def constants_are_no_inputs(model: onnx.ModelProto) -> None:
    """Take initialisers off the inputs: what is quantised cannot be given anew, and onnxruntime warns of each.

    Such models are also converted wrongly when only some of them are inputs, and the IR version wants all.
    """
    constants = {tensor.name for tensor in model.graph.initializer}
    kept = [value for value in model.graph.input if value.name not in constants]
    copies = [onnx.ValueInfoProto.FromString(value.SerializeToString()) for value in kept]
    del model.graph.input[:]
    model.graph.input.extend(copies)
    model.ir_version = max(model.ir_version, NEED_NOT_BE_INPUTS)


def separate_biases(model: onnx.ModelProto) -> None:
    """Make each bias of one dimension, and its node's alone.

    The quantiser raises at a Gemm's of [1, n]; of a bias that nodes share it makes copies, whose names may be taken.
    """
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    users = Counter(name for node in graph.node for name in node.input)
    taken = {*constants, *users, *(name for node in graph.node for name in node.output)}
    for node in graph.node:
        position = BIASED.get(node.op_type)
        if position is None or len(node.input) <= position or node.input[position] not in constants:
            continue
        name = node.input[position]
        values = numpy_helper.to_array(constants[name])
        flat = values.reshape(-1) if values.ndim == 2 and values.shape[0] == 1 else values
        if flat is values and users[name] == 1:
            continue
        fresh = _free_name(f"{name}/of/{node.output[0]}", taken)
        graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(flat), fresh))
        node.input[position] = fresh
        taken.add(fresh)


def _free_name(wanted: str, taken: set[str]) -> str:
    name = wanted
    while name in taken:
        name += "'"
    return name


def sort_nodes(graph: onnx.GraphProto) -> None:
    """Put every node behind those it depends on, also by what its branches use; else as they were.

    The quantiser sorts by the nodes' own inputs alone.
    """
    unmade = {name for node in graph.node for name in node.output if name}
    waiting, ordered = list(graph.node), list[onnx.NodeProto]()
    while waiting:
        left = []
        for node in waiting:
            if unmade.isdisjoint(_used(node)):
                ordered.append(node)
                unmade.difference_update(node.output)
            else:
                left.append(node)
        if len(left) == len(waiting):
            raise ValueError(f"the quantised graph is cyclic at node {left[0].name!r}")
        waiting = left
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in ordered]
    del graph.node[:]
    graph.node.extend(copies)


def _used(node: onnx.NodeProto) -> Iterator[str]:
    """Names of the tensors that a node and all within it take; those made within it among them."""
    yield from node.input
    for attribute in node.attribute:
        for branch in (attribute.g, *attribute.graphs):
            for inner in branch.node:
                yield from _used(inner)
