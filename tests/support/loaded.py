"""What a loaded model has on its device."""

from __future__ import annotations

from sdk.model.device_model import DeviceModel
from sdk.model.model import Model
from sdk.model.parts import DeviceParts


def parts_of(model: Model) -> DeviceParts:
    """Its programs, lanes and weights."""
    assert isinstance(model, DeviceModel)
    return model._parts
