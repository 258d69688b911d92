"""Objects that belong to one process: what is said to whoever pickles or copies one."""

from __future__ import annotations

from typing import NoReturn, SupportsIndex

_INSTEAD = {
    "Device": "send its address, and open that there once it is closed here",
    "Queue": "send the device's address, open that there and make a queue",
    "Batch": "send what the calls are made of, and record them there",
    "Program": "send the model's path or the onnx.ModelProto, and compile that there",
    "Model": "send its file's path or the onnx.ModelProto, and load that there",
    "InferenceSession": "send its file's path or bytes, and make a session of them there",
    "State": "send what it holds: state.save(), and take model.state(restore=...) there",
    "HostBuffer": "send what it holds: buffer.array.copy()",
    "DeviceBuffer": "copy it into a host buffer, and send that one's host.array.copy()",
    "Span": "send what it holds: host.array[i:j].copy() of a host buffer, into which device memory is copied first",
    "Event": "send what it comes to: event.result()",
}
"""By class: what to send to another process, or to copy."""


class HereOnly:
    """Cannot be pickled or copied: there would be two that think that they own one thing of the device's.

    Or, as a program, it holds weights where its model's file is mapped.
    """

    __slots__ = ()

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        names = [kind.__name__ for kind in type(self).__mro__]
        instead = next(_INSTEAD[name] for name in names if name in _INSTEAD)
        raise TypeError(f"{names[0]} cannot be pickled or copied, it is this process's own: {instead}")
