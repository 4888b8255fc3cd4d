"""Calls of the kernels of `flash_kernels`: walks, grids, and which block lies where.

Heads stay side by side in the last dimension, ``[B, S, H * Dh]``, as the projections make them. One
program works on all query heads of one key head: keys and values are fetched once a group, and the
mask is computed once. A row's blocks are dealt to two programs, for chips with two cores a device.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from process_gen.kernels import flash_kernels
from process_gen.kernels.block_visits import PAIR_BITS, Walks, visited_blocks, walks
from process_gen.kernels.flash_kernels import LANES

_VMEM_BYTES = 48 * 2**20  # of 64 MB a core on v5p, 128 on v5e and v6e


class Sizes(NamedTuple):
    """What a kernel must know before it is traced."""

    kv_heads: int
    block_q: int
    block_k: int


class FlatBlock(NamedTuple):
    """A `KeyBlock` with heads side by side, ``[B, Sk, K * Dh]``, filled up to whole blocks."""

    k: jax.Array
    v: jax.Array
    visible_from: jax.Array
    visible_to: jax.Array


class Queries(NamedTuple):
    """Queries ``[B, Sq, H * Dh]``, scaled, and their orders, filled up to whole blocks."""

    q: jax.Array
    order: jax.Array


class Outcome(NamedTuple):
    """What the backward pass knows of the forward pass.

    Attributes:
      d_out: gradient by the output, shaped as the queries.
      lse, delta: float32 ``[B, K, H / K, Sq]``: log-sum-exp of the scores, and the product of
        output and `d_out`.
    """

    d_out: jax.Array
    lse: jax.Array
    delta: jax.Array


def forward(
    queries: Queries, block: FlatBlock, sizes: Sizes, dtype: Any
) -> tuple[jax.Array, jax.Array]:
    """Output in `dtype`, and log-sum-exp."""
    plan = _plan(queries, block, sizes, keys_visit=False)
    b, sq, _ = queries.q.shape
    statistic = pltpu.VMEM((plan.group, sizes.block_q, LANES), jnp.float32)
    out, lse = plan.call(
        flash_kernels.forward,
        plan.operands(queries, block, None),
        [
            (jax.ShapeDtypeStruct(queries.q.shape, dtype), plan.query),
            (
                jax.ShapeDtypeStruct((b, sizes.kv_heads, plan.group, sq), jnp.float32),
                plan.statistic,
            ),
        ],
        [statistic, statistic, pltpu.VMEM((sizes.block_q, plan.group * plan.dh), jnp.float32)],
    )
    return out, lse


def backward_queries(
    queries: Queries, block: FlatBlock, outcome: Outcome, sizes: Sizes, dtype: Any
) -> jax.Array:
    """The gradient by the queries, in `dtype`."""
    plan = _plan(queries, block, sizes, keys_visit=False)
    statistic = pltpu.VMEM((plan.group, sizes.block_q, LANES), jnp.float32)
    (dq,) = plan.call(
        flash_kernels.backward_queries,
        plan.operands(queries, block, outcome),
        [(jax.ShapeDtypeStruct(queries.q.shape, dtype), plan.query)],
        [statistic, statistic, pltpu.VMEM((sizes.block_q, plan.group * plan.dh), jnp.float32)],
    )
    return dq


def backward_keys(
    queries: Queries, block: FlatBlock, outcome: Outcome, sizes: Sizes
) -> tuple[jax.Array, jax.Array]:
    """The gradients by keys and values."""
    plan = _plan(queries, block, sizes, keys_visit=True)
    total = pltpu.VMEM((sizes.block_k, plan.dh), jnp.float32)
    dk, dv = plan.call(
        flash_kernels.backward_keys,
        plan.operands(queries, block, outcome),
        [(jax.ShapeDtypeStruct(x.shape, x.dtype), plan.key) for x in (block.k, block.v)],
        [total, total],
    )
    return dk, dv


_Operand = tuple[jax.Array, pl.BlockSpec]


class _Plan(NamedTuple):
    """One call's walks and blocks. `keys_visit`: blocks of keys visit blocks of queries."""

    sizes: Sizes
    group: int
    dh: int
    rows: int
    walks: Walks
    keys_visit: bool

    def _spec(
        self, shape: tuple[int | None, ...], queries: bool, place: Callable[..., tuple]
    ) -> pl.BlockSpec:
        """Where a program finds its block; `place` takes a row, a key head and a block."""
        length = self.walks.pairs_BxPxN.shape[-1]

        def index(program: Any, step: Any, pairs_ref: Any, count_ref: Any) -> tuple:
            own = flash_kernels.program_of(program, count_ref, self.sizes.kv_heads, self.rows)
            pair = pairs_ref[own.walk * length + step]
            visited = queries == self.keys_visit
            at = pair & ((1 << PAIR_BITS) - 1) if visited else pair >> PAIR_BITS
            return place(own.row, own.head, at)

        return pl.BlockSpec(shape, index)

    @property
    def query(self) -> pl.BlockSpec:
        """Blocks of ``[B, Sq, H * Dh]``."""
        shape = (None, self.sizes.block_q, self.group * self.dh)
        return self._spec(shape, True, lambda row, head, i: (row, i, head))

    @property
    def key(self) -> pl.BlockSpec:
        """Blocks of ``[B, Sk, K * Dh]``."""
        shape = (None, self.sizes.block_k, self.dh)
        return self._spec(shape, False, lambda row, head, j: (row, j, head))

    @property
    def statistic(self) -> pl.BlockSpec:
        """Blocks of ``[B, K, H / K, Sq]``."""
        shape = (None, None, self.group, self.sizes.block_q)
        return self._spec(shape, True, lambda row, head, i: (row, head, 0, i))

    def integers(self, x_BxS: jax.Array, queries: bool) -> _Operand:
        """Integers of tokens: along rows of the scores if their block visits, else along lanes."""
        size = self.sizes.block_q if queries else self.sizes.block_k
        if queries == self.keys_visit:
            return x_BxS[:, None], self._spec((None, 1, size), queries, lambda r, _, i: (r, 0, i))
        return x_BxS[..., None], self._spec((None, size, 1), queries, lambda r, _, i: (r, i, 0))

    def operands(
        self, queries: Queries, block: FlatBlock, outcome: Outcome | None
    ) -> list[_Operand]:
        """In the order of the kernels' arguments."""
        given = [
            self.integers(queries.order, True),
            (queries.q, self.query),
            self.integers(block.visible_from, False),
            self.integers(block.visible_to, False),
            (block.k, self.key),
            (block.v, self.key),
        ]
        if outcome is None:
            return given
        statistics = [(outcome.lse, self.statistic), (outcome.delta, self.statistic)]
        return [*given, (outcome.d_out, self.query), *statistics]

    def call(
        self,
        kernel: Callable,
        operands: Sequence[_Operand],
        results: Sequence[tuple[jax.ShapeDtypeStruct, pl.BlockSpec]],
        scratch: Sequence[Any],
    ) -> Any:
        """Runs `kernel` once for every row, key head, walker and visit.

        The grid is as long as the longest walk of this very call: the data decides.
        """
        count_BxP = self.walks.count_BxP
        programs = count_BxP.size * self.sizes.kv_heads

        def run(steps: jax.Array, *arrays: jax.Array, interpret: bool) -> Any:
            return pl.pallas_call(
                functools.partial(kernel, kv_heads=self.sizes.kv_heads, rows=self.rows),
                out_shape=[shape for shape, _ in results],
                grid_spec=pltpu.PrefetchScalarGridSpec(
                    num_scalar_prefetch=2,
                    grid=(programs, steps),
                    in_specs=[spec for _, spec in operands],
                    out_specs=[spec for _, spec in results],
                    scratch_shapes=scratch,
                ),
                compiler_params=pltpu.CompilerParams(
                    dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=_VMEM_BYTES
                ),
                interpret=interpret,
                name=f"interval_attention_{kernel.__name__}",
            )(*arrays)

        # The platform is that of the program being lowered, which may not be this process's own.
        return jax.lax.platform_dependent(
            count_BxP.max(),
            self.walks.pairs_BxPxN.reshape(-1),
            count_BxP.reshape(-1),
            *(array for array, _ in operands),
            tpu=functools.partial(run, interpret=False),
            cpu=functools.partial(run, interpret=True),
        )


def _plan(queries: Queries, block: FlatBlock, sizes: Sizes, *, keys_visit: bool) -> _Plan:
    dh = block.k.shape[-1] // sizes.kv_heads
    visited = visited_blocks(
        queries.order, block.visible_from, block.visible_to, sizes.block_q, sizes.block_k
    )
    return _Plan(
        sizes,
        group=queries.q.shape[-1] // block.k.shape[-1],
        dh=dh,
        rows=queries.q.shape[0],
        walks=walks(visited.swapaxes(1, 2) if keys_visit else visited),
        keys_visit=keys_visit,
    )
