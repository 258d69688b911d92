"""Fast kernels: one command each, as golden computes it but with matrix products from BLAS and without temporaries.

Equal to golden: integers to the bit, floats within the tolerances of
`tests/unit/emulator/engines/fast/test_kernels.py`. What a kernel does not speed up (a rare function or type) it
computes the way golden does. Importing this package registers them. Read `columns.py` first.
"""

from __future__ import annotations

from driver_shim.protocol.program_commands import CommandKind
from emulator.engines.fast import elementwise, linear, quantised
from emulator.engines.kernels import register

register(CommandKind.MATMUL, linear.matmul)
register(CommandKind.CONV, linear.conv)
register(CommandKind.QMATMUL, quantised.qmatmul)
register(CommandKind.QCONV, quantised.qconv)
register(CommandKind.UNARY, elementwise.unary)
register(CommandKind.BINARY, elementwise.binary)
register(CommandKind.CAST, elementwise.cast)
