"""`quantization_losses`: what each layer loses, by running the float model and the quantised one side by side."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray

from sdk.compiler.loading import ModelSource
from sdk.quantisation.quantise import prepare, require_onnxruntime, whole
from sdk.quantisation.samples import Sample, SampleReader

ERRORS = 3
"""onnxruntime's severity."""
ABSORBED = ("Relu", "Clip")
"""What the quantiser leaves to the limits of int8, so that it names the node before by its output."""


class LayerLoss(NamedTuple):
    """How far a node's output in the quantised model is from the float model's."""

    node: str
    op: str
    output: str
    sqnr_db: float
    """Signal to noise at its output: all that was lost up to there."""
    added_noise: float
    """Noise at its output less the most at any of its inputs, as shares of the signal's power: what it loses itself."""

    def __str__(self) -> str:
        return f"{self.op} {self.node!r}: {self.sqnr_db:.1f} dB; of the signal's power it loses {self.added_noise:.3%}"


def quantization_losses(model: ModelSource, quantised: ModelSource, samples: Iterable[Sample]) -> tuple[LayerLoss, ...]:
    """What each node of the float model loses in the quantised one, over all samples; those that lose most first.

    `model` is what `quantize` was given, `quantised` what came of it in form "qdq". Nodes whose output only one of
    the two has are left out. Raises as `quantize` does, and ValueError when no node is left.
    """
    require_onnxruntime()
    floats, others = prepare(model), whole(quantised)
    shared = _shared_tensors(floats, others)
    if not shared:
        raise ValueError("the two models have no tensor in common: is one quantised from the other?")
    noise = _noise(floats, others, shared, SampleReader(floats).read(samples))
    makers = {node.output[0]: node for node in floats.graph.node}
    found = [_loss(_named_by(makers[name], makers, noise), makers[name], noise) for name in noise]
    return tuple(sorted(found, key=lambda loss: loss.added_noise, reverse=True))


def _shared_tensors(floats: onnx.ModelProto, others: onnx.ModelProto) -> dict[str, str]:
    """Output of a float node → what later nodes of the quantised model see of it: what came back from int8."""
    nodes = others.graph.node
    quantised = {node.input[0]: node.output[0] for node in nodes if node.op_type == "QuantizeLinear"}
    seen = {node.input[0]: node.output[0] for node in nodes if node.op_type == "DequantizeLinear"}
    there = {name for node in nodes for name in node.output}
    names = [node.output[0] for node in floats.graph.node if node.output[0] in there]
    return {name: seen.get(quantised.get(name, ""), name) for name in names}


def _noise(
    floats: onnx.ModelProto,
    others: onnx.ModelProto,
    shared: dict[str, str],
    samples: Iterator[dict[str, NDArray[Any]]],
) -> dict[str, float]:
    """Tensor → power of the difference, as a share of the float tensor's power."""
    names, counterparts = list(shared), list(shared.values())
    run_floats, run_others = _session(floats, names), _session(others, counterparts)
    signal, difference = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0.0)
    for sample in samples:
        pairs = zip(names, run_floats.run(names, sample), run_others.run(counterparts, sample), strict=True)
        for name, exact, lossy in pairs:
            if exact.dtype.kind == "f":
                signal[name] += float(np.square(exact, dtype=np.float64).sum())
                difference[name] += float(np.square(exact.astype(np.float64) - lossy).sum())
    return {name: difference[name] / signal[name] for name in names if signal[name]}


def _session(model: onnx.ModelProto, names: list[str]) -> Any:
    import onnxruntime

    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    already = {output.name for output in shown.graph.output}
    shown.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in already)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = ERRORS
    return onnxruntime.InferenceSession(shown.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _named_by(node: onnx.NodeProto, makers: dict[str, onnx.NodeProto], noise: dict[str, float]) -> onnx.NodeProto:
    """The node that did the work, where the one that gives the tensor was absorbed."""
    before = makers.get(node.input[0]) if node.input else None
    absorbed = node.op_type in ABSORBED and before is not None and before.output[0] not in noise
    return before if absorbed and before is not None else node


def _loss(node: onnx.NodeProto, giver: onnx.NodeProto, noise: dict[str, float]) -> LayerLoss:
    here = noise[giver.output[0]]
    before = max((noise.get(name, 0.0) for name in node.input), default=0.0)
    decibels = -10 * math.log10(here) if here else math.inf
    return LayerLoss(node.name or node.output[0], node.op_type, giver.output[0], decibels, max(0.0, here - before))
