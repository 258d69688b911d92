"""Helper processes that hold what must stay out of this one: they read a request on stdin and answer on stdout.

Request and answer are .npz archives of arrays and one JSON entry. bfloat16, which .npz cannot hold, travels as uint16
with its name in the JSON.
"""

from __future__ import annotations

import importlib.util
import io
import json
import subprocess
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from driver_shim.errors import NpuError
from driver_shim.shared.child_process import module_command

_FACTS = "facts.json"
_ARRAY = "array:"
_TAIL_CHARACTERS = 2000


class PeerError(NpuError):
    """The helper process has no answer."""


class Message(NamedTuple):
    """What goes either way: JSON-able facts and arrays by name."""

    facts: dict[str, Any]
    arrays: dict[str, NDArray[Any]]

    def encode(self) -> bytes:
        """As an .npz archive."""
        stream = io.BytesIO()
        text = json.dumps(self.facts).encode("utf-8")
        entries: dict[str, Any] = {_ARRAY + name: array for name, array in self.arrays.items()}
        entries[_FACTS] = np.frombuffer(text, np.uint8)
        np.savez(stream, **entries)
        return stream.getvalue()

    @classmethod
    def decode(cls, data: bytes) -> Message:
        """From an .npz archive."""
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            facts = json.loads(archive[_FACTS].tobytes())
            arrays = {name.removeprefix(_ARRAY): archive[name] for name in archive.files if name.startswith(_ARRAY)}
        return cls(facts, arrays)


def require(package: str, *, extra: str) -> None:
    """Raise PeerError that names the extra to install unless the package is there."""
    if importlib.util.find_spec(package) is None:
        raise PeerError(f"{package} is not installed; pip install 'npu-sdk[{extra}]' brings it", code="missing-extra")


def ask(module: str, facts: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]], timeout_s: float) -> Message:
    """Run `python -m MODULE` on a request. Raises PeerError with what it wrote on stderr."""
    request = Message(dict(facts), dict(arrays)).encode()
    command, environment = module_command(module)
    try:
        done = subprocess.run(
            command,
            env=environment,
            input=request,
            capture_output=True,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise PeerError(f"{module} did not answer within {timeout_s:g} s", code="peer-timeout") from None
    if done.returncode:
        tail = done.stderr.decode("utf-8", "replace").strip()[-_TAIL_CHARACTERS:]
        why = tail.splitlines()[-1] if tail else f"exit status {done.returncode}"
        raise PeerError(f"{module} failed: {why}", code="peer-failed")
    return Message.decode(done.stdout)


def request() -> Message:
    """In a helper: what was asked."""
    return Message.decode(sys.stdin.buffer.read())


def answer(facts: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
    """In a helper: the answer; the last thing it does."""
    sys.stdout.buffer.write(Message(dict(facts), dict(arrays)).encode())
    sys.stdout.buffer.flush()
