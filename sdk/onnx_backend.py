"""ONNX's own interface to what runs models (`onnx.backend.base`), on a device: for its test suite and its users.

    import sdk.onnx_backend as backend
    (y,) = backend.run_model(model, [x], device="NPU")

ONNX's device strings stand for addresses: "NPU" is what `sdk.Device()` opens, "CPU" the emulator, which computes on
this machine's CPU; an address that `sdk.Device` takes may be given in their place. One device per address is opened
when first needed, kept, and closed when the process ends.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx.backend.base import Backend, BackendRep, namedtupledict

from sdk.device import Device
from sdk.errors import UnsupportedModel
from sdk.model.model import Model
from sdk.shared_devices import kept_device

_SCHEMES = ("emulator", "pci", "vfio-user")
"""Of the addresses, those of devices that run models."""
_TAKEN = frozenset({"shapes", "fallback", "rtol", "atol"})
"""Further arguments of `prepare`: the first are `Device.load`'s; ONNX's suite hands in the tolerances it uses."""


class NpuBackendRep(BackendRep):  # type: ignore[misc]
    """A model that is loaded: what `prepare` returns. Let go, it leaves the device."""

    def __init__(self, model: Model) -> None:
        self._model = model

    def run(self, inputs: Sequence[Any] | Mapping[str, Any], **kwargs: Any) -> Any:
        """Run the model on arrays, in the order of its inputs or by name; a tuple that also knows the outputs' names.

        Raises what `sdk.Model` raises when called, and UnsupportedModel for shapes that the device cannot do.
        """
        _refuse_unknown(kwargs, frozenset())
        outputs = self._model(inputs) if isinstance(inputs, Mapping) else self._model(*inputs)
        names = [info.name for info in self._model.outputs]
        return namedtupledict("Outputs", names)(*(outputs[name] for name in names))


class NpuBackend(Backend):  # type: ignore[misc]
    """ONNX's `Backend`. Its methods are the functions of this module, too."""

    addresses: ClassVar[Mapping[str, str | None]] = {"CPU": "emulator", "NPU": None}
    """What ONNX's device strings stand for; None is the device that `sdk.Device()` opens."""

    @classmethod
    def supports_device(cls, device: str) -> bool:
        """Whether `prepare` takes this string. Nothing is opened."""
        return cls._type_of(device) in cls.addresses or device.partition(":")[0] in _SCHEMES

    @classmethod
    def is_compatible(cls, model: onnx.ModelProto, device: str = "CPU", **kwargs: Any) -> bool:
        """Whether the device takes the model; what depends on inputs' values or shapes only a run can tell."""
        try:
            cls.prepare(model, device, **kwargs)
        except UnsupportedModel:
            return False
        return True

    @classmethod
    def prepare(cls, model: onnx.ModelProto, device: str = "CPU", **kwargs: Any) -> NpuBackendRep:
        """Load a model (an `onnx.ModelProto`, path or bytes); `shapes` and `fallback` as in `sdk.Device.load`.

        Raises UnsupportedModel, ValueError for a device that is not supported, and what `sdk.Device` raises.
        """
        _refuse_unknown(kwargs, _TAKEN)
        loaded = cls.device(device).load(model, shapes=kwargs.get("shapes"), fallback=kwargs.get("fallback"))
        return NpuBackendRep(loaded)

    @classmethod
    def run_model(cls, model: onnx.ModelProto, inputs: Any, device: str = "CPU", **kwargs: Any) -> Any:
        """`prepare` and `run` once."""
        return cls.prepare(model, device, **kwargs).run(inputs)

    @classmethod
    def run_node(
        cls,
        node: onnx.NodeProto,
        inputs: Sequence[NDArray[Any]],
        device: str = "CPU",
        outputs_info: Sequence[tuple[Any, Sequence[int]]] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Run one operator on arrays for the inputs that it names, `opset_version` the newest if not given.

        `outputs_info` gives each output's dtype and shape; without it ONNX's inference does.
        """
        version = kwargs.pop("opset_version", None)
        return cls.run_model(_model_of(node, inputs, outputs_info, version), inputs, device, **kwargs)

    @classmethod
    def device(cls, device: str) -> Device:
        """The open device that a string stands for. Raises ValueError, and what `sdk.Device` raises."""
        if not cls.supports_device(device):
            known = ", ".join(map(repr, cls.addresses))
            raise ValueError(f"device {device!r} is not supported; there are {known} and the addresses of sdk.Device")
        return kept_device(cls.addresses.get(cls._type_of(device), device))

    @staticmethod
    def _type_of(device: str) -> str:
        """ONNX writes "CPU:0" for the first of a type."""
        return device.removesuffix(":0")


def _refuse_unknown(given: Mapping[str, Any], taken: frozenset[str]) -> None:
    unknown = sorted(given.keys() - taken)
    if unknown:
        raise TypeError(f"the argument {unknown[0]!r} is unknown" + (f"; there are {sorted(taken)}" if taken else ""))


def _model_of(
    node: onnx.NodeProto,
    inputs: Sequence[NDArray[Any]],
    outputs_info: Sequence[tuple[Any, Sequence[int]]] | None,
    version: int | None,
) -> onnx.ModelProto:
    """A model of one node."""
    named = list(dict.fromkeys(name for name in node.input if name))
    if len(named) != len(inputs):
        raise TypeError(f"{len(inputs)} arrays given; the node reads {len(named)}: {', '.join(named)}")
    taken = [_value_info(name, array.dtype, array.shape) for name, array in zip(named, inputs, strict=True)]
    written = [name for name in node.output if name]
    if outputs_info is None:
        given = [onnx.ValueInfoProto(name=name) for name in written]
    else:
        given = [_value_info(name, *info) for name, info in zip(written, outputs_info, strict=True)]
    graph = onnx.helper.make_graph([node], node.op_type, taken, given)
    opset = onnx.helper.make_operatorsetid(node.domain, version or _newest_version(node))
    model = onnx.helper.make_model_gen_version(graph, opset_imports=[opset])
    return onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)


def _newest_version(node: onnx.NodeProto) -> int:
    if not node.domain:
        return int(onnx.defs.onnx_opset_version())
    return int(onnx.defs.get_schema(node.op_type, node.domain).since_version)


def _value_info(name: str, dtype: Any, shape: Sequence[int]) -> onnx.ValueInfoProto:
    return onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), shape)


supports_device = NpuBackend.supports_device
is_compatible = NpuBackend.is_compatible
prepare = NpuBackend.prepare
run_model = NpuBackend.run_model
run_node = NpuBackend.run_node
