"""Interval attention as Pallas kernels for TPU, forward and backward (Dao, arXiv 2205.14135).

No array of all pairs exists anywhere: a block of scores lies in VMEM (`flash_kernels`). Which
blocks meet is worked out before a kernel runs (`block_visits`) and handed over as scalars, and a
kernel walks from visit to visit (`flash_calls`): what is skipped costs neither compute nor traffic
nor a step of the grid.

    forward    queries visit keys; keeps log-sum-exp
    backward   queries visit keys for dq, then keys visit queries for dk and dv; the weights are
               recomputed from log-sum-exp

On a CPU the kernels run in Pallas' interpret mode, for tests; another platform is refused while
lowering. Matrix products of bfloat16 accumulate in float32; those of float32 are exact ones.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from process_gen.core.attention_mask import NEVER, PAD_ORDER
from process_gen.kernels import flash_calls
from process_gen.kernels.dense import MIN_QUERIES, dense
from process_gen.kernels.flash_calls import FlatBlock, Outcome, Queries, Sizes
from process_gen.kernels.flash_kernels import LANES
from process_gen.kernels.key_block import ATTENDED, KeyBlock

BLOCK = 512


def flash(
    q_BxSxHxDh: jax.Array,
    order_BxS: jax.Array,
    blocks: Sequence[KeyBlock],
    block_q: int = BLOCK,
    block_k: int = BLOCK,
) -> jax.Array:
    """The implementation "pallas" of `interval_attention`.

    Args:
      q_BxSxHxDh, order_BxS, blocks: as there; several blocks of keys are not copied together.
        Nothing is copied at all where lengths are multiples of the block sizes and Dh of 128.
      block_q, block_k: multiples of 128 on a TPU.
    """
    b, sq, heads, dh = q_BxSxHxDh.shape
    if sq < MIN_QUERIES:
        return dense(q_BxSxHxDh, order_BxS, blocks)
    sizes = Sizes(blocks[0].k_BxSxKxDh.shape[2], block_q, block_k)

    def flat(x_BxSxNxDh: jax.Array, block: int) -> jax.Array:
        fill = ((0, 0), (0, -x_BxSxNxDh.shape[1] % block), (0, 0), (0, -dh % LANES))
        padded = jnp.pad(x_BxSxNxDh, fill)
        return padded.reshape(*padded.shape[:2], -1)

    def row(x_BxS: jax.Array, block: int, value: int) -> jax.Array:
        return jnp.pad(x_BxS, ((0, 0), (0, -x_BxS.shape[1] % block)), constant_values=value)

    queries = Queries(flat(q_BxSxHxDh * dh**-0.5, block_q), row(order_BxS, block_q, PAD_ORDER))
    flat_blocks = tuple(
        FlatBlock(
            flat(block.k_BxSxKxDh, block_k),
            flat(block.v_BxSxKxDh, block_k),
            row(block.visible_from_BxS, block_k, NEVER),
            row(block.visible_to_BxS, block_k, PAD_ORDER),
        )
        for block in blocks
    )
    out = _attend(queries, flat_blocks, sizes)
    return out.reshape(b, out.shape[1], heads, -1)[:, :sq, :, :dh]


def _output(queries: Queries, blocks: tuple[FlatBlock, ...], sizes: Sizes) -> jax.Array:
    return _forward(queries, blocks, sizes)[0]


_attend = jax.custom_vjp(_output, nondiff_argnums=(2,))


def _forward(
    queries: Queries, blocks: tuple[FlatBlock, ...], sizes: Sizes
) -> tuple[jax.Array, tuple]:
    q = queries.q
    # Partial outputs of several blocks are joined in float32 by their log-sum-exp.
    dtype = q.dtype if len(blocks) == 1 else jnp.float32
    outs, lses = zip(*(flash_calls.forward(queries, x, sizes, dtype) for x in blocks), strict=True)
    out, lse = outs[0], lses[0]
    if len(blocks) > 1:
        lse = functools.reduce(jnp.logaddexp, lses)
        shares = [_by_token(jnp.exp(part - lse))[..., None] for part in lses]
        parts = [x.reshape(*share.shape[:3], -1) for x, share in zip(outs, shares, strict=True)]
        joined = sum(part * share for part, share in zip(parts, shares, strict=True))
        out = jnp.asarray(joined, q.dtype).reshape(q.shape)
    out, lse = checkpoint_name(out, ATTENDED), checkpoint_name(lse, ATTENDED)
    return out, (queries, blocks, out, lse)


def _backward(sizes: Sizes, kept: tuple, d_out: jax.Array) -> tuple:
    queries, blocks, out, lse = kept
    product = d_out.astype(jnp.float32) * out.astype(jnp.float32)
    heads = lse.shape[1] * lse.shape[2]
    delta = product.reshape(*product.shape[:2], heads, -1).sum(-1).swapaxes(1, 2).reshape(lse.shape)
    outcome = Outcome(d_out, lse, delta)
    dtype = queries.q.dtype if len(blocks) == 1 else jnp.float32
    dq = sum(flash_calls.backward_queries(queries, x, outcome, sizes, dtype) for x in blocks)
    d_blocks = []
    for block in blocks:
        dk, dv = flash_calls.backward_keys(queries, block, outcome, sizes)
        d_blocks.append(FlatBlock._make((dk, dv, None, None)))
    # Integers have no gradient.
    return Queries._make((jnp.asarray(dq).astype(queries.q.dtype), None)), tuple(d_blocks)


_attend.defvjp(_forward, _backward)


def _by_token(x_BxKxNxS: jax.Array) -> jax.Array:
    """``[B, K, H / K, S]`` to ``[B, S, H]``."""
    b, kv_heads, group, s = x_BxKxNxS.shape
    return x_BxKxNxS.reshape(b, kv_heads * group, s).swapaxes(1, 2)
