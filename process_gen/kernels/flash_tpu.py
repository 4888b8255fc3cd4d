"""Interval attention as Pallas kernels for TPU, forward and backward (Dao, arXiv 2205.14135).

No array of all pairs exists anywhere: a block of scores lives in VMEM. Which blocks a block visits
is worked out before the kernel (`block_visits`) and handed over as scalars; the block that is
fetched next is looked up there, so that skipped blocks cost neither compute nor traffic.

Layout. Heads stay side by side in the last dimension, ``[B, S, H * Dh]``, as the projections make
them; Dh is filled up to whole lanes of 128. One program works on all query heads of one key head:
keys and values are fetched once a group, and the mask is computed once.

    forward   queries x keys, statistics of the softmax along the rows; keeps log-sum-exp
    dq        the same walk; weights are recomputed from log-sum-exp
    dk, dv    keys x queries, the transposed walk, so that per-query numbers lie along lanes

Off the TPU the kernels run in Pallas' interpret mode, for tests; other accelerators are refused
while lowering. Matrix products of bfloat16 accumulate in float32; those of float32 are exact ones.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from process_gen.core.attention_mask import NEVER, PAD_ORDER, may_attend
from process_gen.kernels.block_visits import visit_lists, visited_blocks
from process_gen.kernels.dense import dense
from process_gen.kernels.key_block import KeyBlock

LANES = 128
BLOCK = 512
# Fewer queries than this do not fill a block: while text is decoded there is one.
MIN_QUERIES = 16
# The maximum starts at FLOOR, and hidden scores lie so far below it that their weight is exactly 0.
FLOOR, HIDDEN = -1e30, -1e38
_VMEM_BYTES = 64 * 2**20


class Sizes(NamedTuple):
    """What a kernel must know before it is traced."""

    kv_heads: int
    block_q: int
    block_k: int


class _FlatBlock(NamedTuple):
    """A `KeyBlock` with heads side by side ``[B, Sk, K * Dh]``, filled up to whole blocks."""

    k: jax.Array
    v: jax.Array
    visible_from: jax.Array
    visible_to: jax.Array


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

    out = _flash(
        flat(q_BxSxHxDh * dh**-0.5, block_q),
        row(order_BxS, block_q, PAD_ORDER),
        tuple(
            _FlatBlock(
                flat(block.k_BxSxKxDh, block_k),
                flat(block.v_BxSxKxDh, block_k),
                row(block.visible_from_BxS, block_k, NEVER),
                row(block.visible_to_BxS, block_k, PAD_ORDER),
            )
            for block in blocks
        ),
        sizes,
    )
    return out.reshape(b, out.shape[1], heads, -1)[:, :sq, :, :dh]


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _flash(q: jax.Array, order: jax.Array, blocks: tuple[_FlatBlock, ...], sizes: Sizes):
    return _flash_forward(q, order, blocks, sizes)[0]


def _flash_forward(
    q: jax.Array, order: jax.Array, blocks: tuple[_FlatBlock, ...], sizes: Sizes
) -> tuple[jax.Array, tuple]:
    # Partial outputs of several blocks are joined in float32 by their log-sum-exp.
    dtype = q.dtype if len(blocks) == 1 else jnp.float32
    parts = [_forward_call(q, order, block, sizes, dtype) for block in blocks]
    if len(parts) == 1:
        out, lse = parts[0]
    else:
        outs, lses = zip(*parts, strict=True)
        lse = functools.reduce(jnp.logaddexp, lses)
        shares = [_by_row(jnp.exp(part - lse)) for part in lses]
        heads = shares[0].shape[-1]
        split = [out.reshape(*out.shape[:2], heads, -1) for out in outs]
        joined = sum(x * share[..., None] for x, share in zip(split, shares, strict=True))
        out = joined.reshape(q.shape).astype(q.dtype)
    return out, (q, order, blocks, out, lse)


def _flash_backward(sizes: Sizes, kept: tuple, d_out: jax.Array) -> tuple:
    q, order, blocks, out, lse = kept
    heads = lse.shape[1] * lse.shape[2]
    product = (d_out.astype(jnp.float32) * out.astype(jnp.float32)).reshape(*q.shape[:2], heads, -1)
    delta = _by_head(product.sum(-1), sizes.kv_heads)
    dq, d_blocks = 0.0, []
    for block in blocks:
        dq += _dq_call(q, order, block, d_out, lse, delta, sizes, len(blocks) > 1)
        dk, dv = _dkv_call(q, order, block, d_out, lse, delta, sizes)
        d_blocks.append(_FlatBlock(dk, dv, None, None))  # pyright: ignore[reportArgumentType]
    return dq.astype(q.dtype), None, tuple(d_blocks)


_flash.defvjp(_flash_forward, _flash_backward)


def _by_row(x_BxKxNxS: jax.Array) -> jax.Array:
    """``[B, K, H / K, S]`` to ``[B, S, H]``."""
    b, kv_heads, group, s = x_BxKxNxS.shape
    return x_BxKxNxS.reshape(b, kv_heads * group, s).swapaxes(1, 2)


def _by_head(x_BxSxH: jax.Array, kv_heads: int) -> jax.Array:
    """``[B, S, H]`` to ``[B, K, H / K, S]``."""
    b, s, heads = x_BxSxH.shape
    return x_BxSxH.swapaxes(1, 2).reshape(b, kv_heads, heads // kv_heads, s)


def _spread(x: jax.Array, width: int) -> jax.Array:
    """A number a row, repeated along 128 lanes, repeated along `width` of them."""
    return jnp.tile(x, (1, -(-width // LANES)))[:, :width]


def _dot(a: jax.Array, b: jax.Array, contract: tuple[int, int]) -> jax.Array:
    exact = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else jax.lax.Precision.DEFAULT
    return jax.lax.dot_general(
        a,
        b,
        (((contract[0],), (contract[1],)), ((), ())),
        precision=exact,
        preferred_element_type=jnp.float32,
    )


ROWS, COLUMNS = 0, 1


def _forward_kernel(
    visits_ref, count_ref, order_ref, q_ref, from_ref, to_ref, k_ref, v_ref,
    out_ref, lse_ref, max_ref, total_ref, sum_ref,
):  # fmt: skip
    """One visit of a block of queries to a block of keys."""
    del visits_ref
    step, steps = pl.program_id(3), pl.num_programs(3)
    row = pl.program_id(0) * pl.num_programs(2) + pl.program_id(2)
    group, dh = max_ref.shape[0], k_ref.shape[-1]

    @pl.when(step == 0)
    def start():
        max_ref[...] = jnp.full(max_ref.shape, FLOOR, jnp.float32)
        total_ref[...] = jnp.zeros(total_ref.shape, jnp.float32)
        sum_ref[...] = jnp.zeros(sum_ref.shape, jnp.float32)

    @pl.when(step < count_ref[row])
    def visit():
        seen = may_attend(order_ref[...], from_ref[...], to_ref[...])
        k, v = k_ref[...], v_ref[...]
        for head in range(group):
            lanes = slice(head * dh, (head + 1) * dh)
            scores = jnp.where(seen, _dot(q_ref[:, lanes], k, (COLUMNS, COLUMNS)), HIDDEN)
            before = max_ref[head]
            highest = jnp.maximum(before, scores.max(COLUMNS, keepdims=True))
            weights = jnp.exp(scores - _spread(highest, scores.shape[1]))
            rescale = jnp.exp(before - highest)
            max_ref[head] = highest
            total_ref[head] = total_ref[head] * rescale + weights.sum(COLUMNS, keepdims=True)
            added = _dot(weights.astype(v.dtype), v, (COLUMNS, ROWS))
            sum_ref[:, lanes] = sum_ref[:, lanes] * _spread(rescale, dh) + added

    @pl.when(step == steps - 1)
    def finish():
        for head in range(group):
            lanes = slice(head * dh, (head + 1) * dh)
            total = total_ref[head]
            total = jnp.where(total == 0.0, 1.0, total)
            out_ref[:, lanes] = (sum_ref[:, lanes] / _spread(total, dh)).astype(out_ref.dtype)
            lse_ref[head : head + 1, :] = (max_ref[head] + jnp.log(total)).T[:1]


def _dq_kernel(
    visits_ref, count_ref, order_ref, q_ref, from_ref, to_ref, k_ref, v_ref,
    d_out_ref, lse_ref, delta_ref, dq_ref, lse_column_ref, delta_column_ref, sum_ref,
):  # fmt: skip
    """The gradient by one block of queries, from one block of keys."""
    del visits_ref
    step, steps = pl.program_id(3), pl.num_programs(3)
    row = pl.program_id(0) * pl.num_programs(2) + pl.program_id(2)
    group, dh = lse_ref.shape[0], k_ref.shape[-1]

    @pl.when(step == 0)
    def start():
        sum_ref[...] = jnp.zeros(sum_ref.shape, jnp.float32)
        for head in range(group):
            for column_ref, source_ref in (
                (lse_column_ref, lse_ref),
                (delta_column_ref, delta_ref),
            ):
                line = source_ref[head : head + 1, :]
                column_ref[head] = jnp.broadcast_to(line, (LANES, line.shape[1])).T

    @pl.when(step < count_ref[row])
    def visit():
        seen = may_attend(order_ref[...], from_ref[...], to_ref[...])
        k, v = k_ref[...], v_ref[...]
        for head in range(group):
            lanes = slice(head * dh, (head + 1) * dh)
            scores = jnp.where(seen, _dot(q_ref[:, lanes], k, (COLUMNS, COLUMNS)), HIDDEN)
            weights = jnp.exp(scores - _spread(lse_column_ref[head], scores.shape[1]))
            d_weights = _dot(d_out_ref[:, lanes], v, (COLUMNS, COLUMNS))
            d_scores = weights * (d_weights - _spread(delta_column_ref[head], scores.shape[1]))
            sum_ref[:, lanes] += _dot(d_scores.astype(k.dtype), k, (COLUMNS, ROWS))

    @pl.when(step == steps - 1)
    def finish():
        dq_ref[...] = sum_ref[...].astype(dq_ref.dtype)


def _dkv_kernel(
    visits_ref, count_ref, order_ref, q_ref, from_ref, to_ref, k_ref, v_ref,
    d_out_ref, lse_ref, delta_ref, dk_ref, dv_ref, dk_sum_ref, dv_sum_ref,
):  # fmt: skip
    """The gradients by one block of keys and values, from one block of queries."""
    del visits_ref
    step, steps = pl.program_id(3), pl.num_programs(3)
    row = pl.program_id(0) * pl.num_programs(2) + pl.program_id(2)
    group, dh = lse_ref.shape[0], k_ref.shape[-1]

    @pl.when(step == 0)
    def start():
        dk_sum_ref[...] = jnp.zeros(dk_sum_ref.shape, jnp.float32)
        dv_sum_ref[...] = jnp.zeros(dv_sum_ref.shape, jnp.float32)

    @pl.when(step < count_ref[row])
    def visit():
        seen = may_attend(order_ref[...], from_ref[...], to_ref[...])
        k, v = k_ref[...], v_ref[...]
        for head in range(group):
            lanes = slice(head * dh, (head + 1) * dh)
            q, d_out = q_ref[:, lanes], d_out_ref[:, lanes]
            scores = jnp.where(seen, _dot(k, q, (COLUMNS, COLUMNS)), HIDDEN)
            weights = jnp.exp(scores - lse_ref[head : head + 1, :])
            dv_sum_ref[...] += _dot(weights.astype(d_out.dtype), d_out, (COLUMNS, ROWS))
            d_weights = _dot(v, d_out, (COLUMNS, COLUMNS))
            d_scores = weights * (d_weights - delta_ref[head : head + 1, :])
            dk_sum_ref[...] += _dot(d_scores.astype(q.dtype), q, (COLUMNS, ROWS))

    @pl.when(step == steps - 1)
    def finish():
        dk_ref[...] = dk_sum_ref[...].astype(dk_ref.dtype)
        dv_ref[...] = dv_sum_ref[...].astype(dv_ref.dtype)


def _visits(
    order: jax.Array, block: _FlatBlock, sizes: Sizes, *, of_keys: bool
) -> tuple[jax.Array, jax.Array]:
    visited = visited_blocks(
        order, block.visible_from, block.visible_to, sizes.block_q, sizes.block_k
    )
    return visit_lists(visited.swapaxes(1, 2) if of_keys else visited)


def _grid_call(
    kernel: Callable,
    visits: tuple[jax.Array, jax.Array],
    kv_heads: int,
    operands: Sequence[tuple[jax.Array, pl.BlockSpec]],
    results: Sequence[tuple[jax.ShapeDtypeStruct, pl.BlockSpec]],
    scratch: Sequence[Any],
) -> Any:
    """Runs `kernel` for every row, key head, block and visit.

    The number of visits is that of the busiest block of this very call: the grid is as long as the
    data asks for.
    """
    index_BxIxN, count_BxI = visits
    b, count = count_BxI.shape
    steps = jnp.maximum(count_BxI.max(), 1)

    def run(*arrays: jax.Array, interpret: bool) -> Any:
        steps, *rest = arrays
        return pl.pallas_call(
            kernel,
            out_shape=[shape for shape, _ in results],
            grid_spec=pltpu.PrefetchScalarGridSpec(
                num_scalar_prefetch=2,
                grid=(b, kv_heads, count, steps),
                in_specs=[spec for _, spec in operands],
                out_specs=[spec for _, spec in results],
                scratch_shapes=scratch,
            ),
            compiler_params=pltpu.CompilerParams(
                dimension_semantics=("parallel", "parallel", "parallel", "arbitrary"),
                vmem_limit_bytes=_VMEM_BYTES,
            ),
            interpret=interpret,
            name=kernel.__name__.strip("_"),
        )(*rest)

    # The platform is that of the program being lowered, which may not be the one of this process.
    return jax.lax.platform_dependent(
        steps,
        index_BxIxN.reshape(-1),
        count_BxI.reshape(-1),
        *(array for array, _ in operands),
        tpu=functools.partial(run, interpret=False),
        cpu=functools.partial(run, interpret=True),
    )


class _Specs(NamedTuple):
    """Where the blocks of a program lie; `own` walks with the grid, `visited` with the lists."""

    order_column: pl.BlockSpec
    order_line: pl.BlockSpec
    query: pl.BlockSpec
    statistic: pl.BlockSpec
    interval_line: pl.BlockSpec
    interval_column: pl.BlockSpec
    key: pl.BlockSpec


def _specs(sizes: Sizes, group: int, dh: int, total: int, *, of_keys: bool) -> _Specs:
    """Block specs of a call; queries walk along the lists if `of_keys`, else keys do.

    Args:
      sizes: of the blocks.
      group: query heads a key head.
      dh: width of a head, whole lanes.
      total: length of one list of visits.
      of_keys: whether the program belongs to a block of keys.
    """

    def own(b, k, i, n, index, count):
        del b, k, n, index, count
        return i

    def visited(b, k, i, n, index, count):
        del k, count
        return index[(b * pl.num_programs(2) + i) * total + n]

    at_q, at_k = (visited, own) if of_keys else (own, visited)
    bq, bk = sizes.block_q, sizes.block_k

    def spec(shape: tuple, place: Callable) -> pl.BlockSpec:
        return pl.BlockSpec(shape, place)

    return _Specs(
        spec((None, bq, 1), lambda *g: (g[0], at_q(*g), 0)),
        spec((None, 1, bq), lambda *g: (g[0], 0, at_q(*g))),
        spec((None, bq, group * dh), lambda *g: (g[0], at_q(*g), g[1])),
        spec((None, None, group, bq), lambda *g: (g[0], g[1], 0, at_q(*g))),
        spec((None, 1, bk), lambda *g: (g[0], 0, at_k(*g))),
        spec((None, bk, 1), lambda *g: (g[0], at_k(*g), 0)),
        spec((None, bk, dh), lambda *g: (g[0], at_k(*g), g[1])),
    )


def _group_and_width(q: jax.Array, block: _FlatBlock, sizes: Sizes) -> tuple[int, int]:
    return q.shape[-1] // block.k.shape[-1], block.k.shape[-1] // sizes.kv_heads


def _forward_call(
    q: jax.Array, order: jax.Array, block: _FlatBlock, sizes: Sizes, dtype: Any
) -> tuple[jax.Array, jax.Array]:
    """Output ``[B, Sq, H * Dh]`` and log-sum-exp, float32 ``[B, K, H / K, Sq]``."""
    b, sq, _ = q.shape
    group, dh = _group_and_width(q, block, sizes)
    visits = _visits(order, block, sizes, of_keys=False)
    at = _specs(sizes, group, dh, visits[0].shape[-1], of_keys=False)
    statistic = (group, sizes.block_q, LANES)
    out, lse = _grid_call(
        _forward_kernel,
        visits,
        sizes.kv_heads,
        [
            (order[:, :, None], at.order_column),
            (q, at.query),
            (block.visible_from[:, None], at.interval_line),
            (block.visible_to[:, None], at.interval_line),
            (block.k, at.key),
            (block.v, at.key),
        ],
        [
            (jax.ShapeDtypeStruct(q.shape, dtype), at.query),
            (jax.ShapeDtypeStruct((b, sizes.kv_heads, group, sq), jnp.float32), at.statistic),
        ],
        [
            pltpu.VMEM(statistic, jnp.float32),
            pltpu.VMEM(statistic, jnp.float32),
            pltpu.VMEM((sizes.block_q, group * dh), jnp.float32),
        ],
    )
    return out, lse


def _dq_call(
    q: jax.Array,
    order: jax.Array,
    block: _FlatBlock,
    d_out: jax.Array,
    lse: jax.Array,
    delta: jax.Array,
    sizes: Sizes,
    partial: bool,
) -> jax.Array:
    """The gradient by `q`, in float32 if it is a part of it only."""
    group, dh = _group_and_width(q, block, sizes)
    visits = _visits(order, block, sizes, of_keys=False)
    at = _specs(sizes, group, dh, visits[0].shape[-1], of_keys=False)
    statistic = (group, sizes.block_q, LANES)
    (dq,) = _grid_call(
        _dq_kernel,
        visits,
        sizes.kv_heads,
        [
            (order[:, :, None], at.order_column),
            (q, at.query),
            (block.visible_from[:, None], at.interval_line),
            (block.visible_to[:, None], at.interval_line),
            (block.k, at.key),
            (block.v, at.key),
            (d_out, at.query),
            (lse, at.statistic),
            (delta, at.statistic),
        ],
        [(jax.ShapeDtypeStruct(q.shape, jnp.float32 if partial else q.dtype), at.query)],
        [
            pltpu.VMEM(statistic, jnp.float32),
            pltpu.VMEM(statistic, jnp.float32),
            pltpu.VMEM((sizes.block_q, group * dh), jnp.float32),
        ],
    )
    return dq


def _dkv_call(
    q: jax.Array,
    order: jax.Array,
    block: _FlatBlock,
    d_out: jax.Array,
    lse: jax.Array,
    delta: jax.Array,
    sizes: Sizes,
) -> tuple[jax.Array, jax.Array]:
    """The gradients by keys and values, in the shapes and types of these."""
    group, dh = _group_and_width(q, block, sizes)
    visits = _visits(order, block, sizes, of_keys=True)
    at = _specs(sizes, group, dh, visits[0].shape[-1], of_keys=True)
    total = pltpu.VMEM((sizes.block_k, dh), jnp.float32)
    dk, dv = _grid_call(
        _dkv_kernel,
        visits,
        sizes.kv_heads,
        [
            (order[:, None], at.order_line),
            (q, at.query),
            (block.visible_from[:, :, None], at.interval_column),
            (block.visible_to[:, :, None], at.interval_column),
            (block.k, at.key),
            (block.v, at.key),
            (d_out, at.query),
            (lse, at.statistic),
            (delta, at.statistic),
        ],
        [
            (jax.ShapeDtypeStruct(block.k.shape, block.k.dtype), at.key),
            (jax.ShapeDtypeStruct(block.v.shape, block.v.dtype), at.key),
        ],
        [total, total],
    )
    return dk, dv
