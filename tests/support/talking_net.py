"""A small net with random weights that reads and writes text: a whole GGUF file, vocabulary and template included."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.support.gguf_files import WIDTH, Net
from tests.support.gguf_files import write_gguf as write_net
from tests.support.small_chat import byte_level_metadata

CONTEXT = 1024
_OF_NETS = ("general.architecture", "tokenizer.ggml.tokens", "llama.")
"""What the net says itself."""


def write_gguf(path: Path, seed: int = 0, *, repeats_itself: bool = False) -> Path:
    """Write the file. A net that `repeats_itself` hardly heeds more than the last word, and so goes in circles."""
    metadata = byte_level_metadata()
    general = {name: value for name, value in metadata.items() if not name.startswith(_OF_NETS)}
    words = metadata["tokenizer.ggml.tokens"]
    deaf = {"blk.0.attn_output.weight": np.full((WIDTH, WIDTH), 1e-3, np.float32)} if repeats_itself else {}
    limits = {"context_length": CONTEXT}
    net = Net(layers=1, words=words, general=general, metadata=limits, changed=deaf, seed=seed)
    write_net(path, net)
    return path
