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
import numpy as np
from jax.experimental import topologies

from process_gen.core import configs
from process_gen.core.batch import NO_COPY, NO_LABEL, PackedBatch, Place
from process_gen.core.configs import Config
from process_gen.models import functional
from process_gen.sharding import rules
from process_gen.sharding.mesh import make_mesh
from process_gen.train import loop, optimizer, step
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


def batch_of(config: Config) -> PackedBatch:
    """A full batch: every row one trajectory of causal text, then pictures."""
    data, model = config.data, config.model
    rng = np.random.default_rng(0)

    def numbers(count: int, below: int) -> np.ndarray:
        return rng.integers(0, below, (data.rows, count), np.int32)

    def bytes_of(count: int, features: int) -> np.ndarray:
        return rng.integers(0, 256, (data.rows, count, features), np.uint8)

    def place(count: int, start: int, together: bool) -> Place:
        order = np.full(count, start) if together else start + np.arange(count)
        order = np.broadcast_to(order, (data.rows, count)).astype(np.int32)
        return Place(order, order, np.full_like(order, 10**6), order)

    t, v, g = data.text_len, data.und_len, data.gen_len
    stage = np.ones((data.rows, t), np.int32)
    return PackedBatch(
        place(t, 0, False), place(v, t, True), place(g, t + 1, True),
        numbers(t, model.vocab_size), numbers(t, model.vocab_size), stage,
        bytes_of(v, model.und_features), numbers(v, model.und_grid**2),
        np.full((data.rows, v), NO_COPY, np.int32),
        bytes_of(g, model.latent_features), numbers(g, model.latent_grid**2),
        np.zeros((data.rows, g), np.int32), np.full((data.rows, g), 2, np.int32),
    )._replace(label_stage_BxT=np.where(stage > 0, stage, NO_LABEL))  # fmt: skip


def megabytes(tree: Any) -> float:
    """Of a tree of shapes, on one device and not in the host's memory."""
    leaves = [x for x in jax.tree.leaves(tree) if x.sharding.memory_kind != "pinned_host"]
    return sum(x.size * x.dtype.itemsize for x in leaves) / 1e6


def measure(config: Config, devices: list[jax.Device], donate: bool, steps: int) -> list[str]:
    """A row of the table: compiles, and runs where `steps` asks for it."""
    mesh = make_mesh(config.mesh, devices)
    fns = functional.build(config.model)
    rule, schedule = optimizer.make_optimizer(config.optimizer, fns.logical_axes)
    whole = rules.batch_sharding(mesh)
    batch = batch_of(config)
    with jax.set_mesh(mesh):
        state = state_lib.abstract_state(fns, rule, 100, mesh)
        shapes = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), batch
        )
        train_step = step.make_train_step(fns, rule, schedule, config)
        jitted = loop.jit_step(train_step, state) if donate else jax.jit(train_step)
        key = jax.eval_shape(lambda: jax.random.key(0))
        started = time.perf_counter()
        compiled = jitted.lower(state, shapes, key).compile()
        took = time.perf_counter() - started
        found = compiled.memory_analysis()
        parts = [megabytes(part) for part in (state.params, state.opt_state, state.ema)]
        kept = found.output_size_in_bytes - found.alias_size_in_bytes
        temporary = (found.temp_size_in_bytes + kept) / 1e6
        row = [*parts, temporary, sum(parts) + temporary, took]
        cells = [f"{value:,.0f}" for value in row]
        if steps:
            cells.append(f"{1e3 * seconds_a_step(compiled, fns, rule, mesh, batch, steps):,.0f}")
    return cells


def seconds_a_step(
    compiled: Any, fns: Any, rule: Any, mesh: Any, batch: PackedBatch, steps: int
) -> float:
    """Median over `steps` after two that do not count."""
    state = state_lib.init_state(fns, rule, jax.random.key(0), 100, mesh)
    placed = jax.tree.map(lambda x: jax.device_put(x, rules.batch_sharding(mesh)), batch)
    seconds = []
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
        devices = topologies.get_topology_desc(given.topology, "tpu").devices
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
