"""The one table from logical axis names to mesh axes, and what follows from it.

Weights rest in as many pieces as possible and are gathered, one layer at a time and in the type of
the computation, by the devices that use them (`in_use`). Activations stay where their tokens are.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from process_gen.core import axes
from process_gen.core.configs import DataConfig, ModelConfig
from process_gen.core.errors import ConfigError

RULES: Mapping[str, tuple[str, ...]] = {
    axes.LAYERS: (),  # scanned over, one layer at a time: never cut
    axes.EMBED: ("fsdp", "context"),  # weights at rest; gathered for each layer as it runs
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
    axes.RESIDUAL: ("context", "tensor"),  # the same between blocks, where heads are whole again
    axes.LOOKUP: ("data",),  # rows of ids while each device reads its own columns of a table
}

# Logical axes that are whole while a weight is used: what `in_use` gathers.
GATHERED = (axes.EMBED,)


def partition_spec(names: Sequence[str | None]) -> PartitionSpec:
    """The partition of an array whose dimensions carry `names`; None is a dimension left whole.

    A mesh axis cuts one dimension only: where two names ask for it, the first one gets it.

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
      shapes: matching tree of anything with a `.shape`; when given, sizes are checked, and a
        further mesh axis of a rule that does not divide its dimension is left out.

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
            spec = _check_shape(where, names, spec, shaped[0].shape, mesh)
        return NamedSharding(mesh, spec)

    rest = () if shapes is None else (shapes,)
    return jax.tree.map_with_path(
        sharding, logical_axes, *rest, is_leaf=lambda x: isinstance(x, tuple)
    )


def _check_shape(
    where: str, names: Sequence[str], spec: PartitionSpec, shape: Sequence[int], mesh: Mesh
) -> PartitionSpec:
    """The partition as far as it divides the shape; a name must be cut by its first axis."""
    if len(names) != len(shape):
        raise ConfigError(f"weight {where} has shape {tuple(shape)} but logical axes {names}")
    fitted = fit(spec, shape, mesh)
    for name, part, wanted, size in zip(names, fitted, spec, shape, strict=True):
        if wanted is not None and part is None:
            first = _axes_of(wanted)[0]
            raise ConfigError(
                f"weight {where}: axis {name!r} of size {size} cannot be cut into "
                f"{mesh.shape[first]} (mesh.{first}); choose a mesh that divides it"
            )
    return fitted


def _axes_of(part: Any) -> tuple[str, ...]:
    return part if isinstance(part, tuple) else (part,) if part else ()


def fit(spec: PartitionSpec, shape: Sequence[int], mesh: Any) -> PartitionSpec:
    """`spec` with, in each dimension, only as many of its first axes as divide the size."""
    parts: list[Any] = []
    for part, size in zip(spec, shape, strict=True):
        used = _axes_of(part)
        while used and size % math.prod(mesh.shape[a] for a in used):
            used = used[:-1]
        parts.append(used if len(used) > 1 else (used[0] if used else None))
    return PartitionSpec(*parts)


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of what every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of an array [rows, ...] of a batch: rows over `data` and `fsdp`."""
    return NamedSharding(mesh, partition_spec((axes.BATCH,)))


def token_sharding(shape: Sequence[int], mesh: Mesh) -> NamedSharding:
    """The sharding of an array [rows, tokens, ...] of a batch, as `put_batch` places it."""
    names = (axes.BATCH, axes.SEQUENCE)[: len(shape)]
    spec = partition_spec(names + (None,) * (len(shape) - len(names)))
    return NamedSharding(mesh, PartitionSpec(spec[0], *fit(spec, shape, mesh)[1:]))


def check_lengths(data: DataConfig, mesh: Mesh) -> None:
    """Raises ConfigError unless each part of a pack can be dealt evenly to the mesh."""
    for name in ("text_len", "und_len", "gen_len"):
        _check_size(f"data.{name}", getattr(data, name), axes.SEQUENCE, mesh)


def check_heads(model: ModelConfig, mesh: Mesh) -> None:
    """Raises ConfigError unless the attention's heads can be dealt evenly to the mesh."""
    _check_size("model.num_heads", model.num_heads, axes.HEADS, mesh)
    # Queries of one group need its keys: half a key head is of no use to anyone.
    _check_size("model.num_kv_heads", model.num_kv_heads, axes.KV_HEADS, mesh)
    if model.und_encoder == "siglip":
        _check_size("model.vit.num_heads", model.vit.num_heads, axes.HEADS, mesh)


def _check_size(key: str, size: int, name: str, mesh: Mesh) -> None:
    pieces = math.prod(mesh.shape[a] for a in RULES[name])
    if size % pieces:
        raise ConfigError(
            f"{key}={size} cannot be dealt to mesh.{', mesh.'.join(RULES[name])} = {pieces} "
            f"devices; choose a divisor of {size}, or another {key}"
        )


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
      The tree of global arrays: rows sharded, and the second dimension, tokens, over `context`
      where it divides them.
    """
    blocks, count = row_blocks(mesh)

    def put(x: Any) -> jax.Array:
        # Of its rows a process holds every token, also where `context` spans processes.
        shape = (x.shape[0] * count // len(blocks), *x.shape[1:])
        return jax.make_array_from_process_local_data(token_sharding(shape, mesh), x, shape)

    return jax.tree.map(put, batch)


def mesh_in_force() -> Any:
    """The mesh that `jax.set_mesh` put into force; None without one, or with a single device."""
    mesh = jax.sharding.get_abstract_mesh()
    return None if mesh.empty or mesh.size == 1 else mesh


def platform() -> str:
    """Of the devices of the mesh in force, which need not be here; jax's default without one."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def pieces(name: str) -> int:
    """Into how many pieces the mesh in force cuts a logical axis."""
    mesh = mesh_in_force()
    return 1 if mesh is None else math.prod(mesh.shape[a] for a in RULES[name])


def constrain(x: jax.Array, names: Sequence[str | None]) -> jax.Array:
    """Asks the compiler to lay out activation `x` by the logical `names` of its dimensions.

    A dimension that its mesh axes do not divide (one picture on eight devices) is cut by as many of
    them as do. Without a mesh in force, or on one device, `x` comes back as it is (names are
    checked anyway).
    """
    spec = partition_spec(names)
    mesh = mesh_in_force()
    if mesh is None:
        return x
    return jax.lax.with_sharding_constraint(x, fit(spec, x.shape, mesh))


def in_use(weight: jax.Array, names: Sequence[str | None]) -> jax.Array:
    """A weight for the computation: gathered along `GATHERED`, still cut along the other axes.

    Call it on the weight in the type of the computation, inside the layer that uses it: left to
    itself the compiler may gather a batch of activations instead. The gradient is scattered again.
    """
    return _gathered(weight, names, GATHERED)


def all_tokens(x: jax.Array, names: Sequence[str | None]) -> jax.Array:
    """An activation gathered along its sequence, as every query needs the keys of its row.

    Args:
      x: of any shape.
      names: its logical axes, `axes.SEQUENCE` among them. The gradient is scattered again.
    """
    return _gathered(x, names, (axes.SEQUENCE,))


def _gathered(x: jax.Array, names: Sequence[str | None], gathered: tuple[str, ...]) -> jax.Array:
    partition_spec(names)  # raises on an unknown name, mesh or not
    whole = tuple(None if name in gathered else name for name in names)
    return x if mesh_in_force() is None else _gather(x, tuple(names), whole)


def lookup(table_WxD: jax.Array, id_BxN: jax.Array) -> jax.Array:
    """Rows ``[B, N, D]`` of a table with the logical axes vocab and embed.

    Every device reads its own columns for all rows that share them; then columns are exchanged for
    tokens. So the ids travel and what was read, but not the table.
    """
    read = table_WxD[constrain(id_BxN, (axes.LOOKUP, None))]
    read = constrain(read, (axes.LOOKUP, None, axes.EMBED))
    read = constrain(read, (axes.BATCH, None, axes.EMBED))  # one exchange at a time
    return constrain(read, (axes.BATCH, axes.SEQUENCE, None))


_Names = tuple[str | None, ...]


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _gather(x: jax.Array, names: _Names, whole: _Names) -> jax.Array:
    return constrain(x, whole)


def _gather_forward(x: jax.Array, names: _Names, whole: _Names) -> tuple[jax.Array, None]:
    return constrain(x, whole), None


def _gather_backward(names: _Names, whole: _Names, _: None, grad: jax.Array) -> tuple[jax.Array]:
    # Summed whole, then cut: compilers make that one reduce-scatter. Told to cut at once, they move
    # the activations that the gradient is a product of.
    return (constrain(constrain(grad, whole), names),)


_gather.defvjp(_gather_forward, _gather_backward)
