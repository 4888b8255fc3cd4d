"""Devices that are not here but can be compiled for."""

from __future__ import annotations

import importlib.metadata
import math
import os
import re
from typing import Any, NamedTuple

from jax.experimental import topologies

from process_gen.aot.chips import CHIPS, Chip
from process_gen.core.errors import ConfigError


class Topology(NamedTuple):
    """Slices of one kind of chip.

    Attributes:
      chip: its chips.
      devices: described ones, for a mesh; one a chip.
    """

    chip: Chip
    devices: list[Any]


def describe(name: str, slices: int = 1) -> Topology:
    """Reads a name: a chip, and the chips along each axis of a slice, or hosts and GPUs of each.

    A v5p slice that is called v5p-128 has 64 chips, for such names count cores: "v5p:4x4x4".

    Args:
      name: such as "v5p:4x4x4", "h100:8" or "h100:4x8".
      slices: slices of TPUs of that shape, joined by a data centre's network.

    Raises:
      ConfigError: an unknown chip, a shape that it is not built in, or no compiler for it.
    """
    found = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)", name)
    if not found or found[1] not in CHIPS:
        raise ConfigError(
            f"topology {name!r}: expected a chip and a shape such as v5p:4x4x4 or h100:8; chips: "
            f"{', '.join(CHIPS)}"
        )
    chip, sides = CHIPS[found[1]], [int(side) for side in found[2].split("x")]
    devices = _gpus(chip, sides, slices) if chip.platform == "gpu" else _tpus(name, slices)
    if len(devices) != slices * math.prod(sides):
        raise ConfigError(f"topology {name!r} has {len(devices)} devices, not one a chip")
    return Topology(chip, devices)


def compiler(chip: Chip) -> str:
    """The distribution that compiles for a chip.

    Raises:
      ConfigError: it is not installed.
    """
    names = {"tpu": ("libtpu",), "gpu": ("jax-cuda12-plugin", "jax-cuda13-plugin")}[chip.platform]
    for name in names:
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        return name
    extra = {"tpu": "tpu", "gpu": "cuda"}[chip.platform]
    raise ConfigError(
        f"the {chip.platform.upper()} compiler is not installed; it comes with the extra: "
        f"pip install -e '.[{extra}]'"
    )


def _tpus(name: str, slices: int) -> list[Any]:
    compiler(CHIPS[name.split(":")[0]])
    # Several processes may compile at a time, and none of them asks a cloud what machine this is.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    # Slices smaller than a host exist of one size only.
    options = {"num_slices": slices} if slices > 1 else {}
    try:
        return list(topologies.get_topology_desc(name, "tpu", **options).devices)
    except Exception as error:  # whatever the compiler's plugin raises
        text = " ".join(str(error).split())[:200]
        raise ConfigError(f"topology {name!r} is unknown to the TPU compiler: {text}") from error


# What XLA's GPU compiler asks of a device (`GpuTargetConfigProto`): Hopper's sizes in CUDA's terms.
_HOPPER = """
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98
  shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472 l2_cache_size: 52428800
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: {bandwidth:.0f} device_memory_size: {memory}
  cuda_compute_capability {{ major: 9 }}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 8 }}
runtime_version {{ major: 12 minor: 8 }}
device_description_str: "NVIDIA {name}"
"""


def _gpus(chip: Chip, sides: list[int], slices: int) -> list[Any]:
    if len(sides) > 2 or slices > 1:
        raise ConfigError(
            f"topology {chip.name}:{'x'.join(map(str, sides))}, {slices} slices: GPUs come as "
            f"{chip.name}:GPUS of one host, or {chip.name}:HOSTSxGPUS of each"
        )
    compiler(chip)
    # The plugin looks for a driver, which compiling does without.
    os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")
    hosts, each = (1, *sides)[-2:]
    target = _HOPPER.format(bandwidth=chip.bandwidth, memory=chip.memory, name=chip.name.upper())
    try:
        found = topologies.get_topology_desc(
            chip.name, "cuda", target_config=target, topology=f"1x{hosts}x{each}"
        )
    except NotImplementedError as error:
        raise ConfigError(
            "jax was asked for devices before, and found no driver for GPUs: set "
            "JAX_SKIP_CUDA_CONSTRAINTS_CHECK=1 for the process"
        ) from error
    return list(found.devices)
