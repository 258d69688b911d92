"""A model while it is read: its text, the arrays in it, and what was found wrong so far."""

from __future__ import annotations

import onnx

from driver_shim.protocol.types import UnsupportedType, constant_type
from sdk.compiler.loading import Source
from sdk.compiler.problems import MODEL, Problem, Reason, Subject
from sdk.compiler.tensor_data import Array

_T = onnx.TensorProto
DEFAULT_DOMAINS = ("", "ai.onnx")

COMPUTED_WITH = frozenset({_T.DOUBLE, _T.UINT16, _T.UINT32, _T.UINT64})
"""Types that the device does not have but that constants may be of, as long as they are computed with on the host."""

DECODE_ERRORS = (ValueError, TypeError, KeyError, IndexError, RuntimeError, OverflowError, MemoryError, OSError)
"""What the onnx package raises when it meets damaged data."""


class ModelText:
    """One model being read. `handled` names the operators that can be lowered."""

    def __init__(self, source: Source, handled: frozenset[str]) -> None:
        self.model = source.model
        self.data = source.data
        self.handled = handled
        self.problems: list[Problem] = []
        self.versions = {entry.domain: int(entry.version) for entry in self.model.opset_import}
        self.opset = 0
        """The model's version of the default operator set; 0 while there is no usable one."""

    def note(self, reason: str, subject: Subject = MODEL, code: Reason = Reason.MALFORMED) -> None:
        """Take down a problem."""
        self.problems.append(Problem(reason, subject, code))

    def array(self, tensor: onnx.TensorProto, subject: Subject, what: str = "") -> Array | None:
        """The tensor's array; None, and noted, when there is none. `what` says what of the subject it is."""
        try:
            kind = constant_type(tensor.data_type)
        except UnsupportedType as error:
            self.note(f"{what}{error}", subject, Reason.TYPE)
            return None
        array = self.array_of_any_type(tensor, subject, what)
        return None if array is None else array.astype(kind.dtype, copy=False)

    def array_of_any_type(self, tensor: onnx.TensorProto, subject: Subject, what: str) -> Array | None:
        """The same, also of types that the device does not have."""
        try:
            return self.data.array(tensor)
        except DECODE_ERRORS as error:
            missing = tensor.data_location == onnx.TensorProto.EXTERNAL
            self.note(f"{what}{'' if missing else 'damaged: '}{error}", subject)
        return None
