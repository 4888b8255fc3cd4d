"""Measures what it costs to see a training run: norms by part in its step, paintings on the way.

    python -m tests.train.measure_seeing --rounds=15

Steps of `configs/strokes_tiny.py` on its own data and with the shipped painter's weights, so that
it paints as a trained model does. Steps with and without norms are timed in turn; all need the norm
of the whole gradient, which says whether the update is made. Prints a JSON object. Not a test.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
from typing import Any
from unittest import mock

import jax

from configs import strokes_tiny
from launch import bench_timing, common
from process_gen.checkpoint import shipped
from process_gen.core.configs import from_mapping
from process_gen.data import pipeline
from process_gen.models import functional
from process_gen.report.strips import make_strips
from process_gen.sharding import rules
from process_gen.sharding.mesh import make_mesh
from process_gen.train import loop, norms, optimizer, step
from process_gen.train import state as state_lib

BATCHES = 4


def whole_only(name: str, tree: Any) -> norms.Norms:
    """The norm of everything, and of no part."""
    return {name: norms.norms(name, tree)[name]}


def gradient_only(name: str, tree: Any) -> norms.Norms:
    """What a step cannot do without."""
    return whole_only(name, tree) if name == "grad_norm" else {}


VARIANTS = {"by part": norms.norms, "of the whole": whole_only, "none": gradient_only}


def measure(rounds: int) -> dict[str, Any]:
    """Times of steps and paintings in milliseconds, and the shares of a step in percent."""
    config = from_mapping(strokes_tiny.get_config().to_dict())
    fns = functional.build(config.model)
    rule, schedule = optimizer.make_optimizer(config.optimizer, fns.logical_axes)
    _, weights, _ = shipped.read(shipped.DEFAULT)
    strips = make_strips(config)
    dataset = pipeline.train_dataset(config)
    host = [next(dataset) for _ in range(BATCHES)]
    dataset.close()
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    key = jax.random.key(0)
    with jax.set_mesh(mesh):
        batches = [rules.put_batch(batch, mesh) for batch in host]
        states, calls = {}, {}
        for name, found in VARIANTS.items():
            start = state_lib.init_state(fns, rule, key, 1000, mesh)
            states[name] = state_lib.with_weights(start, jax.device_put(weights), config.optimizer)
            train_step = step.make_train_step(fns, rule, schedule, config)
            with mock.patch.object(state_lib, "norms", found):
                compiled = (
                    loop.jit_step(train_step, start).lower(states[name], batches[0], key).compile()
                )

            def run(name: str, compiled: Any) -> Any:
                for batch in batches:
                    states[name], metrics = compiled(states[name], batch, key)
                return metrics

            calls[name] = functools.partial(run, name, compiled)
        times = bench_timing.interleaved(calls, rounds)
        last = states["none"]
        painted = bench_timing.interleaved({"paint": lambda: strips(0, last)}, min(rounds, 7))
    base = times["none"].seconds
    shares = {
        name: [100 * (a / b - 1) for a, b in zip(time.seconds, base, strict=True)]
        for name, time in times.items()
    }
    every = 1000
    return {
        "step_ms": {name: round(1e3 * t.median / BATCHES, 3) for name, t in times.items()},
        "more_than_none_percent": {
            name: {
                "median": round(statistics.median(found), 2),
                "quartiles": [round(q, 2) for q in statistics.quantiles(found)[::2]],
            }
            for name, found in shares.items()
            if name != "none"
        },
        "rounds": rounds,
        "steps_a_round": BATCHES,
        "painting_ms": painted["paint"].summary(prompts=len(config.train.paint_prompts)),
        f"painting_every_{every}_steps_percent": round(
            100 * painted["paint"].median / (every * times["by part"].median / BATCHES), 2
        ),
        "device": jax.devices()[0].device_kind,
        "commit": common.git_hash(),
    }


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    common.enable_compilation_cache()
    print(json.dumps(measure(parser.parse_args().rounds), indent=1))


if __name__ == "__main__":
    main()
