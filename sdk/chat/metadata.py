"""What a GGUF file says of itself, its vocabulary included."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from sdk.gguf.file import open_gguf

Metadata = Mapping[str, Any]
"""Name → number, bool, text, or a list of them."""


def read_metadata(path: str | os.PathLike[str]) -> Metadata:
    """All that a file says. Raises as `sdk.read_gguf` for a file that is no whole model."""
    file = open_gguf(path)
    return {key: file.value(key) for key in file.keys}
