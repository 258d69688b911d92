"""Float models to int8: `quantise.py` makes them, `losses.py` tells which layer loses most by it.

Both use onnxruntime (extra `models`), which computes what the calibration samples make of each tensor. It is imported
when one of the functions is first called, and nothing here needs a device.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

    from sdk.compiler.loading import ModelSource
    from sdk.quantisation.losses import LayerLoss
    from sdk.quantisation.quantise import Progress
    from sdk.quantisation.samples import Sample


def quantize(
    model: ModelSource,
    calibration: Iterable[Sample],
    *,
    form: str = "qdq",
    per_channel: bool = True,
    activations: str = "int8",
    operators: Sequence[str] | None = None,
    keep_float: Sequence[str] = (),
    progress: Progress | None = None,
) -> onnx.ModelProto:
    """See `quantise.quantize`."""
    from sdk.quantisation import quantise

    return quantise.quantize(
        model,
        calibration,
        form=form,
        per_channel=per_channel,
        activations=activations,
        operators=quantise.OPERATORS if operators is None else operators,
        keep_float=keep_float,
        progress=progress,
    )


def quantization_losses(model: ModelSource, quantised: ModelSource, samples: Iterable[Sample]) -> tuple[LayerLoss, ...]:
    """See `losses.quantization_losses`."""
    from sdk.quantisation import losses

    return losses.quantization_losses(model, quantised, samples)


__all__ = ["quantization_losses", "quantize"]
