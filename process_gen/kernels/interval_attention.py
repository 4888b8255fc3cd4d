"""Attention under the interval rule of `core.attention_mask`, for training and for the KV cache.

One interface, `interval_attention`: queries with an order each, and one or more blocks of keys and
values with an interval each (a cache and the new tokens, say, which need not be copied together).
Grouped query heads are supported. A query that sees no key returns 0 and has zero gradient.

* `dense` holds the scores of one layer, ``[B, H, Sq, Sk]``; the reference, and fastest for the
  short rows of the miniature.
* `chunked` walks over blocks of keys with a running softmax and recomputes them in the backward
  pass: no Sq x Sk array on any platform.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from process_gen.core.attention_mask import NEVER, PAD_ORDER, dense_mask


class KeyBlock(NamedTuple):
    """Keys and values that a query may see.

    Attributes:
      k_BxSxKxDh, v_BxSxKxDh: keys (normed and rotated) and values.
      visible_from_BxS, visible_to_BxS: int32 intervals of orders.
    """

    k_BxSxKxDh: jax.Array
    v_BxSxKxDh: jax.Array
    visible_from_BxS: jax.Array
    visible_to_BxS: jax.Array


Attention = Callable[[jax.Array, jax.Array, Sequence[KeyBlock]], jax.Array]


def _fold(q_BxSxHxDh: jax.Array, kv_heads: int) -> jax.Array:
    """Query heads of one group become rows of one matrix, ``[B, K, H/K * S, Dh]``."""
    b, s, h, dh = q_BxSxHxDh.shape
    folded = q_BxSxHxDh.reshape(b, s, kv_heads, h // kv_heads, dh).transpose(0, 2, 3, 1, 4)
    return folded.reshape(b, kv_heads, (h // kv_heads) * s, dh)


def _unfold(o_BxKxRxDh: jax.Array, s: int) -> jax.Array:
    b, kv_heads, rows, dh = o_BxKxRxDh.shape
    group = rows // s
    o = o_BxKxRxDh.reshape(b, kv_heads, group, s, dh).transpose(0, 3, 1, 2, 4)
    return o.reshape(b, s, kv_heads * group, dh)


def _scores(q_BxKxRxDh: jax.Array, block: KeyBlock, order_BxSq: jax.Array) -> jax.Array:
    """Masked float32 scores ``[B, K, R, Sk]``; -inf where the key is hidden."""
    b, kv_heads, rows, dh = q_BxKxRxDh.shape
    sq, sk = order_BxSq.shape[1], block.k_BxSxKxDh.shape[1]
    scores = jnp.einsum(
        "bkrd,bskd->bkrs",
        q_BxKxRxDh * dh**-0.5,
        block.k_BxSxKxDh,
        preferred_element_type=jnp.float32,
    )
    mask = dense_mask(order_BxSq, block.visible_from_BxS, block.visible_to_BxS)
    grouped = scores.reshape(b, kv_heads, rows // sq, sq, sk)
    grouped = jnp.where(mask[:, None, None], grouped, -jnp.inf)
    return grouped.reshape(b, kv_heads, rows, sk)


def _finite(maximum: jax.Array) -> jax.Array:
    """A row without any key has maximum -inf; subtracting that would give nan."""
    return jnp.where(jnp.isfinite(maximum), maximum, 0.0)


def dense(q_BxSxHxDh: jax.Array, order_BxS: jax.Array, blocks: Sequence[KeyBlock]) -> jax.Array:
    """Scores of all pairs at once; see `interval_attention`."""
    q = _fold(q_BxSxHxDh, blocks[0].k_BxSxKxDh.shape[2])
    scores = [_scores(q, block, order_BxS) for block in blocks]
    maximum = _finite(jax.lax.stop_gradient(jnp.max(jnp.stack([s.max(-1) for s in scores]), 0)))
    weights = [jnp.exp(s - maximum[..., None]) for s in scores]
    total = sum(jnp.sum(w, -1) for w in weights)
    # Dividing after the product with the values touches Dh numbers a row instead of Sk.
    out = sum(
        jnp.einsum("bkrs,bskd->bkrd", w.astype(q.dtype), block.v_BxSxKxDh)
        for w, block in zip(weights, blocks, strict=True)
    )
    out = out / jnp.where(total == 0.0, 1.0, total)[..., None]
    return _unfold(out.astype(q.dtype), q_BxSxHxDh.shape[1])


def chunked(
    q_BxSxHxDh: jax.Array, order_BxS: jax.Array, blocks: Sequence[KeyBlock], chunk: int = 512
) -> jax.Array:
    """Keys in chunks with a running softmax (Milakov & Gimelshein 1805.02867); linear memory."""
    joined = KeyBlock(*(jnp.concatenate(parts, 1) for parts in zip(*blocks, strict=True)))
    b, sk, kv_heads, _ = joined.k_BxSxKxDh.shape
    count = -(-sk // chunk)
    fill = count * chunk - sk

    def cut(x: jax.Array, value: int) -> jax.Array:
        padded = jnp.pad(x, [(0, 0), (0, fill)] + [(0, 0)] * (x.ndim - 2), constant_values=value)
        return jnp.moveaxis(padded.reshape(b, count, chunk, *x.shape[2:]), 1, 0)

    chunks = KeyBlock(
        cut(joined.k_BxSxKxDh, 0),
        cut(joined.v_BxSxKxDh, 0),
        cut(joined.visible_from_BxS, NEVER),
        cut(joined.visible_to_BxS, PAD_ORDER),
    )
    q = _fold(q_BxSxHxDh, kv_heads)

    @jax.checkpoint
    def visit(carry: tuple, block: KeyBlock) -> tuple[tuple, None]:
        maximum, total, out = carry
        scores = _scores(q, block, order_BxS)
        higher = jnp.maximum(maximum, jax.lax.stop_gradient(scores.max(-1)))
        rescale = jnp.exp(maximum - _finite(higher))
        weights = jnp.exp(scores - _finite(higher)[..., None])
        total = total * rescale + weights.sum(-1)
        added = jnp.einsum("bkrs,bskd->bkrd", weights.astype(q.dtype), block.v_BxSxKxDh)
        return (higher, total, out * rescale[..., None] + added), None

    start = (
        jnp.full(q.shape[:3], -jnp.inf, jnp.float32),
        jnp.zeros(q.shape[:3], jnp.float32),
        jnp.zeros(q.shape, jnp.float32),
    )
    (_, total, out), _ = jax.lax.scan(visit, start, chunks)
    out = out / jnp.where(total == 0.0, 1.0, total)[..., None]
    return _unfold(out.astype(q.dtype), q_BxSxHxDh.shape[1])


IMPLEMENTATIONS: dict[str, Attention] = {"dense": dense, "chunked": chunked}


def interval_attention(
    q_BxSxHxDh: jax.Array,
    order_BxS: jax.Array,
    blocks: Sequence[KeyBlock],
    implementation: str = "dense",
) -> jax.Array:
    """Softmax attention of every query over the keys whose interval holds its order.

    Args:
      q_BxSxHxDh: queries, normed and rotated, not yet scaled by 1/sqrt(Dh).
      order_BxS: int32 orders of the queries.
      blocks: keys and values; their number of heads divides H.
      implementation: a key of `IMPLEMENTATIONS`.

    Returns:
      ``[B, S, H, Dh]`` in the type of `q`; 0 for a query that sees nothing.
    """
    return IMPLEMENTATIONS[implementation](q_BxSxHxDh, order_BxS, blocks)
