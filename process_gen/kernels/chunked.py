"""Interval attention in chunks of keys; the same on every platform."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from process_gen.core.attention_mask import NEVER, PAD_ORDER
from process_gen.kernels.dense import finite, fold, masked_scores, unfold
from process_gen.kernels.key_block import KeyBlock


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
    q = fold(q_BxSxHxDh, kv_heads)

    @jax.checkpoint
    def visit(carry: tuple, block: KeyBlock) -> tuple[tuple, None]:
        maximum, total, out = carry
        scores = masked_scores(q, block, order_BxS)
        higher = jnp.maximum(maximum, jax.lax.stop_gradient(scores.max(-1)))
        rescale = jnp.exp(maximum - finite(higher))
        weights = jnp.exp(scores - finite(higher)[..., None])
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
    return unfold(out.astype(q.dtype), q_BxSxHxDh.shape[1])
