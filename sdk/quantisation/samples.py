"""Calibration samples: one set of inputs each, checked against what the model takes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeAlias

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

Sample: TypeAlias = "Mapping[str, NDArray[Any]] | NDArray[Any]"
"""Arrays by input name; for a model of one input its array will do."""


class SampleReader:
    """A model's inputs, and samples as dicts of them."""

    def __init__(self, model: onnx.ModelProto) -> None:
        constants = {tensor.name for tensor in model.graph.initializer}
        self._inputs = {
            value.name: value.type.tensor_type for value in model.graph.input if value.name not in constants
        }

    def read(self, samples: Iterable[Sample]) -> Iterator[dict[str, NDArray[Any]]]:
        """Each sample, checked. Raises TypeError or ValueError that names it, ValueError when there are none."""
        if isinstance(samples, (np.ndarray, Mapping)):
            raise TypeError("samples are a list or another iterable of sets of inputs, not one set: put it into a list")
        if not isinstance(samples, Iterable):
            raise TypeError(f"samples are a list or another iterable of sets of inputs, not {type(samples).__name__}")
        count = 0
        for sample in samples:
            yield self._checked(sample, f"sample {count}")
            count += 1
        if not count:
            example = ", ".join(f"{name!r}: array" for name in self._inputs)
            raise ValueError(f"there are no samples; give some typical inputs: [{{{example}}}, ...]")

    def _checked(self, sample: Sample, which: str) -> dict[str, NDArray[Any]]:
        named = self._named(sample, which)
        wrong = [f"{name!r} is missing" for name in self._inputs if name not in named]
        wrong += [f"{name!r} is unknown" for name in named if name not in self._inputs]
        if wrong:
            raise ValueError(f"{which}: input {wrong[0]}; the model takes {', '.join(self._inputs)}")
        for name, array in named.items():
            self._check(f"{which}, input {name!r}", array, self._inputs[name])
        return named

    def _named(self, sample: Sample, which: str) -> dict[str, NDArray[Any]]:
        if isinstance(sample, Mapping):
            return dict(sample)
        if len(self._inputs) == 1:
            return {next(iter(self._inputs)): sample}
        raise TypeError(f"{which} is no dict, and the model takes {len(self._inputs)}: {', '.join(self._inputs)}")

    @staticmethod
    def _check(where: str, array: Any, wanted: onnx.TypeProto.Tensor) -> None:
        dtype = helper.tensor_dtype_to_np_dtype(wanted.elem_type)
        if not isinstance(array, np.ndarray):
            raise TypeError(f"{where}: expected an array of {dtype}, got {type(array).__name__}")
        if array.dtype != dtype:
            raise TypeError(f"{where}: expected {dtype}, got {array.dtype}; use x.astype({dtype.name!r})")
        if array.dtype.kind == "f" and np.isnan(array).any():
            raise ValueError(f"{where}: it holds nan, which says nothing of a range; leave the sample out")
        extents = [d.dim_value if d.dim_value > 0 else d.dim_param or "n" for d in wanted.shape.dim]
        fits = len(extents) == array.ndim and all(
            not isinstance(extent, int) or extent == got for extent, got in zip(extents, array.shape, strict=True)
        )
        if wanted.HasField("shape") and not fits:
            shown = ", ".join(map(str, extents))
            raise ValueError(f"{where}: expected shape ({shown}), got {array.shape}; reshape it, its batch included")
