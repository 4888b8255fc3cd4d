"""The device mesh: four axes, always all of them, most of size one.

    data     copies of the model; each sees other rows of the batch
    fsdp     rows too, and every weight is cut along its embedding dimension
    tensor   heads and MLP columns of one layer, spread over devices
    context  the tokens of one row, spread over devices

A mesh is put into force with `jax.set_mesh` and with nothing else: under the older `with mesh:` a
sharding constraint can vanish without a word.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import jax
from jax.sharding import AxisType, Mesh

from process_gen.core.configs import MeshConfig
from process_gen.core.errors import ConfigError

MESH_AXES = ("data", "fsdp", "tensor", "context")


def axis_sizes(config: MeshConfig, count: int) -> dict[str, int]:
    """Devices along each mesh axis, of `count` devices in all.

    Raises:
      ConfigError: the sizes do not multiply to `count`.
    """
    sizes = dataclasses.asdict(config)
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if -1 in sizes.values() and count % fixed == 0:
        sizes = {k: count // fixed if v == -1 else v for k, v in sizes.items()}
    if -1 in sizes.values() or math.prod(sizes.values()) != count:
        text = ", ".join(f"{name}={size}" for name, size in dataclasses.asdict(config).items())
        raise ConfigError(f"mesh ({text}) does not fit {count} device(s)")
    return sizes


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Arranges `devices` (all of them by default) as `config` says.

    Raises:
      ConfigError: the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = axis_sizes(config, len(devices))
    shape = tuple(sizes[name] for name in MESH_AXES)
    # Auto: the compiler places what the rules leave open. Explicit axes would ask for a sharding in
    # the type of every intermediate.
    return jax.make_mesh(shape, MESH_AXES, (AxisType.Auto,) * len(MESH_AXES), devices=devices)
