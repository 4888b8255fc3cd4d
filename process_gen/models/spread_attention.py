"""Interval attention on a mesh: rows, heads and queries are spread, keys are gathered.

Each device keeps its own queries and gathers the keys and values of the devices that share its
rows. Grouped queries make that cheap: the keys and values of a layer are a fraction K / H of its
queries (docs/scaling.md compares it with a ring).
"""

from __future__ import annotations

import jax

from process_gen.core import axes
from process_gen.kernels.interval_attention import KeyBlock, interval_attention
from process_gen.sharding.spread import gatherer, spread


def attend(
    q_BxSxHxDh: jax.Array,
    order_BxS: jax.Array,
    own: KeyBlock,
    cached: KeyBlock | None,
    implementation: str,
) -> jax.Array:
    """`interval_attention` over a cache and the new tokens, wherever these lie.

    Args:
      q_BxSxHxDh, order_BxS: queries and their orders.
      own: keys and values of the same tokens.
      cached: of earlier tokens; every device that shares a row holds all of them.
      implementation: a key of `interval_attention.IMPLEMENTATIONS`.

    Returns:
      ``[B, S, H, Dh]``, spread as the queries are.
    """
    tokens = (axes.BATCH, axes.SEQUENCE)
    keys = (axes.KV_HEADS, None)
    heads = (*tokens, axes.HEADS, None)
    own_names = KeyBlock((*tokens, *keys), (*tokens, *keys), tokens, tokens)
    whole = (axes.BATCH, None)
    cached_names = KeyBlock((*whole, *keys), (*whole, *keys), whole, whole)

    gather = gatherer(axes.SEQUENCE, q_BxSxHxDh.shape[1])

    def run(q: jax.Array, order: jax.Array, own: KeyBlock, cached: KeyBlock | None) -> jax.Array:
        own = KeyBlock(*(gather(x, 1) for x in own))
        blocks = [own] if cached is None else [cached, own]
        return interval_attention(q, order, blocks, implementation)

    arguments = (q_BxSxHxDh, order_BxS, own, cached)
    names = (heads, tokens, own_names, None if cached is None else cached_names)
    return spread(run, arguments, names, heads)
