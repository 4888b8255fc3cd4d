"""Runs an implementation of interval attention on every device's own rows, queries and heads."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
from jax.sharding import PartitionSpec

from process_gen.core import axes
from process_gen.kernels.key_block import Attention, CachedKeys, KeyBlock
from process_gen.sharding.rules import fit, partition_spec


def per_shard(implementation: Attention) -> Attention:
    """`implementation`, wrapped in `jax.shard_map` over the mesh in force (`jax.set_mesh`).

    Needed for what the compiler cannot cut by itself, above all Pallas kernels. Rows, queries and
    heads are cut by the table of `sharding.rules`; keys and values are gathered along the sequence,
    so that every device's queries see all of them, and their gradients are summed on the way back.
    A dimension that its mesh axes do not divide (one painting on four devices, say) is left whole:
    the devices then repeat one another's work. Without a mesh, on one device, or already inside a
    `shard_map`, nothing is wrapped.
    """

    @functools.wraps(implementation)
    def sharded(
        q_BxSxHxDh: jax.Array, order_BxS: jax.Array, blocks: Sequence[KeyBlock | CachedKeys]
    ) -> jax.Array:
        mesh = jax.sharding.get_abstract_mesh()
        if mesh.empty or mesh.size == 1 or mesh.manual_axes:
            return implementation(q_BxSxHxDh, order_BxS, blocks)
        # A shard must hold whole groups: so many key heads, and the query heads that use them.
        kv_heads = blocks[0][0].shape[1 if isinstance(blocks[0], CachedKeys) else 2]
        sizes = (*q_BxSxHxDh.shape[:2], kv_heads)
        spec = partition_spec((axes.BATCH, axes.SEQUENCE, axes.KV_HEADS))
        rows, queries, heads = fit(spec, sizes, mesh)
        query, interval = PartitionSpec(rows, queries, heads), PartitionSpec(rows)
        key, cached = PartitionSpec(rows, None, heads), PartitionSpec(rows, heads)
        specs = {KeyBlock: (key, key, interval, interval)}
        specs[CachedKeys] = (cached, cached, interval, interval)
        return jax.shard_map(
            implementation,
            in_specs=(
                query,
                PartitionSpec(rows, queries),
                tuple(type(block)._make(specs[type(block)]) for block in blocks),
            ),
            out_specs=query,
            check_vma=False,  # a Pallas call does not say over which axes its results vary
        )(q_BxSxHxDh, order_BxS, tuple(blocks))

    return sharded
