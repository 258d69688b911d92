"""Passes over a program's operations, each a function that rewrites them in place; `FUSING`, then `FINISHING`.

Lowerings say what each node means and look at nothing around it; what goes better together is found here.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from sdk.compiler.ir import Operation, Value
from sdk.compiler.passes.dead import remove_dead
from sdk.compiler.passes.fold import fold
from sdk.compiler.passes.fuse_activation import fuse_activation
from sdk.compiler.passes.fuse_addend import fuse_addend
from sdk.compiler.passes.fuse_attention import fuse_attention
from sdk.compiler.passes.fuse_batch_normalisation import fuse_batch_normalisation
from sdk.compiler.passes.fuse_bias import fuse_bias
from sdk.compiler.passes.fuse_block_offsets import fuse_block_offsets
from sdk.compiler.passes.fuse_gates import fuse_gates
from sdk.compiler.passes.fuse_layer_norm import fuse_layer_norm
from sdk.compiler.passes.fuse_packed_weights import fuse_packed_weights
from sdk.compiler.passes.fuse_quantised import fuse_quantised
from sdk.compiler.passes.fuse_quantised_elements import fuse_quantised_elements
from sdk.compiler.passes.merge_cache_heads import merge_cache_heads
from sdk.compiler.passes.merge_heads import merge_heads
from sdk.compiler.passes.rewriting import Pass, Rewriting
from sdk.compiler.passes.share_derived import share_derived
from sdk.compiler.passes.skip_clamp import skip_clamp
from sdk.compiler.passes.skip_expand import skip_expand
from sdk.compiler.passes.use_caches import use_caches
from sdk.compiler.states.binding import States

FUSING: tuple[Pass, ...] = (skip_expand, fuse_gates, fuse_layer_norm, fuse_attention)
FINISHING: tuple[Pass, ...] = (
    merge_heads,
    fuse_batch_normalisation,
    fuse_block_offsets,
    fuse_bias,
    skip_clamp,
    fuse_addend,
    fuse_activation,
    fuse_packed_weights,
    fuse_quantised,
    fuse_quantised_elements,
    fold,
    remove_dead,
)


def fused(operations: Sequence[Operation], outputs: Sequence[Value], states: States | None = None) -> Rewriting:
    """The operations that compute `outputs`, what goes best together as one command, but for what `finished` does.

    Each output is the result of an operation of its own. Where there are states, attention over them is over caches.
    Raises UnsupportedModel where it cannot be.
    """
    rewriting = Rewriting(operations, outputs)
    passes = FUSING
    if states is not None:
        caching: tuple[Pass, ...] = (partial(use_caches, states=states), partial(share_derived, states=states))
        passes = (*passes, *caching, merge_cache_heads)
    return _run(rewriting, passes)


def finished(rewriting: Rewriting) -> list[Operation]:
    """What `fused` gave with all other passes."""
    return _run(rewriting, FINISHING).operations


def _run(rewriting: Rewriting, passes: Sequence[Pass]) -> Rewriting:
    for rewrite in passes:
        rewrite(rewriting)
        rewriting.drop_absorbed()  # which the next one must not take for operations of the program
    return rewriting
