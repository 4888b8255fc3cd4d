"""The one table from logical axis names to mesh axes, and what follows from it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from process_gen.core import axes
from process_gen.core.errors import ConfigError

RULES: Mapping[str, tuple[str, ...]] = {
    axes.LAYERS: (),  # scanned over, one layer at a time: never cut
    axes.EMBED: ("fsdp",),  # weights at rest; gathered for each layer as it runs
    axes.EMBED_OUT: (),  # its partner `embed` is cut already
    axes.HEADS: ("tensor",),  # query heads, flattened with their width or not
    axes.KV_HEADS: ("tensor",),  # key-value heads; there must be enough of them
    axes.HEAD_DIM: (),  # RoPE and QK-norm mix it
    axes.MLP: ("tensor",),  # columns of gate and up, rows of down
    axes.VOCAB: ("tensor",),  # rows of the embedding, columns of the head
    axes.PATCH: (),  # pixels or latents of a token: short
    axes.RANK: (),  # of an adapter: short
    axes.BATCH: ("data", "fsdp"),  # fsdp devices see different rows, as ZeRO does
    axes.SEQUENCE: ("context",),  # tokens of a row
}


def partition_spec(names: Sequence[str | None]) -> PartitionSpec:
    """The partition of an array whose dimensions carry `names`; None is a dimension left whole.

    A mesh axis cuts one dimension only: where two names ask for it, the first one gets it. So the
    `embed` of an activation stays whole, its `batch` having taken `fsdp`.

    Raises:
      ConfigError: a name that is not in the table.
    """
    taken: set[str] = set()
    parts: list[Any] = []
    for name in names:
        if name is not None and name not in RULES:
            raise ConfigError(f"unknown logical axis {name!r}; known: {', '.join(RULES)}")
        free = tuple(a for a in RULES[name] if a not in taken) if name is not None else ()
        taken.update(free)
        parts.append(free if len(free) > 1 else (free[0] if free else None))
    return PartitionSpec(*parts)


def logical_to_sharding(logical_axes: Any, mesh: Mesh, shapes: Any = None) -> Any:
    """Shardings of a tree of weights.

    Args:
      logical_axes: nested dict with a tuple of logical names per leaf.
      mesh: from `mesh.make_mesh`.
      shapes: matching tree of anything with a `.shape`; when given, sizes are checked.

    Returns:
      The same nested dict with a `NamedSharding` per leaf.

    Raises:
      ConfigError: unknown name, wrong number of names, or a size that its mesh axes do not divide;
        the text names the weight.
    """

    def sharding(path: Any, names: tuple[str, ...], *shaped: Any) -> NamedSharding:
        where = jax.tree_util.keystr(path, simple=True, separator="/")
        spec = partition_spec(names)
        if shaped:
            _check_shape(where, names, spec, shaped[0].shape, mesh)
        return NamedSharding(mesh, spec)

    rest = () if shapes is None else (shapes,)
    return jax.tree.map_with_path(
        sharding, logical_axes, *rest, is_leaf=lambda x: isinstance(x, tuple)
    )


def _check_shape(
    where: str, names: Sequence[str], spec: PartitionSpec, shape: Sequence[int], mesh: Mesh
) -> None:
    if len(names) != len(shape):
        raise ConfigError(f"weight {where} has shape {tuple(shape)} but logical axes {names}")
    for name, part, size in zip(names, spec, shape, strict=True):
        used = part if isinstance(part, tuple) else (part,) if part else ()
        pieces = math.prod(mesh.shape[a] for a in used)
        if size % pieces:
            raise ConfigError(
                f"weight {where}: axis {name!r} of size {size} cannot be cut into {pieces} "
                f"(mesh.{', mesh.'.join(used)}); choose a mesh that divides it"
            )


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of what every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of an array [rows, ...] of a batch: rows over `data` and `fsdp`."""
    return NamedSharding(mesh, partition_spec((axes.BATCH,)))


def check_rows(rows: int, mesh: Mesh) -> None:
    """Raises ConfigError unless `rows` packs can be dealt evenly to the mesh."""
    pieces = math.prod(mesh.shape[a] for a in RULES[axes.BATCH])
    if rows % pieces:
        raise ConfigError(
            f"data.rows={rows} cannot be dealt to mesh.data x mesh.fsdp = {pieces} devices; "
            f"choose a multiple of {pieces}"
        )


def row_blocks(mesh: Mesh) -> tuple[tuple[int, ...], int]:
    """The rows of a batch that this process's devices hold.

    Returns:
      `(blocks, count)`: a batch is cut into `count` equal blocks of consecutive rows; `blocks` are
      the numbers of those needed here, rising. Processes that work on the same rows, because
      `tensor` or `context` spans them, need the same blocks.
    """
    count = math.prod(mesh.shape[a] for a in RULES[axes.BATCH])
    places = batch_sharding(mesh).addressable_devices_indices_map((count,)).values()
    return tuple(sorted({place[0].indices(count)[0] for place in places if place})), count


def put_batch(batch: Any, mesh: Mesh) -> Any:
    """Moves a host batch to the devices.

    Args:
      batch: tree of numpy arrays [local rows, ...], the blocks of the global batch that
        `row_blocks` names, in that order.
      mesh: from `mesh.make_mesh`.

    Returns:
      The tree of global arrays, rows sharded.
    """
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


def constrain(x: jax.Array, names: Sequence[str | None]) -> jax.Array:
    """Asks the compiler to lay out activation `x` by the logical `names` of its dimensions.

    Without a mesh in force, or on one device, `x` comes back as it is (names are checked anyway).
    """
    spec = partition_spec(names)
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, spec)
