"""Functions that every device runs on its own piece of arrays, inside a jitted program."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax

from process_gen.sharding import rules


def spread(
    function: Callable[..., jax.Array],
    arguments: Sequence[Any],
    names: Sequence[Any],
    out_names: tuple[str | None, ...],
) -> jax.Array:
    """Calls `function` with the pieces that a device has of `arguments`.

    Args:
      function: of pieces; must give the same on devices whose pieces are the same.
      arguments: trees of arrays.
      names: like `arguments`, a tuple of logical axis names an array.
      out_names: of the result, whose dimensions with a name are those of the first argument.

    Returns:
      The whole result. Without a mesh in force, or on one device, that of a plain call.
    """
    mesh = rules.mesh_in_force()
    if mesh is None:
        return function(*arguments)
    in_specs = jax.tree.map(lambda x, n: rules.fitting_spec(n, x.shape, mesh), arguments, names)
    out_spec = rules.fitting_spec(out_names, arguments[0].shape, mesh)
    # Whether an output is the same on devices that hold the same pieces cannot be proven for
    # kernels; the names above say so.
    mapped = jax.shard_map(function, in_specs=in_specs, out_specs=out_spec, check_vma=False)
    return mapped(*arguments)


def gatherer(name: str, size: int) -> Callable[[jax.Array, int], jax.Array]:
    """``(piece, dimension) -> whole`` for use inside of `spread`.

    Args:
      name: logical axis of the dimension to be gathered.
      size: of that dimension as a whole. One that the mesh does not divide is whole already.
    """
    mesh = rules.mesh_in_force()
    spec = None if mesh is None else rules.fitting_spec((name,), (size,), mesh)[0]
    if spec is None:
        return lambda x, dimension: x
    return lambda x, dimension: jax.lax.all_gather(x, spec, axis=dimension, tiled=True)
