"""Interval attention as Pallas kernels for NVIDIA GPUs, forward and backward (arXiv 2205.14135).

No array of all pairs exists anywhere: a block of scores lies in registers (`flash_gpu_kernels`),
and blocks that nobody sees are not visited. Pallas lowers the kernels through Triton.

    forward    a block of queries visits keys; keeps log-sum-exp
    backward   queries visit keys for dq, keys visit queries for dk and dv; the weights are
               recomputed from log-sum-exp

On a CPU the kernels run in Pallas' interpret mode, for tests; another platform is refused while
lowering. Matrix products of bfloat16 accumulate in float32; those of float32 are exact ones.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from process_gen.core.attention_mask import NEVER, PAD_ORDER
from process_gen.kernels import flash_gpu_kernels as kernels
from process_gen.kernels.block_visits import visited_blocks, whole_blocks
from process_gen.kernels.dense import MIN_QUERIES, dense
from process_gen.kernels.key_block import ATTENDED, KeyBlock

_LEAST = 16  # rows or columns of a product on tensor cores


class Tile(NamedTuple):
    """How one kernel is cut up.

    Attributes:
      block_q, block_k: queries and keys of a block, powers of two.
      warps: of 32 threads that work on a block.
      stages: blocks that are fetched ahead.
    """

    block_q: int
    block_k: int
    warps: int
    stages: int


class Tiles(NamedTuple):
    """The three kernels' tiles; the defaults are the fastest measured (docs/attention.md)."""

    forward: Tile = Tile(128, 64, 4, 3)
    queries: Tile = Tile(64, 64, 4, 2)
    keys: Tile = Tile(64, 64, 4, 3)


TILES = Tiles()


def flash(
    q_BxSxHxDh: jax.Array, order_BxS: jax.Array, blocks: Sequence[KeyBlock], tiles: Tiles = TILES
) -> jax.Array:
    """The implementation "triton" of `interval_attention`.

    Args:
      q_BxSxHxDh, order_BxS, blocks: as there; several blocks of keys are not copied together.
        Nothing is copied at all where lengths are multiples of the tiles' and Dh a power of two.
      tiles: of the kernels.
    """
    sq, dh = q_BxSxHxDh.shape[1], q_BxSxHxDh.shape[-1]
    if sq < MIN_QUERIES:
        return dense(q_BxSxHxDh, order_BxS, blocks)
    side_q = max(tile.block_q for tile in tiles)
    side_k = max(tile.block_k for tile in tiles)

    def whole(x_BxSxNxDh: jax.Array, side: int) -> jax.Array:
        width = max(_LEAST, pl.next_power_of_2(dh))
        return jnp.pad(
            x_BxSxNxDh, ((0, 0), (0, -x_BxSxNxDh.shape[1] % side), (0, 0), (0, width - dh))
        )

    def row(x_BxS: jax.Array, side: int, value: int) -> jax.Array:
        return jnp.pad(x_BxS, ((0, 0), (0, -x_BxS.shape[1] % side)), constant_values=value)

    filled = tuple(
        KeyBlock(
            whole(block.k_BxSxKxDh, side_k),
            whole(block.v_BxSxKxDh, side_k),
            row(block.visible_from_BxS, side_k, NEVER),
            row(block.visible_to_BxS, side_k, PAD_ORDER),
        )
        for block in blocks
    )
    q, order = whole(q_BxSxHxDh, side_q), row(order_BxS, side_q, PAD_ORDER)
    return _attend(q, order, filled, (tiles, dh**-0.5))[:, :sq, :, :dh]


def _output(
    q: jax.Array, order: jax.Array, blocks: tuple[KeyBlock, ...], how: tuple[Tiles, float]
) -> jax.Array:
    return _forward(q, order, blocks, how)[0]


_attend = jax.custom_vjp(_output, nondiff_argnums=(3,))


def _forward(
    q: jax.Array, order: jax.Array, blocks: tuple[KeyBlock, ...], how: tuple[Tiles, float]
) -> tuple[jax.Array, tuple]:
    tiles, scale = how
    # Partial outputs of several blocks are joined in float32 by their log-sum-exp.
    dtype = q.dtype if len(blocks) == 1 else jnp.dtype(jnp.float32)
    outs, lses = zip(
        *(forward_block(q, order, block, tiles.forward, scale, dtype) for block in blocks),
        strict=True,
    )
    out, lse = outs[0], lses[0]
    if len(blocks) > 1:
        lse = functools.reduce(jnp.logaddexp2, lses)
        shares = [jnp.exp2(part - lse).swapaxes(1, 2)[..., None] for part in lses]
        out = sum(part * share for part, share in zip(outs, shares, strict=True))
    out = checkpoint_name(jnp.asarray(out, q.dtype), ATTENDED)
    return out, (q, order, blocks, out, checkpoint_name(lse, ATTENDED))


def _backward(how: tuple[Tiles, float], kept: tuple, d_out: jax.Array) -> tuple:
    q, order, blocks, out, lse = kept
    delta = (d_out.astype(jnp.float32) * out.astype(jnp.float32)).sum(-1).swapaxes(1, 2)
    outcome = Outcome(d_out, lse, delta)
    dtype = q.dtype if len(blocks) == 1 else jnp.dtype(jnp.float32)
    dqs, d_blocks = [], []
    for block in blocks:
        dq, dk, dv = backward_block(q, order, block, outcome, *how, dtype)
        dqs.append(dq)
        # Integers have no gradient.
        d_blocks.append(KeyBlock._make((dk, dv, None, None)))
    return jnp.asarray(sum(dqs), q.dtype), None, tuple(d_blocks)


_attend.defvjp(_forward, _backward)


class Outcome(NamedTuple):
    """What the backward pass knows of the forward pass.

    Attributes:
      d_out: gradient by the output, shaped as the queries.
      lse, delta: float32 ``[B, H, Sq]``: log-sum-exp of the scores in base 2, and the product of
        output and `d_out`.
    """

    d_out: jax.Array
    lse: jax.Array
    delta: jax.Array


def forward_block(
    q: jax.Array, order: jax.Array, block: KeyBlock, tile: Tile, scale: float, dtype: jnp.dtype
) -> tuple[jax.Array, jax.Array]:
    """Output over one block of keys, in `dtype`, and log-sum-exp; lengths are whole tiles."""
    b, sq, heads, _ = q.shape
    call = _Call(q, order, block, tile, keys_visit=False)
    return call(
        functools.partial(kernels.forward, scale=scale),
        [],
        [
            (jax.ShapeDtypeStruct(q.shape, dtype), call.query),
            (jax.ShapeDtypeStruct((b, heads, sq), jnp.float32), call.statistic),
        ],
    )


def backward_block(
    q: jax.Array,
    order: jax.Array,
    block: KeyBlock,
    outcome: Outcome,
    tiles: Tiles,
    scale: float,
    dtype: jnp.dtype,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Gradients by the queries, in `dtype`, and by one block's keys and values."""
    d_out, lse, delta = outcome
    call = _Call(q, order, block, tiles.queries, keys_visit=False)
    (dq,) = call(
        functools.partial(kernels.backward_queries, scale=scale),
        [(d_out, call.query), (lse, call.statistic), (delta, call.statistic)],
        [(jax.ShapeDtypeStruct(q.shape, dtype), call.query)],
    )
    call = _Call(q, order, block, tiles.keys, keys_visit=True)
    dk, dv = call(
        functools.partial(kernels.backward_keys, scale=scale),
        [(d_out, call.query), (lse, call.statistic), (delta, call.statistic)],
        [
            (jax.ShapeDtypeStruct(x.shape, x.dtype), call.key)
            for x in (block.k_BxSxKxDh, block.v_BxSxKxDh)
        ],
    )
    return dq, dk, dv


_Operand = tuple[jax.Array, pl.BlockSpec]


class _Call:
    """One kernel's programs: one a row, head and block; what it visits lies before it whole.

    Heads are those of queries, or where blocks of keys visit those of keys, each with the query
    heads that use it.
    """

    def __init__(
        self, q: jax.Array, order: jax.Array, block: KeyBlock, tile: Tile, *, keys_visit: bool
    ):
        self.tile, self.keys_visit = tile, keys_visit
        k = block.k_BxSxKxDh
        sq, sk, dh = q.shape[1], k.shape[1], q.shape[-1]
        kv_heads, group = k.shape[2], q.shape[2] // k.shape[2]
        intervals = (order, block.visible_from_BxS, block.visible_to_BxS)
        sides = (tile.block_q, tile.block_k)
        visited, whole = visited_blocks(*intervals, *sides), whole_blocks(*intervals, *sides)
        if keys_visit:
            visited, whole = visited.swapaxes(1, 2), whole.swapaxes(1, 2)
        # Blocks that are seen whole come first: they need no mask.
        index = jnp.argsort(jnp.where(whole, 0, jnp.where(visited, 1, 2)), axis=-1, stable=True)
        count = jnp.stack([whole.sum(-1), visited.sum(-1)], -1)
        if keys_visit:
            self.grid = (sk // tile.block_k, kv_heads, q.shape[0])
            self.query = pl.BlockSpec((None, sq, group, dh), lambda j, head, row: (row, 0, head, 0))
            self.key = pl.BlockSpec(
                (None, tile.block_k, None, dh), lambda j, head, row: (row, j, head, 0)
            )
            self.statistic = pl.BlockSpec((None, group, sq), lambda j, head, row: (row, head, 0))
            of_query = pl.BlockSpec((None, sq), lambda j, head, row: (row, 0))
            of_key = pl.BlockSpec((None, tile.block_k), lambda j, head, row: (row, j))
        else:
            self.grid = (sq // tile.block_q, q.shape[2], q.shape[0])
            self.query = pl.BlockSpec(
                (None, tile.block_q, None, dh), lambda i, head, row: (row, i, head, 0)
            )
            self.key = pl.BlockSpec(
                (None, sk, None, dh), lambda i, head, row: (row, 0, head // group, 0)
            )
            self.statistic = pl.BlockSpec(
                (None, None, tile.block_q), lambda i, head, row: (row, head, i)
            )
            of_query = pl.BlockSpec((None, tile.block_q), lambda i, head, row: (row, i))
            of_key = pl.BlockSpec((None, sk), lambda i, head, row: (row, 0))

        def visits(x: jax.Array) -> _Operand:
            spec = pl.BlockSpec((None, None, x.shape[-1]), lambda at, head, row: (row, at, 0))
            return x.astype(jnp.int32), spec

        self.operands: list[_Operand] = [
            visits(count),
            visits(index),
            (order, of_query),
            (q, self.query),
            (block.visible_from_BxS, of_key),
            (block.visible_to_BxS, of_key),
            (k, self.key),
            (block.v_BxSxKxDh, self.key),
        ]

    def __call__(
        self,
        kernel: Callable,
        operands: Sequence[_Operand],
        results: Sequence[tuple[jax.ShapeDtypeStruct, pl.BlockSpec]],
    ) -> Any:
        """Runs `kernel` over its common operands and `operands`."""
        given = [*self.operands, *operands]
        visited = self.tile.block_q if self.keys_visit else self.tile.block_k

        def run(*arrays: jax.Array, interpret: bool) -> Any:
            return pl.pallas_call(
                functools.partial(kernel, side=visited),
                out_shape=[shape for shape, _ in results],
                grid=self.grid,
                in_specs=[spec for _, spec in given],
                out_specs=[spec for _, spec in results],
                compiler_params=triton.CompilerParams(
                    num_warps=self.tile.warps, num_stages=self.tile.stages
                ),
                interpret=interpret,
                name=f"interval_attention_{kernel.func.__name__}",
            )(*arrays)

        # The platform is that of the program being lowered, which may not be this process's own.
        return jax.lax.platform_dependent(
            *(array for array, _ in given),
            cuda=functools.partial(run, interpret=False),
            cpu=functools.partial(run, interpret=True),
        )
