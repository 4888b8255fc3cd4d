"""Interval attention for the rows of a CPU: one after the other, each sorted by order.

A pack lays its tokens out by stream, so what a query sees lies all over its row. Sorted by order it
lies together, and the blocks that somebody sees are few: of the pairs of `strokes_tiny`'s packs
15 % are visible, and of the pairs of blocks of 64 each row visits 36 %, where twelve rows together
would visit 58 %. So each row walks by itself, and the scores of a visit never leave the cache. What
that brings stands in docs/performance.md.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from process_gen.core.attention_mask import NEVER
from process_gen.kernels.chunked import chunked
from process_gen.kernels.key_block import KeyBlock

BLOCK = 64


def by_row(
    q_BxSxHxDh: jax.Array, order_BxS: jax.Array, blocks: Sequence[KeyBlock], block: int = BLOCK
) -> jax.Array:
    """Memory linear in Sq and Sk; see `interval_attention`. A `block` is the side of a visit.

    Up to twice as many queries have nothing to sort and go to `chunked` as they are.
    """
    if q_BxSxHxDh.shape[1] <= 2 * block:
        return chunked(q_BxSxHxDh, order_BxS, blocks)

    def row(one: tuple[jax.Array, jax.Array, tuple[KeyBlock, ...]]) -> jax.Array:
        q_SxHxDh, order_S, keys = one
        there_S = jnp.argsort(jnp.where(order_S < 0, NEVER, order_S))  # padding comes last
        ordered = [_ordered(x, jnp.argsort(x.visible_from_BxS)) for x in keys]
        out = chunked(_take(q_SxHxDh, there_S)[None], order_S[there_S][None], ordered, block)
        return _take(out[0], jnp.argsort(there_S))

    return jax.lax.map(row, (q_BxSxHxDh, order_BxS, tuple(blocks)))


def _ordered(keys: KeyBlock, index_S: jax.Array) -> KeyBlock:
    """The keys of one row, in another order and as a batch of one."""
    return KeyBlock(*(_take(x, index_S)[None] for x in keys))


def _take(x: jax.Array, index_S: jax.Array) -> jax.Array:
    return x.at[index_S].get(unique_indices=True, mode="promise_in_bounds")
