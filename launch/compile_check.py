"""Compile a run's programs for TPUs or GPUs that are not here, and see whether they fit.

    python -m launch.compile_check --config=configs/bagel_7b.py --topology=v5p:4x4x4 \\
        --config.data.rows=64

--config=FILE[:ARG]         as for launch.train
--config.SECTION.KEY=VALUE  overrides a setting, for example --config.mesh.tensor=2
--topology=CHIP:SHAPE       a slice, in chips along each axis: v5p:4x4x4, v5e:16x16, v6e:8x8; or
                            GPUs of one host, h100:8, or hosts and GPUs of each, h200:4x8
--slices=N                  so many of them, joined by the data centre's network (1)
--program=PROGRAM           train (default), denoise or decode
--nocodegen                 of TPUs: stop when the compiler has placed everything in memory: a
                            fraction of the time, and all numbers; but machine code is not written
--effort=N                  of the TPU compiler for fast machine code, -1 (default) to 1. It shows
                            in minutes that every kernel compiles; what a run executes is made with
                            0, takes several times as long and may need a little more memory, of
                            which --nocodegen knows all
--hlo=FILE                  also write the compiled program's text
--json                      print one JSON object as the last line

Nothing runs. What is compiled is the very step of launch.train, or the pieces of launch.sample with
the weights spread over the mesh, on packs without padding. A 7B model takes minutes. The exit
status is 0 where the program fits, 1 where it does not; docs/scaling.md explains the numbers. The
TPU compiler comes with the extra [tpu], that for GPUs with [cuda]; neither needs a driver.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from typing import Any

from absl import flags
from etils import epath

from launch import common
from process_gen.core import configs
from process_gen.core.errors import ConfigError


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of this command."""
    common.define_config(values)
    flags.DEFINE_string("topology", None, "chip and shape", flag_values=values)
    flags.DEFINE_integer("slices", 1, "slices", lower_bound=1, flag_values=values)
    flags.DEFINE_string("program", "train", "train, denoise or decode", flag_values=values)
    flags.DEFINE_bool("codegen", True, "write machine code", flag_values=values)
    flags.DEFINE_float(
        "effort", -1.0, "for fast machine code", lower_bound=-1, upper_bound=1, flag_values=values
    )
    flags.DEFINE_string("hlo", None, "file for the compiled text", flag_values=values)
    flags.DEFINE_bool("json", False, "print JSON", flag_values=values)


def main(values: flags.FlagValues) -> None:
    """Compiles, prints, and ends with status 1 where the program does not fit."""
    config = common.read_config(values)
    name = common.required(values, "topology")
    # Nothing is asked of devices that are here, so they are left to others.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    from process_gen.aot import programs

    if values.program not in programs.PROGRAMS:
        raise ConfigError(
            f"--program={values.program} is not one of {', '.join(programs.PROGRAMS)}"
        )
    report, text = check(config, name, values.slices, values.program, values.codegen, values.effort)
    if values.hlo and text:
        epath.Path(values.hlo).write_text(text)
    print(describe(report))
    if values.json:
        print(json.dumps(report))
    if not values.codegen:
        # The compiler is still at work, in a thread that cannot be stopped.
        sys.stdout.flush()
        os._exit(0 if report["fits"] else 1)
    if not report["fits"]:
        sys.exit(1)


def check(
    config: configs.Config,
    topology: str,
    slices: int,
    program: str,
    codegen: bool = True,
    effort: float = 0.0,
) -> tuple[dict[str, Any], str]:
    """Compiles one program.

    Args:
      config: of a run. With `train.init_from` the sizes of the model come from there.
      topology: see `aot.topology.describe`.
      slices: of that shape.
      program: a key of `aot.programs.PROGRAMS`.
      codegen, effort: see `aot.account.take`.

    Returns:
      The report, ready for JSON, and the compiled text (empty where nothing fits).

    Raises:
      ConfigError: an unknown topology, a mesh that does not fit it, no compiler for it.
    """
    from process_gen.aot import account, programs
    from process_gen.aot.topology import describe as describe_topology
    from process_gen.sharding.mesh import make_mesh
    from process_gen.train import start

    if config.train.init_from:
        config = start.adopt(config, "")
    there = describe_topology(topology, slices)
    mesh = make_mesh(config.mesh, there.devices)
    built = programs.PROGRAMS[program](config, mesh)
    found, text = account.take(built, there.chip, mesh, codegen, effort)
    data, sampler = config.data, config.sampler
    report = {
        "topology": topology,
        "slices": slices,
        "chips": mesh.size,
        "mesh": dict(mesh.shape),
        "program": program,
        "attention": config.model.attention,
        "remat": config.model.remat,
        "rows": data.rows if program == "train" else sampler.batch,
        "tokens": data.text_len + data.und_len + data.gen_len
        if program == "train"
        else sampler.max_context,
        **dataclasses.asdict(found),
    }
    if found.roofline is not None:
        report["roofline"] |= {"seconds": found.roofline.seconds, "bound": found.roofline.bound}
    report["collectives"] = {
        kind: {"count": exchange.count, "bytes": exchange.bytes}
        for kind, exchange in found.exchanges.items()
    }
    del report["exchanges"]
    return report, text


def describe(report: dict[str, Any]) -> str:
    """A report for people."""
    sizes = dict(report["bytes"])
    host, memory, total = (sizes.pop(name) for name in ("host", "memory", "total"))
    mesh = ", ".join(f"{name} {size}" for name, size in report["mesh"].items())
    lines = [
        f"{report['program']} on {report['chips']} chips of {report['topology']}"
        + (f" x {report['slices']}" if report["slices"] > 1 else "")
        + f" ({mesh}); {report['rows']} x {report['tokens']:,} tokens",
        *(f"  {name:14}{size / 2**30:9.2f} GiB" for name, size in sizes.items()),
        f"  {'total':14}{total / 2**30:9.2f} GiB of {memory / 2**30:.0f} a chip: "
        + ("fits" if report["fits"] else "DOES NOT FIT"),
    ]
    if host > 2**20:
        lines.append(f"  {'in the host':14}{host / 2**30:9.2f} GiB a chip")
    lines.append(
        f"  {report['model_flops'] / 1e12:,.1f} TFLOPs of the model, "
        f"{report['recomputed_flops'] / 1e12:,.1f} computed again"
    )
    if report["roofline"]:
        r = report["roofline"]
        lines.append(
            f"  at least {r['seconds']:.3g} s: compute {r['compute']:.3g}, memory "
            f"{r['memory']:.3g}, interconnect {r['interconnect']:.3g}; MFU at most "
            f"{report['mfu_ceiling']:.0%}"
        )
    for kind, one in report["collectives"].items():
        lines.append(f"  {kind:20}{one['count']:7,} x, {one['bytes'] / 2**30:9.2f} GiB sent a chip")
    if report["compiled"] and report["effort"]:
        lines.append(
            f"  compiled with effort {report['effort']:g}: what a run executes is other code; "
            "--nocodegen says its memory"
        )
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    lines.append(
        f"  lowered in {report['lower_seconds']:.0f} s, "
        f"{'compiled' if report['compiled'] else 'placed in memory, not compiled,'} in "
        f"{report['compile_seconds']:.0f} s by {versions}"
    )
    return "\n".join(lines)


if __name__ == "__main__":
    common.run(main, define_flags, __doc__ or "")
