"""What onnxruntime's plug-in provider (`ort_provider/`, in C++) asks of the SDK: to load a graph, and to run it.

The library calls this module in the process's own interpreter; nobody else does. How programs come to it:
docs/onnxruntime.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from driver_shim.errors import UnsupportedModel
from driver_shim.protocol.config_space import VENDOR_ID
from driver_shim.protocol.types import WireType
from sdk.inference_session import check_options
from sdk.shared_devices import share
from sdk.version import VERSION

if TYPE_CHECKING:
    from sdk.model.model import Model

Given = tuple[str, int, tuple[int, ...], memoryview]
"""A tensor from onnxruntime: name, ONNX's number of the type, extents, memory that is its own."""
Computed = tuple[int, int, tuple[int, ...], NDArray[Any]]
"""An array for onnxruntime: address, bytes, extents, what keeps it there."""


def version() -> str:
    """The provider's version, which is the SDK's."""
    return VERSION


def vendor() -> int:
    """Whose cards the provider is for, as they say on PCI."""
    return VENDOR_ID


class ProviderSession:
    """The part of one onnxruntime session in a device. Thread-safe once `check` has returned.

    It is let go, not closed: that may happen in a garbage collection, in the middle of anything, where no lock may be
    waited for. Models and devices that are let go end by themselves.

    Raises what `sdk.Device` raises, and ValueError for options that there are not.
    """

    def __init__(self, options: Mapping[str, str]) -> None:
        check_options(options)
        self._share = share(options.get("device"))
        self._model: Model | None = None
        self._failure: Exception | None = None

    def claim(self, data: bytes) -> str:
        """Load the model: why the device cannot run it, "" if it can.

        What else goes wrong is no reason to run elsewhere, so it counts as claimed, and `check` raises it.
        """
        self._model = self._failure = None
        try:
            self._model = self._load(data)
        except UnsupportedModel as error:
            return str(error)
        except Exception as error:  # noqa: BLE001 - onnxruntime would only log it, and run the model elsewhere
            self._failure = error.with_traceback(None)  # whose frames would keep this
        return ""

    def check(self) -> None:
        """Raise what went wrong in `claim`."""
        if self._failure is not None:
            raise self._failure

    def run(self, given: Sequence[Given], wanted: Sequence[str]) -> tuple[tuple[Computed, ...], bool]:
        """Run the model: the outputs wanted, in that order, and whether Ctrl-C is to come once onnxruntime has them.

        Raises what `sdk.Model` raises when called.
        """
        try:
            return self._run(given, wanted), False
        except KeyboardInterrupt:  # onnxruntime would make an error of it; with it, a run comes to its end first
            return self._run(given, wanted), True

    def _load(self, data: bytes) -> Model:
        """The model, compiled now if its shapes are known, so that what they make impossible is known now, too."""
        model = self._share.device.load(data)
        known = {info.name: [info.shape] for info in model.inputs if all(isinstance(n, int) for n in info.shape)}
        if len(known) == len(model.inputs):
            try:
                model._compile_for(known)  # type: ignore[arg-type]
            except BaseException:
                model.close()
                raise
        return model

    def _run(self, given: Sequence[Given], wanted: Sequence[str]) -> tuple[Computed, ...]:
        if self._model is None:
            raise RuntimeError("no model is loaded")
        outputs = self._model({name: _as_array(kind, extents, memory) for name, kind, extents, memory in given})
        return tuple(_computed(np.asarray(outputs[name], order="C")) for name in wanted)


def _as_array(kind: int, extents: tuple[int, ...], memory: memoryview) -> NDArray[Any]:
    return np.frombuffer(memory, WireType(kind).dtype).reshape(extents)


def _computed(array: NDArray[Any]) -> Computed:
    return array.ctypes.data, array.nbytes, array.shape, array
