"""Work that each process does for itself, without asking the others, and how it joins a mesh."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from process_gen.sharding import rules

_AXIS = "device"


def local_mesh(mesh: Mesh) -> Mesh:
    """The devices of this process in a row, whatever they do in `mesh`."""
    mine = [d for d in mesh.devices.flat if d.process_index == jax.process_index()]
    return Mesh(np.array(mine), (_AXIS,), axis_types=(AxisType.Auto,))


def dealt(local: Mesh) -> NamedSharding:
    """Of an array whose first dimension is dealt to the devices of `local_mesh`."""
    return NamedSharding(local, PartitionSpec(_AXIS))


def on_each_device(
    function: Callable[[Any, Any], jax.Array], mesh: Mesh
) -> Callable[[Any, Any], jax.Array]:
    """``(local, rows) -> rows``: a function that every device applies to what it holds.

    Args:
      function: ``(whole, its rows) -> its rows``; no device sees another one's.
      mesh: from `mesh.make_mesh`.

    Returns:
      The jitted function of an array that every device of `local_mesh` holds whole, with contents
      that may differ between processes, and of an array placed by `rules.put_batch`. Its result is
      placed as the latter.
    """
    every = PartitionSpec(mesh.axis_names)
    rows = rules.batch_sharding(mesh).spec
    mapped = jax.jit(
        # The result is the same on devices that hold the same rows, which cannot be proven here.
        jax.shard_map(function, mesh=mesh, in_specs=(every, rows), out_specs=rows, check_vma=False)
    )

    def call(local: jax.Array, rows: Any) -> jax.Array:
        shape = (mesh.size * local.shape[0], *local.shape[1:])
        pieces = [shard.data for shard in local.addressable_shards]
        joined = jax.make_array_from_single_device_arrays(shape, NamedSharding(mesh, every), pieces)
        return mapped(joined, rows)

    return call
