"""What passes ask of matrix products and convolutions."""

from __future__ import annotations

from driver_shim.protocol.program_commands import Activation, CommandKind
from sdk.compiler.ir import Operation, Value, constant

CONVOLUTIONS = (CommandKind.CONV, CommandKind.CONV_TRANSPOSE)
PRODUCTS = (CommandKind.MATMUL, *CONVOLUTIONS)


def is_plain(operation: Operation | None) -> bool:
    """Whether an operation is a product of floats without activation."""
    if operation is None or operation.kind not in PRODUCTS or not operation.outputs[0].dtype.is_float:
        return False
    return bool(operation.attributes.activation == Activation.NONE)


def channel_axis(product: Operation) -> int:
    """The dimension of a product's result that has a bias for each place."""
    return 1 if product.kind in CONVOLUTIONS else len(product.outputs[0].shape) - 1


def by_channel(value: Value, product: Operation) -> Value | None:
    """The constant vector that broadcasting `value` to the product's result comes to, one element for each channel."""
    result = product.outputs[0]
    axis = channel_axis(product)
    if value.constant is None or value.dtype is not result.dtype or len(value.shape) > len(result.shape):
        return None
    channels = result.shape[axis]
    aligned = (1,) * (len(result.shape) - len(value.shape)) + value.shape
    if aligned != tuple(channels if i == axis else 1 for i in range(len(result.shape))):
        return None
    return constant(value.constant.reshape(channels))
