"""How much device memory a model's states have, and how it is divided."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import numpy as np

from driver_shim.errors import OutOfDeviceMemory
from sdk.compiler.graph import Graph
from sdk.compiler.states import BLOCK_TOKENS, StateInfo, StateLayout, context_of

MOST_STATES = 256
"""Of one model: each has a row in the tables, whether it is in use or not."""
DEFAULT_CONTEXT = 4096
"""Tokens of a sequence, where a model does not say what it was trained for."""
DEFAULT_SEQUENCES = 16
"""Without `state_memory` there is room for so many of full length, but never more than half of the free memory."""
_UNITS = {"": 1, "B": 1, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "KB": 10**3, "MB": 10**6, "GB": 10**9}


def layout_for(
    states: Sequence[StateInfo], state_memory: int | str | None, graph: Graph, free_bytes: int
) -> StateLayout:
    """How a model's states are laid out: blocks for `state_memory`, or what is sensible where `free_bytes` are free.

    Raises ValueError, TypeError, OutOfDeviceMemory.
    """
    context = context_of(graph)
    block_bytes = BLOCK_TOKENS * sum(each.bytes_per_token for each in states)
    if state_memory is not None:
        size = memory_bytes(state_memory)
    else:
        wanted = DEFAULT_SEQUENCES * (context or DEFAULT_CONTEXT) * block_bytes // BLOCK_TOKENS
        weights = sum(array.nbytes for array in graph.initializers.values())
        size = min(wanted, max(free_bytes - weights, 0) // 2)
    if not block_bytes:  # nothing that grows
        return StateLayout(blocks=1, slots=MOST_STATES, entries=1)
    blocks = size // block_bytes
    if not blocks and state_memory is None:
        raise OutOfDeviceMemory(
            f"a block of {BLOCK_TOKENS} tokens takes {block_bytes} bytes of device memory; states get half of what is"
            f" free, {size} bytes",
            subsystem="memory",
            remedy="free buffers or models that are no longer needed",
            requested=block_bytes,
            available=size,
            largest=size,
        )
    if not blocks:
        raise ValueError(
            f"state_memory: {size} bytes are less than a block of {BLOCK_TOKENS} tokens takes, {block_bytes} bytes"
        )
    entries = blocks if context is None else min(blocks, -(-context // BLOCK_TOKENS))
    return StateLayout(blocks=blocks, slots=min(MOST_STATES, blocks), entries=entries)


def memory_bytes(text: int | str) -> int:
    """Bytes from a number or a text as "256MiB". Raises TypeError, ValueError."""
    if isinstance(text, bool) or not isinstance(text, (int, np.integer, str)):
        raise TypeError(f'state_memory takes bytes or a text as "256MiB", got {text!r}')
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", str(text), re.IGNORECASE)
    unit = None if found is None else _UNITS.get(found[2].upper())
    if found is None or unit is None or not 1 <= float(found[1]) * unit < math.inf:
        raise ValueError(f'state_memory={text!r}: use bytes above 0, or a text as "256MiB" or "8GiB"')
    return int(float(found[1]) * unit)
