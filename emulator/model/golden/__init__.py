"""Reference semantics of every program command: plain numpy, to be read beside the ONNX operator specification.

Silicon and the fast kernels must equal it. A kernel is a function of (attributes, inputs, outputs): `attributes`
as parsed from the container, `inputs` read-only arrays (None for an absent optional operand), `outputs` arrays to
fill. Kernels trust that `semantics.check` accepted their command. Data-dependent trouble raises KernelFault.

float16 and bfloat16 are widened to float32, computed with, and rounded once when stored.
"""

from __future__ import annotations

from driver_shim.protocol.program_commands import CommandKind
from emulator.model.golden import elementwise, linear, movement, quantised, reductions
from emulator.model.golden.common import Kernel, KernelFault

GOLDEN: dict[CommandKind, Kernel] = {
    CommandKind.MATMUL: linear.matmul,
    CommandKind.CONV: linear.conv,
    CommandKind.POOL: linear.pool,
    CommandKind.QMATMUL: quantised.qmatmul,
    CommandKind.QCONV: quantised.qconv,
    CommandKind.QUANTIZE: quantised.quantize,
    CommandKind.DEQUANTIZE: quantised.dequantize,
    CommandKind.UNARY: elementwise.unary,
    CommandKind.BINARY: elementwise.binary,
    CommandKind.WHERE: elementwise.where,
    CommandKind.CAST: elementwise.cast,
    CommandKind.REDUCE: reductions.reduce,
    CommandKind.ARGUMENT: reductions.argument,
    CommandKind.SOFTMAX: reductions.softmax,
    CommandKind.COPY: movement.copy,
    CommandKind.TRANSPOSE: movement.transpose,
    CommandKind.SLICE: movement.slice_,
    CommandKind.CONCAT: movement.concat,
    CommandKind.GATHER: movement.gather,
    CommandKind.PAD: movement.pad,
    CommandKind.EXPAND: movement.expand,
}
"""The golden kernel of each kind of command."""

__all__ = ["GOLDEN", "Kernel", "KernelFault"]
