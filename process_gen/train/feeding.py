"""How many times over the pipeline feeds the training step, both on this machine.

The two are timed in turns, so that whatever else the machine does slows both alike.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax

from process_gen.core.configs import Config
from process_gen.data.pipeline import train_dataset
from process_gen.models import functional
from process_gen.sharding import rules
from process_gen.sharding.mesh import make_mesh
from process_gen.train import latents, loop, optimizer, start, step
from process_gen.train import state as state_lib

_TURN = 3  # steps of a turn


def feeding(config: Config, turns: int, batches: int = 20) -> dict[str, Any]:
    """Times the training step and the pipeline alone.

    Args:
      config: of a run, in one process.
      turns: each is three steps on batches that are there already, and then `batches` batches that
        nothing is done with. A first turn is not counted.
      batches: of a turn.

    Returns:
      Medians over the turns: `step_seconds` and `batch_seconds` by the clock, and the same of CPU
      time, which counts all threads of this process but no worker processes; `plan_seconds`, an
      epoch's lengths and plan, of which each batch bears its part; and `times_over`, the seconds of
      a step by those of a batch with its part of the plan.

    Raises:
      ConfigError, DataError: what `launch.train` would say of the config.
    """
    mesh = make_mesh(config.mesh)
    fns = functional.build(config.model)
    rule, schedule = optimizer.make_optimizer(config.optimizer, fns.logical_axes)
    way = latents.of_model(config.model)
    prepare = latents.make_prepare(config, start.frozen_codec(config), mesh)
    blocks, count = rules.row_blocks(mesh)
    dataset = train_dataset(config, blocks, count)
    dataset.plan(0)
    _, plan_seconds, plan_cpu = _timed(lambda: dataset.plan(1))
    per_epoch = len(dataset.plan(0)) / config.data.rows
    ahead = config.data.prefetch + config.data.workers
    with jax.set_mesh(mesh):
        key = jax.random.key(config.train.seed)
        state = state_lib.init_state(fns, rule, key, 10**6, mesh)
        train_step = step.make_train_step(fns, rule, schedule, config, way)
        jitted = loop.jit_step(train_step, state)
        placed = [prepare(next(dataset)) for _ in range(_TURN)]

        def steps() -> None:
            nonlocal state
            for batch in placed:
                state, _ = jitted(state, batch, key)
            jax.block_until_ready(state.params)

        def take(number: int) -> None:
            for _ in range(number):
                next(dataset)

        found = []
        for _ in range(turns + 1):
            _, *of_steps = _timed(steps)
            take(ahead)  # what was made ready meanwhile
            _, *of_batches = _timed(lambda: take(batches))
            found.append([x / _TURN for x in of_steps] + [x / batches for x in of_batches])
    dataset.close()
    step_seconds, step_cpu, batch_seconds, batch_cpu = (
        statistics.median(column) for column in zip(*found[1:], strict=True)
    )
    each = batch_seconds + plan_seconds / per_epoch
    each_cpu = batch_cpu + plan_cpu / per_epoch
    return {
        "turns": turns,
        "step_seconds": round(step_seconds, 4),
        "batch_seconds": round(batch_seconds, 4),
        "plan_seconds": round(plan_seconds, 2),
        "times_over": round(step_seconds / each, 1),
        "step_cpu_seconds": round(step_cpu, 4),
        "batch_cpu_seconds": round(batch_cpu, 4),
        "plan_cpu_seconds": round(plan_cpu, 2),
        "times_over_cpu": round(step_cpu / each_cpu, 1),
    }


def _timed(call: Callable[[], Any]) -> tuple[Any, float, float]:
    """What a call gives, and its seconds by the clock and of CPU time."""
    began, worked = time.perf_counter(), time.process_time()
    result = call()
    return result, time.perf_counter() - began, time.process_time() - worked
