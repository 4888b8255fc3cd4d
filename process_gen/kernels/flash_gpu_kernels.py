"""Bodies of the three Pallas kernels of `flash_gpu`: all visits of one block.

A kernel is given its own block, and whole the arrays of what it visits: it fetches block by block
of these, first those that are seen whole, which need no mask, then the others. Exponentials are
powers of two, and log-sum-exp is one in base 2: the factor goes into the scale of the scores.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from process_gen.core.attention_mask import may_attend
from process_gen.kernels.block_visits import FLOOR, HIDDEN
from process_gen.kernels.tile_dots import COLUMNS, product, transposed

_LOG2E = math.log2(math.e)


def _fold(count_ref: Any, visit: Callable[..., Any], carry: Any, times: int = 1) -> Any:
    """Folds ``visit(n, carry, masked)`` over a block's visits, each `times` times."""
    whole, all_ = count_ref[0] * times, count_ref[1] * times
    carry = jax.lax.fori_loop(0, whole, lambda n, c: visit(n, c, False), carry)
    return jax.lax.fori_loop(whole, all_, lambda n, c: visit(n, c, True), carry)


def forward(
    count_ref, index_ref, order_ref, q_ref, from_ref, to_ref, k_ref, v_ref, out_ref, lse_ref,
    *, side, scale,
):  # fmt: skip
    """Output and log-sum-exp of a block of queries, by a running softmax over blocks of keys."""
    q, order = q_ref[...], order_ref[...]

    def visit(n: jax.Array, carry: tuple, masked: bool) -> tuple:
        maximum, total, out = carry
        at = pl.ds(index_ref[n] * side, side)
        v = v_ref[at, :]
        scores = transposed(q, k_ref[at, :]) * (scale * _LOG2E)
        if masked:
            seen = may_attend(order[:, None], from_ref[at][None], to_ref[at][None])
            scores = jnp.where(seen, scores, HIDDEN)
        highest = jnp.maximum(maximum, scores.max(COLUMNS))
        rescale = jnp.exp2(maximum - highest)
        weights = jnp.exp2(scores - highest[:, None])
        total = total * rescale + weights.sum(COLUMNS)
        return highest, total, out * rescale[:, None] + product(weights.astype(v.dtype), v)

    carry = (
        jnp.full(order.shape, FLOOR, jnp.float32),
        jnp.zeros(order.shape, jnp.float32),
        jnp.zeros(q.shape, jnp.float32),
    )
    maximum, total, out = _fold(count_ref, visit, carry)
    total = jnp.where(total == 0.0, 1.0, total)
    out_ref[...] = (out / total[:, None]).astype(out_ref.dtype)
    lse_ref[...] = maximum + jnp.log2(total)


def backward_queries(
    count_ref, index_ref, order_ref, q_ref, from_ref, to_ref, k_ref, v_ref, d_out_ref, lse_ref,
    delta_ref, dq_ref, *, side, scale,
):  # fmt: skip
    """The gradient by a block of queries, summed over blocks of keys."""
    q, order, d_out = q_ref[...], order_ref[...], d_out_ref[...]
    lse, delta = lse_ref[...][:, None], delta_ref[...][:, None]

    def visit(n: jax.Array, dq: jax.Array, masked: bool) -> jax.Array:
        at = pl.ds(index_ref[n] * side, side)
        k = k_ref[at, :]
        weights = jnp.exp2(transposed(q, k) * (scale * _LOG2E) - lse)
        if masked:
            seen = may_attend(order[:, None], from_ref[at][None], to_ref[at][None])
            weights = jnp.where(seen, weights, 0.0)
        d_scores = weights * (transposed(d_out, v_ref[at, :]) - delta)
        return dq + product(d_scores.astype(k.dtype), k)

    dq = _fold(count_ref, visit, jnp.zeros(q.shape, jnp.float32))
    dq_ref[...] = (dq * scale).astype(dq_ref.dtype)


def backward_keys(
    count_ref, index_ref, order_ref, q_ref, from_ref, to_ref, k_ref, v_ref, d_out_ref, lse_ref,
    delta_ref, dk_ref, dv_ref, *, side, scale,
):  # fmt: skip
    """The gradients by a block of keys and values, summed over blocks of queries and their heads.

    Keys are rows here.
    """
    k, v, start, end = k_ref[...], v_ref[...], from_ref[...], to_ref[...]
    group = q_ref.shape[1]

    def visit(n: jax.Array, carry: tuple, masked: bool) -> tuple:
        dk, dv = carry
        at, head = pl.ds(index_ref[jax.lax.div(n, group)] * side, side), jax.lax.rem(n, group)
        q, d_out = q_ref[at, head, :], d_out_ref[at, head, :]
        scores = transposed(k, q) * (scale * _LOG2E)
        weights = jnp.exp2(scores - lse_ref[head, at][None])
        if masked:
            seen = may_attend(order_ref[at][None], start[:, None], end[:, None])
            weights = jnp.where(seen, weights, 0.0)
        dv = dv + product(weights.astype(d_out.dtype), d_out)
        d_scores = weights * (transposed(v, d_out) - delta_ref[head, at][None])
        return dk + product(d_scores.astype(q.dtype), q), dv

    zeros = jnp.zeros(k.shape, jnp.float32)
    dk, dv = _fold(count_ref, visit, (zeros, zeros), group)
    dk_ref[...] = (dk * scale).astype(dk_ref.dtype)
    dv_ref[...] = dv.astype(dv_ref.dtype)
