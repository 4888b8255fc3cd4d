"""Runs an implementation of interval attention on every device's own rows, queries and heads."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import PartitionSpec

from process_gen.core import axes
from process_gen.kernels.key_block import Attention, KeyBlock
from process_gen.sharding.rules import partition_spec


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
        q_BxSxHxDh: jax.Array, order_BxS: jax.Array, blocks: Sequence[KeyBlock]
    ) -> jax.Array:
        mesh = jax.sharding.get_abstract_mesh()
        if mesh.empty or mesh.size == 1 or mesh.manual_axes:
            return implementation(q_BxSxHxDh, order_BxS, blocks)
        rows, queries, heads = partition_spec((axes.BATCH, axes.SEQUENCE, axes.KV_HEADS))
        b, s, _, _ = q_BxSxHxDh.shape
        rows, queries = _if_divides(mesh, rows, b), _if_divides(mesh, queries, s)
        # A shard must hold whole groups: so many key heads, and the query heads that use them.
        heads = _if_divides(mesh, heads, blocks[0].k_BxSxKxDh.shape[2])
        key, interval = PartitionSpec(rows, None, heads), PartitionSpec(rows)
        query = PartitionSpec(rows, queries, heads)
        return jax.shard_map(
            implementation,
            in_specs=(
                query,
                PartitionSpec(rows, queries),
                tuple(KeyBlock._make((key, key, interval, interval)) for _ in blocks),
            ),
            out_specs=query,
            check_vma=False,  # a Pallas call does not say over which axes its results vary
        )(q_BxSxHxDh, order_BxS, tuple(blocks))

    return sharded


def _if_divides(mesh: Any, part: Any, size: int) -> Any:
    """As many of the first mesh axes of a dimension as divide it; None where none does."""
    used = part if isinstance(part, tuple) else (part,) if part else ()
    while used and size % math.prod(mesh.shape[name] for name in used):
        used = used[:-1]
    return used or None
