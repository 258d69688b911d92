"""Language models of GGUF files as ONNX graphs, their quantised blocks kept as they are stored.

`file.py` opens a file and refuses what is none, `blocks.py` knows how each type lays out its blocks, `parameters.py`
what a file's metadata say of its net. `decoder.py` writes the graph, out of `weights.py` (products and embeddings) and
`graph.py` (nodes and constants). Vocabularies stay in the file: `open_gguf(path).value("tokenizer.ggml.tokens")`.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

    from sdk.gguf.file import GgufFile


def read_gguf(path: str | os.PathLike[str], *, logits: str = "last", dtype: str = "float32") -> onnx.ModelProto:
    """See `decoder.read_gguf`."""
    from sdk.gguf import decoder

    return decoder.read_gguf(path, logits=logits, dtype=dtype)


def open_gguf(path: str | os.PathLike[str]) -> GgufFile:
    """See `file.open_gguf`."""
    from sdk.gguf import file

    return file.open_gguf(path)


__all__ = ["open_gguf", "read_gguf"]
