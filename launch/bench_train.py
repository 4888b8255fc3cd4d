"""The training step of a config on its own data: FLOP/s, tokens, and what fills them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from launch import bench_timing
from process_gen.core.batch import PackedBatch
from process_gen.core.configs import Config, from_mapping
from process_gen.core.errors import ConfigError
from process_gen.data import pipeline
from process_gen.models import flops, functional
from process_gen.sharding import rules
from process_gen.sharding.mesh import make_mesh
from process_gen.train import latents, loop, optimizer, step
from process_gen.train import state as state_lib

# Widths at which the share of the peak is asked for, as changes of `strokes_tiny`.
WIDTHS = {
    "strokes_tiny": {},
    "width_256": {
        "width": 256, "mlp_width": 1024, "num_layers": 6, "num_heads": 8, "num_kv_heads": 4,
        "head_dim": 32,
    },
    "width_512": {
        "width": 512, "mlp_width": 2048, "num_layers": 6, "num_heads": 8, "num_kv_heads": 4,
        "head_dim": 64,
    },
}  # fmt: skip


def measure(config: Config, rounds: int, best: float) -> dict[str, Any]:
    """A whole step, update included, over a few batches of the config's own data.

    Args:
      config: its codec must be "pixel", so that no other weights are needed.
      rounds: timed steps.
      best: FLOP/s of the fastest matrix product in this process, in the type that it computes in.
    """
    dataset = pipeline.train_dataset(config)
    host = [next(dataset) for _ in range(min(4, rounds))]
    dataset.plan(dataset.epoch + 1)  # made in the background; it would take a core from the steps
    dataset.close()
    found, lower = measure_batches(config, host, rounds, best)
    return {**found, "compile_seconds": bench_timing.compile_seconds(lower)}


def measure_batches(
    config: Config, host: Sequence[PackedBatch], rounds: int, best: float
) -> tuple[dict[str, Any], Callable[[], Any]]:
    """The same over given batches in turn, without compile times, and what lowers it anew."""
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    fns = functional.build(config.model)
    rule, schedule = optimizer.make_optimizer(config.optimizer, fns.logical_axes)
    work = [flops.of_batch(batch) for batch in host]
    needed = float(np.mean([flops.train(config.model, w) for w in work]))
    again = float(np.mean([flops.recomputed(config.model, w) for w in work]))
    used = float(np.mean([w.text + w.patches + w.latents for w in work]))
    with jax.set_mesh(mesh):
        key = jax.random.key(0)
        state = state_lib.init_state(fns, rule, key, 1000, mesh)
        batches = [rules.put_batch(batch, mesh) for batch in host]
        train_step = step.make_train_step(
            fns, rule, schedule, config, latents.of_model(config.model)
        )
        jitted = loop.jit_step(train_step, state)
        compiled = jitted.lower(state, batches[0], key).compile()
        held, turns = [state], itertools.cycle(batches)

        def run() -> Any:
            held[0], metrics = compiled(held[0], next(turns), key)
            return metrics["loss"][0]

        times = bench_timing.interleaved({"step": run}, rounds)["step"]
        memory = bench_timing.memory(compiled)
        abstract = state_lib.abstract_state(fns, rule, 1000, mesh)

    def lower() -> Any:
        with jax.set_mesh(mesh):
            return loop.jit_step(train_step, abstract).lower(abstract, batches[0], key)

    slots = sum(np.asarray(place.order).size for place in host[0][:3])
    return {
        "step": times.summary(),
        "model_gflop": round(needed / 1e9, 3),
        "mfu": round(needed / times.median / best, 4),
        "recomputed_gflop": round(again / 1e9, 3),
        "tokens_per_second": round(used / times.median, 1),
        "useful_tokens": round(used / slots, 4),
        "rows": config.data.rows,
        "tokens": {
            "text": config.data.text_len,
            "und": config.data.und_len,
            "gen": config.data.gen_len,
        },
        "memory": memory,
    }, lower


def changed(config: dict[str, Any], **model: Any) -> Config:
    """A config's mapping with changes to its model."""
    return from_mapping({**config, "model": {**config["model"], **model}})


def shapes(config: Config) -> list[tuple[int, int, int]]:
    """The largest matrix products of a step's forward pass."""
    model, data = config.model, config.data
    found = []
    for tokens in (data.rows * (data.text_len + data.und_len), data.rows * data.gen_len):
        found += [
            (tokens, model.width, model.mlp_width),
            (tokens, model.mlp_width, model.width),
            (tokens, model.width, model.num_heads * model.head_dim),
        ]
    return found


def measure_all(config: dict[str, Any], rounds: int, dtypes: tuple[str, ...]) -> dict[str, Any]:
    """Steps at the config's own sizes and at two wider ones, and how time grows with a pack.

    Every width with AdamW, whose update costs next to nothing, and the config's own sizes with its
    own optimiser too: the products of Muon grow with the cube of the width and are not the model's.
    Shares are of the peak in `model.dtype`, which is measured besides `dtypes`.

    Raises:
      ConfigError: the config's pictures are not pixels.
    """
    if (codec := config["model"]["codec"]) != "pixel":
        raise ConfigError(
            f"model.codec={codec!r}: --suite=train measures steps on pixels only, since an "
            'autoencoder would need its weights; set --config.model.codec="pixel"'
        )
    own = config["model"]["dtype"]
    adamw = {**config, "optimizer": {**config["optimizer"], "name": "adamw"}}
    cases = {"own optimizer": from_mapping(config)}
    cases |= {name: changed(adamw, **model) for name, model in WIDTHS.items()}
    types = tuple(dict.fromkeys((*dtypes, own)))
    peak = bench_timing.peaks([s for c in cases.values() for s in shapes(c)], types)
    best = 1e9 * peak["gflops"][own]
    found: dict[str, Any] = {"peak": peak, "mfu_of": own, "by_pack_length": []}
    found["steps"] = {name: measure(case, rounds, best) for name, case in cases.items()}
    for factor in (1, 2, 4):
        data = {**config["data"], "rows": max(1, config["data"]["rows"] // factor)}
        for part in ("text_len", "und_len", "gen_len"):
            data[part] = factor * config["data"][part]
        row = measure(from_mapping({**config, "data": data}), rounds, best)
        found["by_pack_length"].append({"factor": factor, **row})
    found["peak_memory_mb"] = bench_timing.peak_memory_mb()
    return found
