"""Kernels of numpy: matrix products from BLAS, no temporaries, weights packed once.

What a kernel does not speed up (a rare function or type) it computes the way golden does. Read `columns.py` first.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

from driver_shim.protocol.program_commands import CommandKind
from emulator.engines.kernels.numpy import (
    attention,
    caches,
    elementwise,
    normalise,
    packed_products,
    pooling,
    products,
    quantised,
    recurrent,
    regions,
    resizing,
    rotary,
    scales,
    selection,
)
from emulator.engines.kernels.provider import Kernel, KernelRequest

_RUN = {
    CommandKind.MATMUL: products.matmul,
    CommandKind.CONV: products.conv,
    CommandKind.CONV_TRANSPOSE: products.conv_transpose,
    CommandKind.UNARY: elementwise.unary,
    CommandKind.BINARY: elementwise.binary,
    CommandKind.CAST: elementwise.cast,
    CommandKind.ATTENTION: attention.attention,
    CommandKind.LAYER_NORM: normalise.layer_norm,
    CommandKind.GATHER_ELEMENTS: selection.gather_elements,
}
"""Kernels that have nothing to prepare."""
_PREPARE: dict[CommandKind, Callable[[KernelRequest], Kernel | None]] = {
    CommandKind.POOL: pooling.prepare_pool,
    CommandKind.QMATMUL: quantised.prepare_matmul,
    CommandKind.QCONV: quantised.prepare_conv,
    CommandKind.QUANTIZE: scales.prepare_quantize,
    CommandKind.DEQUANTIZE: scales.prepare_dequantize,
    CommandKind.RESIZE: resizing.prepare_resize,
    CommandKind.MATMUL_INTEGER: quantised.prepare_matmul_integer,
    CommandKind.CONV_INTEGER: quantised.prepare_conv_integer,
    CommandKind.QBINARY: quantised.prepare_binary,
    CommandKind.MATMUL_NBITS: packed_products.prepare_matmul_nbits,
    CommandKind.RECURRENT: recurrent.prepare,
    CommandKind.ROTARY: rotary.prepare_rotary,
    CommandKind.TOP_K: selection.prepare_top_k,
    CommandKind.CACHE_APPEND: caches.prepare_append,
    CommandKind.CACHE_ATTENTION: caches.prepare_attention,
    CommandKind.ROI_ALIGN: regions.prepare_roi_align,
    CommandKind.DEFORM_CONV: regions.prepare_deform_conv,
}
KINDS = _RUN.keys() | _PREPARE.keys()
"""Kinds of command that have a kernel here."""


def prepare(request: KernelRequest) -> Kernel | None:
    """A kernel of numpy, where there is one that is faster than golden."""
    if request.blocks is not None and request.kind is CommandKind.CONV:
        return None
    run = _RUN.get(request.kind)
    if run is not None:
        return functools.partial(run, request.attributes)
    packed = _PREPARE.get(request.kind)
    return packed(request) if packed is not None else None


def block_size() -> int:
    """None."""
    return 0
