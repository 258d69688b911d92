"""Kernels of onnxruntime: one for one command, never more.

Each is a session over a model of that command alone; its constants are read where they lie in device memory, and packed
by onnxruntime when the session is made. All sessions of a process share one memory arena and one pool of threads.

Read `graph.py`, then `floats.py`, `quantised.py`, `packed_products.py` and `blocked.py`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from emulator.engines.kernels.onnxruntime import blocked, floats, packed_products, quantised
from emulator.engines.kernels.onnxruntime.session import session_kernel
from emulator.engines.kernels.provider import Kernel, KernelRequest
from emulator.model.operators import OPERATORS
from emulator.model.operators.arrays import Array, required

_BUILD = {**floats.BUILD, **quantised.BUILD, **packed_products.BUILD}
KINDS = _BUILD.keys()
"""Kinds of command that have a kernel here."""


block_size = blocked.block_size


def prepare(request: KernelRequest) -> Kernel | None:
    """A kernel of onnxruntime, where there is one that does exactly what the command means."""
    if request.blocks is not None:
        return blocked.prepare(request)
    build = _BUILD.get(request.kind)
    tensors = [*request.inputs, *request.outputs]
    if build is None or any(tensor is not None and not tensor.elements for tensor in tensors):
        return None
    graph = build(request)
    kernel = session_kernel(request, graph) if graph is not None else None
    return _finite(request, kernel) if kernel is not None and graph is not None and graph.finite else kernel


def _finite(request: KernelRequest, kernel: Kernel) -> Kernel:
    """The kernel where the data are finite; golden's else."""
    golden = functools.partial(OPERATORS[request.kind].run, request.attributes)

    def run(inputs: Sequence[Array | None], outputs: Sequence[Array]) -> None:
        chosen = kernel if np.isfinite(required(inputs, 0).sum()) else golden
        chosen(inputs, outputs)

    return run
