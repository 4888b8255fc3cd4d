"""Interval attention with the scores of all pairs: the reference, and fastest for short rows."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from process_gen.core.attention_mask import dense_mask
from process_gen.kernels.key_block import CachedKeys, KeyBlock

# Fewer queries than this do not fill a block of a kernel, and are left to `dense`: while text is
# decoded there is one.
MIN_QUERIES = 16


def fold(q_BxSxHxDh: jax.Array, kv_heads: int) -> jax.Array:
    """Query heads of one group become rows of one matrix, ``[B, K, H/K * S, Dh]``."""
    b, s, h, dh = q_BxSxHxDh.shape
    folded = q_BxSxHxDh.reshape(b, s, kv_heads, h // kv_heads, dh).transpose(0, 2, 3, 1, 4)
    return folded.reshape(b, kv_heads, (h // kv_heads) * s, dh)


def unfold(o_BxKxRxDh: jax.Array, s: int) -> jax.Array:
    """The inverse of `fold`, with `s` queries: ``[B, S, H, Dh]``."""
    b, kv_heads, rows, dh = o_BxKxRxDh.shape
    group = rows // s
    o = o_BxKxRxDh.reshape(b, kv_heads, group, s, dh).transpose(0, 3, 1, 2, 4)
    return o.reshape(b, s, kv_heads * group, dh)


def masked_scores(
    q_BxKxRxDh: jax.Array, block: KeyBlock | CachedKeys, order_BxSq: jax.Array
) -> jax.Array:
    """Masked float32 scores ``[B, K, R, Sk]``; -inf where the key is hidden."""
    b, kv_heads, rows, dh = q_BxKxRxDh.shape
    k, _, visible_from, visible_to = block
    sq, sk = order_BxSq.shape[1], visible_to.shape[1]
    names = "bkrd,bkds->bkrs" if isinstance(block, CachedKeys) else "bkrd,bskd->bkrs"
    scores = jnp.einsum(names, q_BxKxRxDh * dh**-0.5, k, preferred_element_type=jnp.float32)
    mask = dense_mask(order_BxSq, visible_from, visible_to)
    grouped = scores.reshape(b, kv_heads, rows // sq, sq, sk)
    grouped = jnp.where(mask[:, None, None], grouped, -jnp.inf)
    return grouped.reshape(b, kv_heads, rows, sk)


def finite(maximum: jax.Array) -> jax.Array:
    """A row without any key has maximum -inf; subtracting that would give nan."""
    return jnp.where(jnp.isfinite(maximum), maximum, 0.0)


def weighted_sum(weight_BxKxRxSk: jax.Array, block: KeyBlock | CachedKeys) -> jax.Array:
    """Values summed by weight, ``[B, K, R, Dh]``."""
    if isinstance(block, CachedKeys):
        return jnp.einsum("bkrs,bksd->bkrd", weight_BxKxRxSk, block.v_BxKxCxDh)
    return jnp.einsum("bkrs,bskd->bkrd", weight_BxKxRxSk, block.v_BxSxKxDh)


def dense(
    q_BxSxHxDh: jax.Array, order_BxS: jax.Array, blocks: Sequence[KeyBlock | CachedKeys]
) -> jax.Array:
    """Scores of all pairs at once; see `interval_attention`."""
    first = blocks[0]
    kv_heads = first[0].shape[1 if isinstance(first, CachedKeys) else 2]
    q = fold(q_BxSxHxDh, kv_heads)
    scores = [masked_scores(q, block, order_BxS) for block in blocks]
    maximum = finite(jax.lax.stop_gradient(jnp.max(jnp.stack([s.max(-1) for s in scores]), 0)))
    weights = [jnp.exp(s - maximum[..., None]) for s in scores]
    total = sum(jnp.sum(w, -1) for w in weights)
    # Dividing after the product with the values touches Dh numbers a row instead of Sk.
    out = sum(
        weighted_sum(w.astype(q.dtype), block) for w, block in zip(weights, blocks, strict=True)
    )
    out = out / jnp.where(total == 0.0, 1.0, total)[..., None]
    return unfold(out.astype(q.dtype), q_BxSxHxDh.shape[1])
