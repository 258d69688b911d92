"""The peer of language models: onnxruntime decodes in a process of its own, its states bound where they stay.

    with LanguagePeer() as peer:
        peer.seconds(model, step)       median seconds of one step

Two forms of one net are known: that of `read_gguf`, whose caches have room and are bound for input and output in turn,
and what exporters write (`growing`): floats, and pasts that grow by each step's tokens.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from benchmarks.onnxruntime_peer import ERRORS, PeerProcess

WARM_UP_STEPS = 2
_OFFSET_NODES = (".offset", ".offsets", ".sums", ".blocks")
"""Ends of the names of what the graph computes for blocks' offsets, which floats do not need."""


class Step(NamedTuple):
    """What is timed: so many new tokens in so many rows that have `context` tokens already."""

    rows: int
    tokens: int
    context: int


def growing(model: onnx.ModelProto, weights: dict[str, NDArray[np.float32]]) -> onnx.ModelProto:
    """The net of a graph that `read_gguf` made as exporters write it: matrices of floats, pasts that grow.

    `weights` has the matrices by the names that they have in the file, [outputs, inputs].
    """
    nodes: list[onnx.NodeProto] = []
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    updates: dict[str, tuple[str, str]] = {}
    """(past, new tokens) of each present."""
    for node in model.graph.node:
        name = node.output[0]
        if node.op_type == "MatMulNBits":
            nodes.append(_with_floats(constants, "MatMul", [node.input[0], ""], weights[node.input[1]].T, name))
        elif node.op_type == "GatherBlockQuantized":
            nodes.append(_with_floats(constants, "Gather", ["", node.input[1]], weights["token_embd.weight"], name))
        elif name.endswith(_OFFSET_NODES):
            continue
        elif node.op_type == "Add" and node.input[1].endswith(".offset"):
            nodes.append(onnx.helper.make_node("Identity", [node.input[0]], [name]))
        elif node.op_type == "TensorScatter":
            updates[name] = (node.input[0], node.input[1])
        elif node.op_type == "Attention":
            (past_k, k), (past_v, v) = (updates[which] for which in node.input[1:3])
            attention = onnx.helper.make_node(
                "Attention", [node.input[0], k, v, "", past_k, past_v], [name, *node.input[1:3]], is_causal=1
            )
            nodes.append(attention)
        else:
            nodes.append(node)
    used = {each for node in nodes for each in node.input}
    graph = onnx.helper.make_graph(
        nodes,
        "growing",
        [_open_length(entry) for entry in model.graph.input if entry.name in used],
        [_open_length(entry) for entry in model.graph.output],
        [tensor for tensor in constants.values() if tensor.name in used],
    )
    return onnx.helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)


def _with_floats(
    constants: dict[str, onnx.TensorProto], op: str, operands: list[str], matrix: NDArray[np.float32], output: str
) -> onnx.NodeProto:
    """A node that gives `output` of a matrix of floats, a new constant in place of the empty operand."""
    name = f"{output}.floats"
    constants[name] = numpy_helper.from_array(np.ascontiguousarray(matrix), name)
    return onnx.helper.make_node(op, [operand or name for operand in operands], [output])


def _open_length(entry: onnx.ValueInfoProto) -> onnx.ValueInfoProto:
    """The same with another length before and after a step."""
    copy = onnx.ValueInfoProto()
    copy.CopyFrom(entry)
    for dimension in copy.type.tensor_type.shape.dim:
        if dimension.dim_param == "max_tokens":
            dimension.dim_param = f"{entry.name.partition('.')[0]}_tokens"
    return copy


class LanguagePeer:
    """The process and what is asked of it. Raises RuntimeError with its last words when it died."""

    def __init__(self, threads: int) -> None:
        self._process = PeerProcess("benchmarks.language_peer", str(threads))

    def __enter__(self) -> LanguagePeer:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.close()

    def seconds(self, model: Path, step: Step, rounds: int) -> float:
        """Median seconds of such a step, states bound as they are from step to step."""
        return float(self._process.ask({"model": str(model), "step": step, "rounds": rounds}))


class _Decoder:
    """The process's side: one session, and its states as values of onnxruntime's own."""

    def __init__(self, model: str, threads: int) -> None:
        import onnxruntime

        self._runtime = onnxruntime
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = ERRORS
        self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self._shapes = {entry.name: entry.shape for entry in self._session.get_inputs()}
        self._pasts = [name for name in self._shapes if name.startswith("past")]
        self._grows = self._pasts and self._shapes[self._pasts[0]][2] != "max_tokens"

    def seconds(self, step: Step, rounds: int) -> float:
        samples = []
        held = {name: self._state(name, step) for name in self._pasts}
        spare = {name: self._state(name, step) for name in self._pasts}
        for number in range(rounds + WARM_UP_STEPS):
            context = step.context if self._grows else step.context + number * step.tokens
            took, presents = self._step(step, context, held, spare)
            samples.append(took)
            if not self._grows:
                held, spare = spare, held
            elif step.tokens == 1 and number < WARM_UP_STEPS:
                held = presents  # as a conversation does; then always the same step
                step = step._replace(context=step.context + 1)
        return statistics.median(samples[WARM_UP_STEPS:])

    def _state(self, name: str, step: Step) -> Any:
        length = step.context if self._grows else step.context + 64 * step.tokens
        _, heads, _, size = self._shapes[name]
        values = np.random.default_rng(1).normal(size=(step.rows, heads, length, size)).astype(np.float32)
        return self._runtime.OrtValue.ortvalue_from_numpy(values)

    def _step(
        self, step: Step, context: int, held: dict[str, Any], spare: dict[str, Any]
    ) -> tuple[float, dict[str, Any]]:
        inputs = {
            "input_ids": np.full((step.rows, step.tokens), 260, np.int64),
            "write_indices": np.full(step.rows, context, np.int64),
            "nonpad_kv_seqlen": np.full(step.rows, context + step.tokens, np.int64),
            "token_counts": np.full(step.rows, step.tokens, np.int64),
        }
        began = time.perf_counter()
        binding = self._session.io_binding()
        for name, array in inputs.items():
            if name in self._shapes:
                binding.bind_cpu_input(name, array)
        names = [entry.name for entry in self._session.get_outputs()]
        for name in self._pasts:
            binding.bind_ortvalue_input(name, held[name])
        for name in names:
            past = name.replace("present", "past_key_values")
            if past in spare and not self._grows:
                binding.bind_ortvalue_output(name, spare[past])
            else:
                binding.bind_output(name)
        self._session.run_with_iobinding(binding)
        outputs = dict(zip(names, binding.get_outputs(), strict=True))
        outputs["logits"].numpy()
        took = time.perf_counter() - began
        return took, {past: outputs[past.replace("past_key_values", "present")] for past in self._pasts}


def _serve(threads: int) -> None:
    decoder: tuple[str, _Decoder] | None = None
    for line in sys.stdin:
        request = json.loads(line)
        if decoder is None or decoder[0] != request["model"]:
            decoder = None
            decoder = request["model"], _Decoder(request["model"], threads)
        seconds = decoder[1].seconds(Step(*request["step"]), request["rounds"])
        sys.stdout.write(json.dumps(seconds) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
