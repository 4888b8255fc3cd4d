"""Compiles a program for devices that are not here, and says what it takes and what bounds it."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import re
import time
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from process_gen.aot import collectives, placement
from process_gen.aot.chips import Chip
from process_gen.aot.collectives import Exchange
from process_gen.aot.placement import Placement
from process_gen.aot.programs import Program, shard_bytes
from process_gen.aot.topology import compiler
from process_gen.core.errors import ConfigError

RESERVED = 3 * 2**28  # of a chip's memory, for the runtime; the compiler itself leaves less


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Seconds that a run takes at least, on each of the three ways, all chips busy.

    Attributes:
      compute: matrix products, those done again included, at the chip's bfloat16 peak.
      memory: `Program.traffic` at the rate of a chip's memory.
      interconnect: what the compiled collectives send, over all links of a chip at once.
    """

    compute: float
    memory: float
    interconnect: float

    @property
    def seconds(self) -> float:
        """The longest."""
        return max(dataclasses.astuple(self))

    @property
    def bound(self) -> str:
        """Its name."""
        return max(dataclasses.asdict(self).items(), key=lambda item: item[1])[0]


@dataclasses.dataclass(frozen=True)
class Account:
    """Of one compiled program.

    Attributes:
      fits: whether a chip's memory, without `RESERVED`, holds it.
      compiled: whether machine code was written too.
      effort: with which it was; other than 0 it is not the code that a run executes.
      bytes: on one device, by part: the program's own (`Program.parts`); "activations", all else
        that lives while it runs (activations, gathered weights, gradients); "total"; "memory", what
        the chip has; "host", what lies in the host's memory for this device.
      model_flops, recomputed_flops: see `Program`.
      roofline: None where the program was not compiled.
      mfu_ceiling: model FLOPs over what all chips could do in `roofline.seconds`.
      exchanges: collectives by kind.
      lower_seconds, compile_seconds: on this machine.
      versions: of the compiler.
    """

    fits: bool
    compiled: bool
    effort: float
    bytes: Mapping[str, int]
    model_flops: int
    recomputed_flops: int
    roofline: Roofline | None
    mfu_ceiling: float | None
    exchanges: Mapping[str, Exchange]
    lower_seconds: float
    compile_seconds: float
    versions: Mapping[str, str]


def take(
    program: Program, chip: Chip, mesh: Mesh, codegen: bool = True, effort: float = 0.0
) -> tuple[Account, str]:
    """Compiles `program` with `mesh` in force.

    Args:
      program: of `programs`.
      chip: of the mesh.
      mesh: of described devices.
      codegen: False stops before machine code is written, see `placement.place`; for TPUs alone.
      effort: of the TPU compiler for the speed of machine code, -1 to 1; at 0, the compiler's own,
        the code is what a run executes. That for GPUs has no such setting.

    Returns:
      The account, and the compiled text; empty where the compiler found that it does not fit.

    Raises:
      ConfigError: no machine code is asked of the GPU compiler.
    """
    if chip.platform == "gpu":
        effort = 0.0
        if not codegen:
            raise ConfigError("the GPU compiler takes a minute at most and cannot be stopped")
    parts = {name: shard_bytes(tree) for name, tree in program.parts.items()}
    started = time.perf_counter()
    with jax.set_mesh(mesh):
        lowered = program.jitted.lower(*program.arguments)
    lowered_at = time.perf_counter()
    try:
        placed = _compiled(lowered, effort) if codegen else placement.place(lowered)
    except jax.errors.JaxRuntimeError as error:
        wanted = wanted_bytes(str(error))
        if not wanted:
            raise
        placed = Placement(wanted, 0, "")
    compile_seconds = time.perf_counter() - lowered_at
    found: dict[str, Any] = {"exchanges": {}, "roofline": None, "mfu_ceiling": None}
    if placed.text:
        found["exchanges"] = collectives.exchanges(placed.text, program.turns)
        sent = sum(exchange.bytes for exchange in found["exchanges"].values())
        roofline = _roofline(program, chip, mesh, sent)
        could = roofline.seconds * chip.flops * mesh.size
        found |= {"roofline": roofline, "mfu_ceiling": program.model_flops / could}
    account = Account(
        fits=bool(placed.text) and placed.total <= chip.memory - RESERVED,
        compiled=codegen and bool(placed.text),
        effort=effort,
        bytes={
            **parts,
            "activations": placed.total - sum(parts.values()),
            "total": placed.total,
            "memory": chip.memory,
            "host": placed.host,
        },
        model_flops=program.model_flops,
        recomputed_flops=program.recomputed_flops,
        lower_seconds=lowered_at - started,
        compile_seconds=compile_seconds,
        versions={n: importlib.metadata.version(n) for n in ("jax", "jaxlib", compiler(chip))},
        **found,
    )
    return account, placed.text


def _compiled(lowered: Any, effort: float) -> Placement:
    options = {"exec_time_optimization_effort": effort} if effort else {}
    compiled = lowered.compile(compiler_options=options)
    memory = compiled.memory_analysis()
    # Its sizes of temporaries count memory that is used twice over, twice; the peak does not.
    total = memory.peak_memory_in_bytes + memory.generated_code_size_in_bytes
    host = memory.host_argument_size_in_bytes + memory.host_temp_size_in_bytes
    return Placement(total, host, compiled.as_text())


def _roofline(program: Program, chip: Chip, mesh: Mesh, sent: int) -> Roofline:
    computed = program.model_flops + program.recomputed_flops
    return Roofline(
        compute=computed / chip.flops / mesh.size,
        memory=program.traffic / chip.bandwidth,
        interconnect=sent / chip.interconnect,
    )


_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_REFUSALS = (
    r"total memory required for HLO temporaries \(([\d.]+)([KMGT]?)\) exceeds available",
    r"Used ([\d.]+)([KMGT]?) of [\d.]+[KMGT]? hbm",
)


def wanted_bytes(text: str) -> int:
    """Bytes that a program would need, from the compiler's refusal; 0 from any other error."""
    for refusal in _REFUSALS:
        if found := re.search(refusal, text):
            return int(float(found[1]) * _UNITS[found[2]])
    return 0
