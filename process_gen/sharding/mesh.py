"""The device mesh: four axes, always all of them, most of size one.

    data     copies of the model; each sees other rows of the batch
    fsdp     rows too, and every weight is cut along its embedding dimension
    tensor   heads and MLP columns of one layer, spread over devices
    context  the tokens of one row, spread over devices

Slices of TPUs that only a data centre's network joins lie along `data`, or along `fsdp` as far as
`data` is too short: what crosses that network is then a sum of gradients a step, or with `fsdp` a
weight a layer.

A mesh is put into force with `jax.set_mesh` and with nothing else: under the older `with mesh:` a
sharding constraint can vanish without a word.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
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


def across_slices(sizes: Mapping[str, int], count: int) -> dict[str, int]:
    """How many of `count` slices lie along each mesh axis: along `data` first, then `fsdp`.

    Raises:
      ConfigError: the slices do not divide `data` x `fsdp`.
    """
    of_data = math.gcd(sizes["data"], count)
    if sizes["fsdp"] % (count // of_data):
        raise ConfigError(
            f"{count} slices cannot be dealt to mesh.data={sizes['data']} x mesh.fsdp="
            f"{sizes['fsdp']}; tensor and context must stay inside a slice"
        )
    return {name: 1 for name in MESH_AXES} | {"data": of_data, "fsdp": count // of_data}


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Arranges `devices` (all of them by default) as `config` says.

    Axes that come later lie closer together: on TPUs devices along `context` and `tensor` are
    neighbours, also where these axes share an axis of the torus.

    Raises:
      ConfigError: the sizes do not multiply to the number of devices, or the slices do not divide
        `data` x `fsdp`.
    """
    devices = jax.devices() if devices is None else devices
    sizes = axis_sizes(config, len(devices))
    shape = tuple(sizes[name] for name in MESH_AXES)
    # GPUs have a slice a host, which their order (by process) takes care of.
    on_tpu = devices[0].platform == "tpu"
    slices = len({getattr(device, "slice_index", None) for device in devices}) if on_tpu else 1
    if slices > 1:
        outer = tuple(across_slices(sizes, slices)[name] for name in MESH_AXES)
        inner = tuple(size // count for size, count in zip(shape, outer, strict=True))
        arranged = mesh_utils.create_hybrid_device_mesh(
            inner, outer, devices, allow_split_physical_axes=True
        )
    elif on_tpu:
        arranged = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    else:
        arranged = np.asarray(devices).reshape(shape)
    # Auto: the compiler places what the rules leave open. Explicit axes would ask for a sharding in
    # the type of every intermediate.
    return Mesh(arranged, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))
