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
    """Reads a name: a chip, and the chips along each axis of a slice.

    A v5p slice that is called v5p-128 has 64 chips, for such names count cores: "v5p:4x4x4".

    Args:
      name: such as "v5p:4x4x4".
      slices: slices of that shape, joined by a data centre's network.

    Raises:
      ConfigError: an unknown chip, a shape that it is not built in, or no TPU compiler.
    """
    found = re.fullmatch(r"(\w+):(\d+(?:x\d+)+)", name)
    if not found or found[1] not in CHIPS:
        raise ConfigError(
            f"topology {name!r}: expected a chip and a shape such as v5p:4x4x4; chips: "
            f"{', '.join(CHIPS)}"
        )
    try:
        importlib.metadata.version("libtpu")
    except importlib.metadata.PackageNotFoundError as error:
        raise ConfigError(
            "the TPU compiler is not installed; it comes with the extra: pip install -e '.[tpu]'"
        ) from error
    # Several processes may compile at a time, and none of them asks a cloud what machine this is.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    # Slices smaller than a host exist of one size only.
    options = {"num_slices": slices} if slices > 1 else {}
    try:
        devices = topologies.get_topology_desc(name, "tpu", **options).devices
    except Exception as error:  # whatever the compiler's plugin raises
        text = " ".join(str(error).split())[:200]
        raise ConfigError(f"topology {name!r} is unknown to the TPU compiler: {text}") from error
    expected = slices * math.prod(int(side) for side in found[2].split("x"))
    if len(devices) != expected:
        raise ConfigError(f"topology {name!r} has {len(devices)} devices, not one a chip")
    return Topology(CHIPS[found[1]], list(devices))
