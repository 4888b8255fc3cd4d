"""Attention alone, as programs to compile for devices that are not here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from process_gen.aot.topology import describe
from process_gen.kernels.interval_attention import KeyBlock, interval_attention
from process_gen.sharding.mesh import MESH_AXES

# One chip's name for `topologies`, the smallest slice that the compiler knows of each.
TOPOLOGIES = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}


class Sizes(NamedTuple):
    """Of one call; the defaults are one layer of BAGEL-7B."""

    length: int
    rows: int = 1
    heads: int = 28
    kv_heads: int = 4
    width: int = 128
    dtype: str = "bfloat16"


def tpu_devices(chip: str) -> list[Any]:
    """Four devices that do not exist but can be compiled for."""
    return describe(TOPOLOGIES[chip]).devices


def forward(implementation: str) -> Callable[..., jax.Array]:
    """A function of the arrays of `arguments`, the last one left out."""

    def run(q, k, v, order, start, end):
        return interval_attention(q, order, (KeyBlock(k, v, start, end),), implementation)

    return run


def gradients(implementation: str) -> Callable[..., tuple]:
    """The output and the three gradients, given that of the output."""

    def run(q, k, v, order, start, end, d_out):
        attend = forward(implementation)
        out, pull = jax.vjp(lambda q, k, v: attend(q, k, v, order, start, end), q, k, v)
        return out, pull(d_out)

    return run


def compiled(
    implementation: str,
    sizes: Sizes,
    devices: list[Any] | None = None,
    mesh_sizes: tuple[int, int, int, int] = (1, 1, 1, 1),
    *,
    backward: bool = True,
) -> Any:
    """The compiled program of one call; for `devices`, or for this machine.

    Args:
      implementation: a key of `IMPLEMENTATIONS`.
      sizes: of the whole call.
      devices: of `tpu_devices`.
      mesh_sizes: of `sharding.mesh.MESH_AXES`.
      backward: with the gradients.
    """
    count = 1
    for size in mesh_sizes:
        count *= size
    devices = jax.devices()[:count] if devices is None else devices[:count]
    kinds = (AxisType.Auto,) * len(MESH_AXES)
    mesh = jax.make_mesh(mesh_sizes, MESH_AXES, kinds, devices=devices)
    program = gradients(implementation) if backward else forward(implementation)
    with jax.set_mesh(mesh):
        return jax.jit(program).lower(*arguments(sizes, mesh, backward)).compile()


def arguments(sizes: Sizes, mesh: Mesh, backward: bool) -> list[jax.ShapeDtypeStruct]:
    """Shapes of q, k, v, the three integers and, for gradients, the output's."""
    rows, length, heads, kv_heads, width, dtype = (
        sizes.rows, sizes.length, sizes.heads, sizes.kv_heads, sizes.width, sizes.dtype,
    )  # fmt: skip
    data, fsdp, tensor, context = MESH_AXES
    tokens = NamedSharding(mesh, PartitionSpec((data, fsdp), context))
    spread = NamedSharding(mesh, PartitionSpec((data, fsdp), context, tensor))

    def of_heads(n: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((rows, length, n, width), jnp.dtype(dtype), sharding=spread)

    integers = jax.ShapeDtypeStruct((rows, length), jnp.int32, sharding=tokens)
    given = [of_heads(heads), of_heads(kv_heads), of_heads(kv_heads), *(integers,) * 3]
    return [*given, of_heads(heads)] if backward else given
