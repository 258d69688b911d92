"""Steps of a graph of a GGUF file: what goes in, and what of its outputs goes into the next."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from sdk.compiler import compile_model
from tests.support.programs import run

Array = NDArray[Any]
Runner = Callable[[onnx.ModelProto, Mapping[str, Array]], Mapping[str, Array]]
MAX_TOKENS = 24


def on_kernels(kernels: str) -> Runner:
    """Runs a graph in process, without a device."""
    return lambda model, inputs: run(compile_model(model, {n: a.shape for n, a in inputs.items()}), inputs, kernels)


class Conversation:
    """Rows of a batch that grow by steps."""

    def __init__(self, model: onnx.ModelProto, batch: int, runner: Runner, *, max_tokens: int = MAX_TOKENS) -> None:
        self._model, self._runner = model, runner
        self._lengths = np.zeros(batch, np.int64)
        self.caches: dict[str, Array] = {}
        for info in model.graph.input:
            if info.name.startswith("past_key_values."):
                _, heads, _, size = (dimension.dim_value for dimension in info.type.tensor_type.shape.dim)
                dtype = onnx.helper.tensor_dtype_to_np_dtype(info.type.tensor_type.elem_type)
                self.caches[info.name] = np.full((batch, heads, max_tokens, size), 9, dtype)  # nothing may read this

    def step(self, ids: Sequence[Sequence[int]], tokens: int | None = None) -> Mapping[str, Array]:
        """Append tokens to each row, padded to `tokens` or the longest row's; returns the outputs."""
        counts = np.array([len(row) for row in ids])
        width = tokens or int(counts.max())
        padded = np.array([[*row, *[0] * (width - len(row))] for row in ids], np.int64)
        outputs = self._runner(
            self._model,
            {
                "input_ids": padded,
                "write_indices": self._lengths,
                "nonpad_kv_seqlen": self._lengths + width,
                "token_counts": counts,
                **self.caches,
            },
        )
        self._lengths = self._lengths + counts
        self.caches = {name: outputs[name.replace("past_key_values", "present")] for name in self.caches}
        return outputs
