"""What a chip has: memory, and the rates that bound a program from below."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class Chip:
    """One accelerator, as its maker states it.

    Attributes:
      name: as topologies name it.
      memory: bytes of its own memory.
      flops: bfloat16 FLOPs a second.
      bandwidth: bytes a second from and to its memory.
      interconnect: bytes a second that it can send to the other chips of a slice, or of a host of
        GPUs, over all links together; it can receive as many at the same time.
      source: where that is stated.
      platform: "tpu" or "gpu".
    """

    name: str
    memory: int
    flops: float
    bandwidth: float
    interconnect: float
    source: str
    platform: str = "tpu"


# Read in November 2026. The makers give interconnects in bits or in bytes, one way or both ways.
CHIPS: Mapping[str, Chip] = {
    chip.name: chip
    for chip in (
        Chip("v5e", 16 * 2**30, 197e12, 800e9, 200e9, "https://docs.cloud.google.com/tpu/docs/v6e"),
        Chip(
            "v5p", 95 * 2**30, 459e12, 2765e9, 600e9, "https://docs.cloud.google.com/tpu/docs/v5p"
        ),
        Chip(
            "v6e", 32 * 2**30, 918e12, 1600e9, 400e9, "https://docs.cloud.google.com/tpu/docs/v6e"
        ),
        Chip(
            "h100",
            81_559 * 2**20,  # what its driver says, as for the H200
            989e12,
            3350e9,
            450e9,
            "https://www.nvidia.com/en-us/data-center/h100/",
            "gpu",
        ),
        Chip(
            "h200",
            143_771 * 2**20,
            989e12,
            4800e9,
            450e9,
            "https://www.nvidia.com/en-us/data-center/h200/",
            "gpu",
        ),
    )
}
