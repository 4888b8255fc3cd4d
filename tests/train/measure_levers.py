"""What each lever of memory and speed does to the compiled training step; no timed test.

    PYTHONPATH=. python tests/train/measure_levers.py                     # one chip of a v5e:2x2
    PYTHONPATH=. python tests/train/measure_levers.py --topology=cpu
    PYTHONPATH=. python tests/train/measure_levers.py --topology=cpu --steps=20 --rows=2 --layers=2
    PYTHONPATH=. python tests/train/measure_levers.py --only=full,offload

The model has width 512, 8 layers and a vocabulary of 32k (84 M weights); a step takes 4 packs of
2,304 tokens. Nothing runs unless --steps is given; bytes come from the compiler's own account and
from the shapes of the state. docs/memory.md tells what was measured.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from process_gen.aot import programs
from process_gen.aot.full_pack import full_pack
from process_gen.aot.topology import describe
from process_gen.core import configs
from process_gen.core.configs import Config
from process_gen.models import functional
from process_gen.sharding import rules
from process_gen.sharding.mesh import make_mesh
from process_gen.train import optimizer
from process_gen.train import state as state_lib

BASE = {
    "model": {
        "vocab_size": 32_768, "width": 512, "mlp_width": 1536, "num_layers": 8, "num_heads": 8,
        "num_kv_heads": 4, "head_dim": 64, "dtype": "bfloat16", "layers": "scan", "remat": "full",
        "attention": "chunked",
    },
    "data": {"text_len": 1024, "und_len": 256, "gen_len": 1024, "rows": 4},
    "loss": {"vocab_chunk": 4096},
    "mesh": {"data": 1},
}  # fmt: skip

# Name, what changes.
LEVERS: dict[str, Mapping[str, Any]] = {
    "base": {},
    "whole vocabulary": {"loss.vocab_chunk": 0},
    "remat none": {"model.remat": "none"},
    "remat dots": {"model.remat": "dots"},
    "remat attention": {"model.remat": "attention"},
    "remat offload": {"model.remat": "offload"},
    "accumulate 4": {"optimizer.accumulate": 4},
    "bfloat16 weights": {"model.param_dtype": "bfloat16"},
    "bfloat16 moments": {"optimizer.moment_dtype": "bfloat16"},
    "adafactor": {"optimizer.name": "adafactor"},
    "average bfloat16": {"optimizer.ema_dtype": "bfloat16"},
    "average host": {"optimizer.ema_memory": "host"},
    "average host, every 10": {"optimizer.ema_memory": "host", "optimizer.ema_every": 10},
    "average none": {"optimizer.ema_decay": 0.0},
    "frozen embed, lm_head": {"optimizer.frozen": ("embed", "lm_head")},
    "adapters": {"model.lora": {"rank": 16}, "model.param_dtype": "bfloat16"},
    "not donated": {},
}


def config_of(changes: Mapping[str, Any]) -> Config:
    """The base with changes by dotted name."""
    mapping: dict[str, dict[str, Any]] = {name: dict(part) for name, part in BASE.items()}
    for key, value in changes.items():
        section, name = key.split(".")
        mapping.setdefault(section, {})[name] = value
    return configs.from_mapping(mapping)


def measure(config: Config, devices: list[jax.Device], donate: bool, steps: int) -> list[str]:
    """A row of the table: compiles, and runs where `steps` asks for it."""
    mesh = make_mesh(config.mesh, devices)
    program = programs.train(config, mesh)
    jitted = program.jitted if donate else jax.jit(program.jitted.__wrapped__)
    with jax.set_mesh(mesh):
        started = time.perf_counter()
        compiled = jitted.lower(*program.arguments).compile()
        took = time.perf_counter() - started
    found = compiled.memory_analysis()
    state = ("parameters", "optimizer", "ema")
    parts = [programs.shard_bytes(program.parts[name]) / 1e6 for name in state]
    kept = found.output_size_in_bytes - found.alias_size_in_bytes
    temporary = (found.temp_size_in_bytes + kept) / 1e6
    row = [*parts, temporary, sum(parts) + temporary, took]
    cells = [f"{value:,.0f}" for value in row]
    if steps:
        cells.append(f"{1e3 * seconds_a_step(compiled, config, mesh, steps):,.0f}")
    return cells


def seconds_a_step(compiled: Any, config: Config, mesh: Any, steps: int) -> float:
    """Median over `steps` after two that do not count."""
    fns = functional.build(config.model)
    rule, _ = optimizer.make_optimizer(config.optimizer, fns.logical_axes)
    batch = full_pack(config, config.data.rows)
    seconds = []
    with jax.set_mesh(mesh):
        state = state_lib.init_state(fns, rule, jax.random.key(0), 100, mesh)
        placed = jax.tree.map(lambda x: jax.device_put(x, rules.batch_sharding(mesh)), batch)
        for _ in range(steps + 2):
            started = time.perf_counter()
            state, metrics = compiled(state, placed, jax.random.key(1))
            jax.block_until_ready(metrics)
            seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[2:])


def main() -> None:
    """Prints the table, a row as soon as it is there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--topology", default="v5e:2x2")
    parser.add_argument("--only", default="", help="comma-separated beginnings of names")
    parser.add_argument("--steps", type=int, default=0)
    parser.add_argument("--rows", type=int, default=BASE["data"]["rows"])
    parser.add_argument("--layers", type=int, default=BASE["model"]["num_layers"])
    given = parser.parse_args()
    on_cpu = given.topology == "cpu"
    devices = jax.devices()
    if not on_cpu:
        devices = describe(given.topology).devices
    chosen = [name for name in LEVERS if name.startswith(tuple(given.only.split(",")))]
    timed = ["ms a step"] if given.steps else []
    head = [
        "lever",
        "weights",
        "moments",
        "average",
        "temporary",
        "sum (MB)",
        "compiled (s)",
        *timed,
    ]
    print("| " + " | ".join(head) + " |\n|" + " --- |" * len(head), flush=True)
    for name in chosen:
        # A CPU computes bfloat16 by way of float32, which would count twice.
        dtype = {"model.dtype": "float32"} if on_cpu else {}
        sizes = {"data.rows": given.rows, "model.num_layers": given.layers}
        config = config_of({**sizes, **dtype, **LEVERS[name]})
        cells = measure(config, devices[:1], name != "not donated", given.steps)
        print("| " + " | ".join([name, *cells]) + " |", flush=True)


if __name__ == "__main__":
    jnp.zeros(0)  # the default backend, before a described one
    main()
