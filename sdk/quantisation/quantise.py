"""`quantize`: an int8 model of a float one, by onnxruntime's quantiser."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import tempfile
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import version_converter

from driver_shim.errors import NpuError, UnsupportedModel
from sdk.compiler.loading import ModelSource, open_source, self_contained
from sdk.quantisation.mending import constants_are_no_inputs, separate_biases, sort_nodes
from sdk.quantisation.samples import Sample, SampleReader

Progress: TypeAlias = Callable[[str, int], object]
"""Told "prepare", "calibrate" and "quantize", each with how many samples were read so far."""
EXTRA = "models"
FORMS = {"qdq": "QDQ", "qoperator": "QOperator"}
ACTIVATIONS = {"int8": "QInt8", "uint8": "QUInt8"}
OPERATORS = (
    "Conv",
    "ConvTranspose",
    "Gemm",
    "MatMul",
    "MaxPool",
    "Relu",
    "Clip",
    "Flatten",
    "Reshape",
    "Squeeze",
    "Unsqueeze",
)
"""What has weights, where int8 saves most, and what passes int8 on as it is. Sums, norms and the like stay float: what
adds -1e38 to mask something leaves nothing of what it is added to."""
PER_CHANNEL_OPSET = 13
"""From there on DequantizeLinear knows scales per channel."""
QUANTISED = {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul"}


def quantize(
    model: ModelSource,
    calibration: Iterable[Sample],
    *,
    form: str = "qdq",
    per_channel: bool = True,
    activations: str = "int8",
    operators: Sequence[str] = OPERATORS,
    keep_float: Sequence[str] = (),
    progress: Progress | None = None,
) -> onnx.ModelProto:
    """The model in int8: weights as they are, activations by the range that they have over the calibration samples.

    `form` is "qdq" (QuantizeLinear and DequantizeLinear around each node) or "qoperator" (QLinearConv and the like);
    of `operators` nodes are quantised, but those that `keep_float` names. Raises NpuError without onnxruntime,
    UnsupportedModel for what is no model, TypeError or ValueError for samples that do not fit it, none at all, or a
    model with nothing to quantise.
    """
    _require_choice("form", form, FORMS)
    _require_choice("activations", activations, ACTIVATIONS)
    _require_names("operators", operators)
    _require_names("keep_float", keep_float)
    require_onnxruntime()
    from onnxruntime import quantization

    tell = progress or (lambda stage, samples: None)
    tell("prepare", 0)
    prepared = prepare(model)
    _require_float(prepared)
    _require_nodes(prepared, keep_float)
    _require_operators(prepared, operators)
    reader = _Reader(SampleReader(prepared).read(calibration), tell)
    with tempfile.TemporaryDirectory() as folder, _quiet(), _with_finite_ranges(reader):
        path = Path(folder) / "quantised.onnx"
        quantization.quantize_static(
            prepared,
            path,
            reader,
            quant_format=quantization.QuantFormat[FORMS[form]],
            per_channel=per_channel,
            activation_type=quantization.QuantType[ACTIVATIONS[activations]],
            weight_type=quantization.QuantType.QInt8,
            op_types_to_quantize=list(operators),
            nodes_to_exclude=list(keep_float),
        )
        quantised = onnx.load(path)
        _require_finite_scales(quantised)
    sort_nodes(quantised.graph)
    tell("quantize", reader.count)
    if not any(node.op_type in QUANTISED for node in quantised.graph.node):
        raise ValueError("nothing was quantised: the model has no node that is worth it, such as Conv, Gemm or MatMul")
    return quantised


def prepare(model: ModelSource) -> onnx.ModelProto:
    """The float model as it is quantised: norms made part of their convolutions, constants folded, shapes inferred."""
    require_onnxruntime()
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as folder, _quiet():
        given, prepared = Path(folder) / "given.onnx", Path(folder) / "prepared.onnx"
        plain = whole(model)
        constants_are_no_inputs(plain)
        onnx.save(_of_a_newer_opset(plain), given)
        quant_pre_process(given, prepared, skip_symbolic_shape=True)
        made = onnx.load(prepared)
    separate_biases(made)
    return made


def _of_a_newer_opset(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model, from `PER_CHANNEL_OPSET` on. Raises UnsupportedModel where onnx cannot bring it there."""
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 1)
    if opset >= PER_CHANNEL_OPSET:
        return model
    try:
        return version_converter.convert_version(model, PER_CHANNEL_OPSET)
    except (version_converter.ConvertError, RuntimeError, ValueError) as error:
        raise UnsupportedModel(
            f"the model is of opset {opset}, and cannot be brought to {PER_CHANNEL_OPSET} to be quantised: {error}",
            subsystem="quantisation",
            remedy=f"export it with opset_version={PER_CHANNEL_OPSET} or later",
        ) from error


def whole(source: ModelSource) -> onnx.ModelProto:
    """A copy of a model with all its data in it. Raises UnsupportedModel for what is none, OSError, TypeError."""
    return self_contained(open_source(source))


def require_onnxruntime() -> None:
    """Raise NpuError that names the extra to install unless onnxruntime is there."""
    if importlib.util.find_spec("onnxruntime") is None:
        raise NpuError(
            "onnxruntime, whose quantiser this uses, is not installed",
            subsystem="quantisation",
            remedy=f"pip install 'npu-sdk[{EXTRA}]'",
            code="missing-extra",
        )


class _Reader:
    """Samples as onnxruntime's calibration asks for them."""

    def __init__(self, samples: Iterator[dict[str, NDArray[Any]]], tell: Progress) -> None:
        self._samples, self._tell = samples, tell
        self.count = 0
        self.infinite = ""
        """Where the first of them that does holds infinity."""

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        sample = next(self._samples, None)
        if sample is not None:
            self.infinite = self.infinite or _infinite(sample, self.count)
            self.count += 1
            self._tell("calibrate", self.count)
        return sample


def _infinite(sample: dict[str, NDArray[Any]], position: int) -> str:
    names = [name for name, array in sample.items() if array.dtype.kind == "f" and np.isinf(array).any()]
    return f"sample {position}, input {names[0]!r}, holds infinity" if names else ""


class _InfiniteScale(Exception):
    """A scale of which nothing comes back."""


def _require_finite_scales(quantised: onnx.ModelProto) -> None:
    for tensor in quantised.graph.initializer:
        if tensor.name.endswith("_scale") and not np.isfinite(onnx.numpy_helper.to_array(tensor)).all():
            raise _InfiniteScale(tensor.name)


@contextlib.contextmanager
def _with_finite_ranges(reader: _Reader) -> Iterator[None]:
    """Raise ValueError where the quantiser asserts that it can scale a tensor, or a scale is infinite.

    Samples may hold infinities, in masks for one, as long as no such tensor is quantised.
    """
    try:
        yield
    except (AssertionError, _InfiniteScale) as error:
        if isinstance(error, AssertionError) and "scale" not in str(error):
            raise  # the caller's own, of its samples or its progress
        why = reader.infinite or "the model computes nan or infinity of them; keep_float leaves nodes float"
        raise ValueError(f"a tensor has no finite range over the samples: {why}") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """onnxruntime's quantiser logs advice on the root logger that does not fit here: what it advises is done.

    What it warns of while it computes with nan and infinity, `_with_finite_ranges` tells.
    """
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            yield
    finally:
        logging.disable(before)


def _require_choice(name: str, value: str, known: Iterable[str]) -> None:
    if value not in known:
        raise ValueError(f"{name}={value!r}; it is one of {', '.join(map(repr, known))}")


def _require_names(option: str, names: Any) -> None:
    if isinstance(names, str) or not isinstance(names, Collection) or not all(isinstance(name, str) for name in names):
        raise TypeError(f'{option} is a list of names, ["..."], not {names!r}')


def _require_operators(model: onnx.ModelProto, operators: Collection[str]) -> None:
    if not operators:
        raise ValueError("operators is empty: name those to quantise, or leave it out")
    there = {node.op_type for node in model.graph.node}
    unknown = [op for op in operators if op not in there and not onnx.defs.has(op)]
    if unknown:
        raise ValueError(f"operators names {unknown[0]!r}; neither ONNX nor the model has such an operator")


def _require_float(model: onnx.ModelProto) -> None:
    already = next((node for node in model.graph.node if node.op_type in QUANTISED), None)
    if already is not None:
        raise ValueError(f"the model is quantised already: node {already.name!r} is a {already.op_type}")


def _require_nodes(model: onnx.ModelProto, names: Sequence[str]) -> None:
    there = {node.name for node in model.graph.node}
    unknown = [name for name in names if name not in there]
    if unknown:
        raise ValueError(f"keep_float names {unknown[0]!r}; the model has no such node. quantization_losses lists them")
