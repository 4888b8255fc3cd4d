"""Attention under the interval rule of `core.attention_mask`, for training and for the KV cache.

One interface, `interval_attention`: queries with an order each, and one or more blocks of keys and
values with an interval each (a cache and the new tokens, say, which need not be copied together).
Grouped query heads are supported. A query that sees no key returns 0 and has zero gradient.

* `dense` holds the scores of one layer, ``[B, H, Sq, Sk]``; the reference, and fastest for few
  queries.
* `chunked` walks over blocks of keys with a running softmax, skips those that nobody sees, and
  recomputes the others in the backward pass: no array of more than 512 x 512 pairs a head on any
  platform. Rows of no more pairs than that go to `dense`.
* `rows` is `chunked` for every row by itself, sorted by order, in blocks of 64: for
  training on a CPU, where few of many pairs are visible (docs/performance.md). Over a cache it is
  `dense`, which reads a cache as it lies.
* `native` walks over sorted rows too, in strips of 16 keys, in C++ on all cores (`native`), and
  reads a cache as it lies; it wants a C++ compiler.
* `pallas` is the same walk as TPU kernels (`flash_tpu`), `triton` as kernels for NVIDIA GPUs
  (`flash_gpu`).
* `auto` is `pallas` on TPUs, `triton` on GPUs, and on CPUs `native`, or `rows` where that
  cannot be compiled.

Fewer than 16 queries over a cache, such as a text that is being written, go to `dense`, but for
`native` over caches in float32.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax

from process_gen.kernels import flash_gpu, flash_tpu
from process_gen.kernels.by_row import by_row
from process_gen.kernels.chunked import chunked
from process_gen.kernels.dense import MIN_QUERIES, dense
from process_gen.kernels.key_block import Attention, CachedKeys, KeyBlock, PooledKeys
from process_gen.kernels.native import lies_well, native
from process_gen.kernels.native_library import available
from process_gen.kernels.per_shard import per_shard
from process_gen.sharding import rules

__all__ = [
    "IMPLEMENTATIONS",
    "Attention",
    "CachedKeys",
    "KeyBlock",
    "PooledKeys",
    "chunked",
    "dense",
    "interval_attention",
]


def chosen(implementation: str) -> str:
    """What "auto" stands for on the devices of the mesh in force, which need not be here."""
    if implementation != "auto":
        return implementation
    platform = rules.platform()
    if platform == "cpu":
        return "native" if available() else "rows"
    return {"tpu": "pallas", "gpu": "triton"}.get(platform, "chunked")


def reads_pools(implementation: str, queries: int, keys: jax.Array, slots: int) -> bool:
    """Whether so many queries read `PooledKeys` where they lie, and do not copy them first.

    Args:
      implementation: of `interval_attention`.
      queries: of a row.
      keys: of the pool, ``[..., Dh, C]``.
      slots: of each row that are seen.
    """
    native_alone = chosen(implementation) == "native" and rules.mesh_in_force() is None
    return native_alone and (queries >= MIN_QUERIES or lies_well(keys, slots))


def _auto(q_BxSxHxDh: jax.Array, order_BxS: jax.Array, blocks: Sequence[KeyBlock]) -> jax.Array:
    return IMPLEMENTATIONS[chosen("auto")](q_BxSxHxDh, order_BxS, blocks)


# The compiler knows how to cut plain matrix products; loops and kernels are run per shard.
IMPLEMENTATIONS: dict[str, Attention] = {
    "dense": dense,
    "rows": per_shard(by_row),
    "native": per_shard(native),
    "chunked": per_shard(chunked),
    "pallas": per_shard(flash_tpu.flash),
    "triton": per_shard(flash_gpu.flash),
    "auto": _auto,
}


def interval_attention(
    q_BxSxHxDh: jax.Array,
    order_BxS: jax.Array,
    blocks: Sequence[KeyBlock | CachedKeys | PooledKeys],
    implementation: str = "dense",
) -> jax.Array:
    """Softmax attention of every query over the keys whose interval holds its order.

    Args:
      q_BxSxHxDh: queries, normed and rotated, not yet scaled by 1/sqrt(Dh).
      order_BxS: int32 orders of the queries.
      blocks: keys and values; their number of heads divides H. Only `dense` and `native` read
        `CachedKeys` as they lie; `rows`, and others for few queries, are `dense` then. `native`
        alone reads `PooledKeys` so.
      implementation: a key of `IMPLEMENTATIONS`.

    Returns:
      ``[B, S, H, Dh]`` in the type of `q`; 0 for a query that sees nothing.
    """
    implementation = chosen(implementation)
    caches = [block for block in blocks if not isinstance(block, KeyBlock)]
    few = q_BxSxHxDh.shape[1] < MIN_QUERIES
    if implementation == "native" and few:
        few = not all(lies_well(cache[0], cache[-1].shape[1]) for cache in caches)
    if caches and (few or implementation == "rows"):
        implementation = "dense"
    if implementation != "native" or rules.mesh_in_force() is not None:
        blocks = [block.taken() if isinstance(block, PooledKeys) else block for block in blocks]
    if implementation not in ("dense", "native"):
        blocks = [block.block() if isinstance(block, CachedKeys) else block for block in blocks]
    return IMPLEMENTATIONS[implementation](q_BxSxHxDh, order_BxS, blocks)
