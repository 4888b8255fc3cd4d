"""Bodies of the three Pallas kernels of `flash_tpu`: one visit of a block to another.

All take the walks of `block_visits` as scalars, one program a walker, and blocks of queries
``[bq, group * Dh]`` (the query heads of one key head side by side) and of keys ``[bk, Dh]``.
Numbers of a query (its maximum, log-sum-exp ..) are wanted along rows where queries are rows, and
along lanes where they are columns; along rows they are stored 128 times over, which saves spreading
them at every visit.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from process_gen.core.attention_mask import may_attend
from process_gen.kernels.block_visits import FLOOR, HIDDEN, PAIR_BITS
from process_gen.kernels.tile_dots import COLUMNS, product, transposed

LANES = 128


class Visit(NamedTuple):
    """Where a walker stands; all are scalars, and none holds behind the end of its walk.

    Attributes:
      any: whether there is a visit at all.
      first, last: whether it is the first, the last one of its block.
    """

    any: jax.Array
    first: jax.Array
    last: jax.Array


class Program(NamedTuple):
    """What a program works on; programs count rows, key heads and walkers, the last one fastest."""

    row: jax.Array
    head: jax.Array
    walk: jax.Array


def program_of(program: jax.Array, count_ref: jax.Array, kv_heads: int, rows: int) -> Program:
    """Takes the number of a program apart."""
    parts = count_ref.shape[0] // rows
    # `//` and `%` of traced numbers ask for the signs, and those for the chip.
    row_and_head, part = jax.lax.div(program, parts), jax.lax.rem(program, parts)
    row = jax.lax.div(row_and_head, kv_heads)
    return Program(row, jax.lax.rem(row_and_head, kv_heads), row * parts + part)


def visit_of(pairs_ref: jax.Array, count_ref: jax.Array, kv_heads: int, rows: int) -> Visit:
    """Reads where the program stands."""
    walk = program_of(pl.program_id(0), count_ref, kv_heads, rows).walk
    length = pairs_ref.shape[0] // count_ref.shape[0]
    step, count = pl.program_id(1), count_ref[walk]

    def block(at: jax.Array) -> jax.Array:
        return pairs_ref[walk * length + jnp.clip(at, 0, length - 1)] >> PAIR_BITS

    here, there = block(step), step < count
    first = (step == 0) | (block(step - 1) != here)
    last = (step == count - 1) | (block(step + 1) != here)
    return Visit(there, there & first, there & last)


def _spread(x: jax.Array, width: int) -> jax.Array:
    """What lies along rows, 128 times over, for `width` columns."""
    return jnp.tile(x, (1, -(-width // LANES)))[:, :width]


def forward(
    pairs_ref, count_ref, order_ref, q_ref, from_ref, to_ref, k_ref, v_ref,
    out_ref, lse_ref, max_ref, total_ref, sum_ref, *, kv_heads, rows,
):  # fmt: skip
    """Output and log-sum-exp of a block of queries, by a running softmax over blocks of keys."""
    here = visit_of(pairs_ref, count_ref, kv_heads, rows)
    group, dh = max_ref.shape[0], k_ref.shape[-1]

    @pl.when(here.first)
    def _():
        max_ref[...] = jnp.full(max_ref.shape, FLOOR, jnp.float32)
        total_ref[...] = jnp.zeros(total_ref.shape, jnp.float32)
        sum_ref[...] = jnp.zeros(sum_ref.shape, jnp.float32)

    @pl.when(here.any)
    def _():
        seen = may_attend(order_ref[...], from_ref[...], to_ref[...])
        k, v = k_ref[...], v_ref[...]
        for head in range(group):
            lanes = slice(head * dh, (head + 1) * dh)
            scores = jnp.where(seen, transposed(q_ref[:, lanes], k), HIDDEN)
            before = max_ref[head]
            highest = jnp.maximum(before, scores.max(COLUMNS, keepdims=True))
            weights = jnp.exp(scores - _spread(highest, scores.shape[1]))
            rescale = jnp.exp(before - highest)
            max_ref[head] = highest
            total_ref[head] = total_ref[head] * rescale + weights.sum(COLUMNS, keepdims=True)
            added = product(weights.astype(v.dtype), v)
            sum_ref[:, lanes] = sum_ref[:, lanes] * _spread(rescale, dh) + added

    @pl.when(here.last)
    def _():
        for head in range(group):
            lanes = slice(head * dh, (head + 1) * dh)
            total = total_ref[head]
            total = jnp.where(total == 0.0, 1.0, total)
            out_ref[:, lanes] = (sum_ref[:, lanes] / _spread(total, dh)).astype(out_ref.dtype)
            lse_ref[head : head + 1, :] = (max_ref[head] + jnp.log(total)).T[:1]


def backward_queries(
    pairs_ref, count_ref, order_ref, q_ref, from_ref, to_ref, k_ref, v_ref, d_out_ref, lse_ref,
    delta_ref, dq_ref, lse_column_ref, delta_column_ref, sum_ref, *, kv_heads, rows,
):  # fmt: skip
    """The gradient by a block of queries, summed over blocks of keys."""
    here = visit_of(pairs_ref, count_ref, kv_heads, rows)
    group, dh = lse_ref.shape[0], k_ref.shape[-1]

    @pl.when(here.first)
    def _():
        sum_ref[...] = jnp.zeros(sum_ref.shape, jnp.float32)
        for line_ref, column_ref in ((lse_ref, lse_column_ref), (delta_ref, delta_column_ref)):
            for head in range(group):
                line = line_ref[head : head + 1, :]
                column_ref[head] = jnp.broadcast_to(line, (LANES, line.shape[1])).T

    @pl.when(here.any)
    def _():
        seen = may_attend(order_ref[...], from_ref[...], to_ref[...])
        k, v = k_ref[...], v_ref[...]
        for head in range(group):
            lanes = slice(head * dh, (head + 1) * dh)
            scores = jnp.where(seen, transposed(q_ref[:, lanes], k), HIDDEN)
            weights = jnp.exp(scores - _spread(lse_column_ref[head], scores.shape[1]))
            d_weights = transposed(d_out_ref[:, lanes], v)
            d_scores = weights * (d_weights - _spread(delta_column_ref[head], scores.shape[1]))
            sum_ref[:, lanes] += product(d_scores.astype(k.dtype), k)

    @pl.when(here.last)
    def _():
        dq_ref[...] = sum_ref[...].astype(dq_ref.dtype)


def backward_keys(
    pairs_ref, count_ref, order_ref, q_ref, from_ref, to_ref, k_ref, v_ref, d_out_ref, lse_ref,
    delta_ref, dk_ref, dv_ref, dk_sum_ref, dv_sum_ref, *, kv_heads, rows,
):  # fmt: skip
    """The gradients by a block of keys and values, summed over blocks of queries; keys are rows."""
    here = visit_of(pairs_ref, count_ref, kv_heads, rows)
    group, dh = lse_ref.shape[0], k_ref.shape[-1]

    @pl.when(here.first)
    def _():
        dk_sum_ref[...] = jnp.zeros(dk_sum_ref.shape, jnp.float32)
        dv_sum_ref[...] = jnp.zeros(dv_sum_ref.shape, jnp.float32)

    @pl.when(here.any)
    def _():
        seen = may_attend(order_ref[...], from_ref[...], to_ref[...])
        k, v = k_ref[...], v_ref[...]
        for head in range(group):
            lanes = slice(head * dh, (head + 1) * dh)
            q, d_out = q_ref[:, lanes], d_out_ref[:, lanes]
            scores = jnp.where(seen, transposed(k, q), HIDDEN)
            weights = jnp.exp(scores - lse_ref[head : head + 1, :])
            dv_sum_ref[...] += product(weights.astype(d_out.dtype), d_out)
            d_scores = weights * (transposed(v, d_out) - delta_ref[head : head + 1, :])
            dk_sum_ref[...] += product(d_scores.astype(q.dtype), q)

    @pl.when(here.last)
    def _():
        dk_ref[...] = dk_sum_ref[...].astype(dk_ref.dtype)
        dv_ref[...] = dv_sum_ref[...].astype(dv_ref.dtype)
