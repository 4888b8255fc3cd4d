"""Attention, training steps and painting at a config's own sizes: random weights, full packs.

For sizes whose weights and data are not at hand, on the accelerator that is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from launch import bench_sample, bench_timing, bench_train
from process_gen.aot.full_pack import full_pack
from process_gen.core.configs import Config, ModelConfig
from process_gen.kernels.interval_attention import KeyBlock, interval_attention
from process_gen.models import flops, functional
from process_gen.models.shapes import model_shapes, vae_shapes
from process_gen.sampling.painter import Painter

# Implementations that hold no array of all pairs, by platform.
ATTENTION = {
    "gpu": ("chunked", "triton"),
    "tpu": ("chunked", "pallas"),
    "cpu": ("chunked", "rows", "native"),
}
PICTURES = 3
BATCHES = (1, 8)
# Steps of a picture: few of them, to be timed often, and as many as a one-shot picture has.
STEPS, ONE_SHOT_STEPS = 4, 50


def attention(config: Config, rounds: int, best: float) -> dict[str, Any]:
    """One layer's attention over a full pack, forward, and with three gradients.

    Useful FLOPs are two products a visible pair, four more for the gradients.
    """
    model = config.model
    pack = full_pack(config)
    order, start, end = (
        jnp.concatenate([place[i] for place in (pack.text, pack.und, pack.gen)], 1)
        for i in range(3)
    )
    pairs = flops.visible_pairs(*(jax.device_get(x) for x in (order, start, end)))
    sizes = (model.num_heads, model.num_kv_heads, model.num_kv_heads, model.num_heads)
    q, k, v, weight = (
        jax.random.normal(jax.random.key(i), (*order.shape, n, model.head_dim), model.dtype)
        for i, n in enumerate(sizes)
    )

    def program(name: str, gradients: bool) -> Callable[[], Any]:
        def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
            return interval_attention(q, order, [KeyBlock(k, v, start, end)], name)

        def with_gradients(q: jax.Array, k: jax.Array, v: jax.Array, weight: jax.Array) -> Any:
            out, pull = jax.vjp(attend, q, k, v)
            return out, pull(weight)

        run = jax.jit(with_gradients if gradients else attend)
        return lambda: run(q, k, v, *((weight,) if gradients else ()))

    calls, products = {}, {}
    for name in ATTENTION[jax.default_backend()]:
        for gradients, kind in ((False, name), (True, f"{name} with gradients")):
            calls[kind], products[kind] = program(name, gradients), 6 if gradients else 2
    times = bench_timing.interleaved(calls, rounds)
    product = 2.0 * pairs * model.num_heads * model.head_dim
    return {
        "tokens": order.shape[1],
        "visible_pairs": pairs,
        **{
            name: t.summary(of_peak=round(products[name] * product / t.median / best, 4))
            for name, t in times.items()
        },
    }


def step(config: Config, rounds: int, best: float) -> dict[str, Any]:
    """A whole training step on full packs, update included."""
    pack = full_pack(config, config.data.rows)
    return bench_train.measure_batches(config, [pack], rounds, best)[0]


def painting(config: Config, rounds: int, best: float) -> dict[str, Any]:
    """The pieces of painting by batch; pictures in 4 steps, their decoding among them."""
    painter = untrained(config, STEPS)
    return {
        "weights_gb": round(sum(x.nbytes for x in jax.tree.leaves(painter.weights)) / 1e9, 2),
        "steps": STEPS,
        "batches": bench_sample.measure_pieces(
            painter, rounds, best, painter._default_size(), BATCHES
        ),
    }


def trajectory(config: Config, rounds: int, best: float) -> dict[str, Any]:
    """A process painting of 1 to 3 pictures beside a one-shot picture, put together from calls.

    Both guided, the one-shot picture in 50 steps and each of a process in 4, which is how the
    miniature paints; the time of a step is there for other numbers of them.
    """
    del best
    painter = untrained(config, STEPS)
    batch, size = config.sampler.batch, painter._default_size()
    growth = bench_sample.trajectory_growth(painter, rounds, PICTURES)
    programs = painter._bound(painter.config.sampler, size)
    one = bench_sample.pieces(programs, painter, batch, ONE_SHOT_STEPS, bench_sample.PROMPT)
    shot = bench_timing.interleaved({"one_shot": one["guided"]}, rounds)["one_shot"]
    # Both begin over the prompt alone, and the picture is decoded once in both.
    a_step = (1e3 * shot.median - growth[0]["guided"]) / (ONE_SHOT_STEPS - STEPS)
    pictures = 0.0
    for part in growth:
        pictures += part["guided"] + part["re-encode"]
        part["pictures_of_one_shot"] = round(pictures / (1e3 * shot.median), 4)
        part["whole_of_one_shot"] = round(part["ms"] / (1e3 * shot.median), 4)
    return {
        "batch": batch,
        "one_shot": shot.summary(steps=ONE_SHOT_STEPS, ms_a_step=round(a_step, 3)),
        "by_pictures": growth,
    }


def untrained(config: Config, steps: int) -> Painter:
    """Random weights in the type of the computation, the autoencoder's too."""
    model: ModelConfig = dataclasses.replace(config.model, param_dtype=config.model.dtype)
    sampler = dataclasses.replace(config.sampler, denoise_steps=steps)
    config = dataclasses.replace(config, model=model, sampler=sampler)
    params = _drawn(model_shapes(model))
    if model.layers == "unroll":
        params = functional.apart(params, spend=True)
    vae = _drawn(vae_shapes(model.vae)) if model.codec == "flux" else None
    return Painter(config, params, vae=vae)


def _drawn(shapes: Any) -> Any:
    """Normal weights, one array after the other."""
    leaves, tree = jax.tree.flatten(shapes)
    keys = jax.random.split(jax.random.key(0), len(leaves))
    draw = jax.jit(
        lambda key, leaf: 0.02 * jax.random.normal(key, leaf.shape, leaf.dtype), static_argnums=1
    )
    drawn = []
    for key, leaf in zip(keys, leaves, strict=True):
        drawn.append(jax.block_until_ready(draw(key, jax.ShapeDtypeStruct(leaf.shape, leaf.dtype))))
    return jax.tree.unflatten(tree, drawn)


PARTS: dict[str, Callable[[Config, int, float], dict[str, Any]]] = {
    "attention": attention,
    "step": step,
    "painting": painting,
    "trajectory": trajectory,
}


def measure_all(config: Config, rounds: int, parts: list[str]) -> dict[str, Any]:
    """The named parts, as shares of the best matrix product in the model's type."""
    dtype = config.model.dtype
    shapes = [*bench_train.shapes(config), (8192, 8192, 8192)]
    peak = bench_timing.peaks(shapes if jax.default_backend() != "cpu" else shapes[:-1], (dtype,))
    best = 1e9 * peak["gflops"][dtype]
    found: dict[str, Any] = {
        "peak": peak,
        "gb_per_second": round(bench_timing.bandwidth(1024) / 1e9, 1),
    }
    for name in parts:
        found[name] = PARTS[name](config, rounds, best)
        print(name, found[name], flush=True)
    found["peak_memory_mb"] = bench_timing.peak_memory_mb()
    return found
