"""Which blocks of keys a block of queries has to visit.

A block of queries spans the orders from its smallest to its largest, a block of keys the orders
from its smallest `visible_from` to its largest `visible_to`. Where the spans do not meet, no query
of the one sees a key of the other. The converse does not hold: a visited block may turn out hidden,
so whoever visits it still applies `core.attention_mask.may_attend` to every pair.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from process_gen.core.attention_mask import NEVER, PAD_ORDER

# A running maximum starts at FLOOR; hidden scores lie so far below it that their weight is exactly
# 0, whatever the maximum, and no infinity ever meets another one.
FLOOR, HIDDEN = -1e30, -1e38

PAIR_BITS = 16


def visited_blocks(
    order_BxSq: Any, visible_from_BxSk: Any, visible_to_BxSk: Any, block_q: int, block_k: int
) -> jax.Array:
    """The pairs of blocks whose spans of orders meet, ``bool[B, Sq / block_q, Sk / block_k]``.

    Args:
      order_BxSq: int32; a negative order is padding and visits nothing.
      visible_from_BxSk, visible_to_BxSk: int32 intervals of the keys.
      block_q, block_k: sizes of the blocks; the last one of each may be short.
    """
    order = jnp.asarray(order_BxSq)
    first_BxI = _reduced(jnp.min, jnp.where(order < 0, NEVER, order), block_q, NEVER)
    last_BxI = _reduced(jnp.max, order, block_q, PAD_ORDER)
    opens_BxJ = _reduced(jnp.min, jnp.asarray(visible_from_BxSk), block_k, NEVER)
    closes_BxJ = _reduced(jnp.max, jnp.asarray(visible_to_BxSk), block_k, PAD_ORDER)
    return (opens_BxJ[:, None] <= last_BxI[:, :, None]) & (
        first_BxI[:, :, None] <= closes_BxJ[:, None]
    )


def whole_blocks(
    order_BxSq: Any, visible_from_BxSk: Any, visible_to_BxSk: Any, block_q: int, block_k: int
) -> jax.Array:
    """The pairs of blocks in which every query sees every key, as `visited_blocks` has them."""
    first_BxI = _reduced(jnp.min, jnp.asarray(order_BxSq), block_q, PAD_ORDER)
    last_BxI = _reduced(jnp.max, jnp.asarray(order_BxSq), block_q, PAD_ORDER)
    opened_BxJ = _reduced(jnp.max, jnp.asarray(visible_from_BxSk), block_k, NEVER)
    closed_BxJ = _reduced(jnp.min, jnp.asarray(visible_to_BxSk), block_k, PAD_ORDER)
    return (opened_BxJ[:, None] <= first_BxI[:, :, None]) & (
        last_BxI[:, :, None] <= closed_BxJ[:, None]
    )


def _reduced(reduce: Any, x_BxS: jax.Array, block: int, fill: int) -> jax.Array:
    b, s = x_BxS.shape
    padded = jnp.pad(x_BxS, ((0, 0), (0, -s % block)), constant_values=fill)
    return reduce(padded.reshape(b, -1, block), -1)


def visit_lists(visited_IxJ: jax.Array) -> tuple[jax.Array, jax.Array]:
    """For every block i the blocks j to visit: ``int32[I, J]``, and how many, ``int32[I]``."""
    count_I = visited_IxJ.sum(-1, dtype=jnp.int32)
    return jnp.argsort(~visited_IxJ, axis=-1, stable=True).astype(jnp.int32), count_I


class Walks(NamedTuple):
    """All visits of a row's blocks in one line, block after block, for `parts` walkers.

    Attributes:
      pairs_BxPxN: int32 ``i << 16 | j``; behind the last visit it is repeated, so that nothing new
        is fetched.
      count_BxP: int32 visits of each walker; at least one for each of its blocks.
    """

    pairs_BxPxN: jax.Array
    count_BxP: jax.Array


def walks(visited_BxIxJ: jax.Array) -> Walks:
    """Deals the blocks i in turn to two walkers (one, if there is one block).

    A block that has nothing to visit visits j = 0 all the same: somebody has to write its zeros.
    """
    _, blocks, others = visited_BxIxJ.shape
    parts = min(2, blocks)
    visited = visited_BxIxJ.at[..., 0].set(visited_BxIxJ[..., 0] | ~visited_BxIxJ.any(-1))
    fill = -blocks % parts
    visited = jnp.pad(visited, ((0, 0), (0, fill), (0, 0)))
    own_BxPxIxJ = visited.reshape(-1, (blocks + fill) // parts, parts, others).swapaxes(1, 2)
    visited_BxPxN = own_BxPxIxJ.reshape(*own_BxPxIxJ.shape[:2], -1)
    count_BxP = visited_BxPxN.sum(-1, dtype=jnp.int32)
    n = jnp.argsort(~visited_BxPxN, axis=-1, stable=True).astype(jnp.int32)
    at = jnp.minimum(jnp.arange(n.shape[-1])[None, None], count_BxP[..., None] - 1)
    n = jnp.take_along_axis(n, at, -1)
    part = jnp.arange(parts, dtype=jnp.int32)[None, :, None]
    i, j = n // others * parts + part, n % others
    return Walks(i << PAIR_BITS | j, count_BxP)
