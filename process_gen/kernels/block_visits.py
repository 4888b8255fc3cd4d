"""Which blocks of keys a block of queries has to visit.

A block of queries spans the orders from its smallest to its largest, a block of keys the orders
from its smallest `visible_from` to its largest `visible_to`. Where the spans do not meet, no query
of the one sees a key of the other. The converse does not hold: a visited block may turn out hidden,
so whoever visits it still applies `core.attention_mask.may_attend` to every pair.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from process_gen.core.attention_mask import NEVER, PAD_ORDER


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


def _reduced(reduce: Any, x_BxS: jax.Array, block: int, fill: int) -> jax.Array:
    b, s = x_BxS.shape
    padded = jnp.pad(x_BxS, ((0, 0), (0, -s % block)), constant_values=fill)
    return reduce(padded.reshape(b, -1, block), -1)


def visit_lists(visited_BxIxJ: jax.Array) -> tuple[jax.Array, jax.Array]:
    """For every block i the blocks j to visit, in ascending order.

    Returns:
      ``int32[B, I, J]`` blocks; behind the last one it is repeated, so that a pipeline that fetches
      ahead fetches nothing new (a list without visits is filled with one block, whichever);
      ``int32[B, I]`` the number of visits.
    """
    count_BxI = visited_BxIxJ.sum(-1, dtype=jnp.int32)
    blocks = jnp.argsort(~visited_BxIxJ, axis=-1, stable=True).astype(jnp.int32)
    step = jnp.arange(visited_BxIxJ.shape[-1], dtype=jnp.int32)
    at = jnp.minimum(step[None, None], jnp.maximum(count_BxI - 1, 0)[..., None])
    return jnp.take_along_axis(blocks, at, -1), count_BxI
