"""The running average of the weights that are trained.

    average <- average + (1 - d) (weights - average)

It costs a copy of the weights that no step reads, so it may be kept in bfloat16, in the host's
memory, or be renewed every few steps only.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from process_gen.core.configs import OptimizerConfig
from process_gen.train.precision import store

# Where an average in the host's memory lies; devices read it by direct transfers.
HOST_MEMORY = "pinned_host"


def start(weights: Any, settings: OptimizerConfig) -> Any:
    """The average before the first step: the weights themselves, in `ema_dtype`."""
    # Copies: a step gives up the buffers of both trees, so they must not be the same ones.
    return jax.tree.map(lambda p: jnp.array(p, settings.ema_dtype, copy=True), weights)


def update(
    average: Any,
    weights: Any,
    step: jax.Array,
    settings: OptimizerConfig,
    key: jax.Array,
    made: jax.Array | bool = True,
) -> Any:
    """The average after the update that makes step `step + 1`.

    With `ema_warmup` the decay starts low, `(1 + step) / (10 + step)`, and rises to `ema_decay`, so
    that the random initial weights are forgotten early in short runs too. Every `ema_every` steps
    the decay of that many steps is applied at once.

    Args:
      average: of any tree of weights.
      weights: the same tree after the update.
      step: int32 scalar, updates made before this one.
      settings: the `ema_...` values.
      key: for the rounding of a bfloat16 average.
      made: whether there was an update; without one the average stays as it is.
    """
    rising = (1.0 + step) / (10.0 + step) if settings.ema_warmup else 1.0
    rate = jnp.minimum(settings.ema_decay, rising).astype(jnp.float32)
    if settings.ema_every > 1:
        rate = rate**settings.ema_every
    rate = jnp.where(made, rate, 1.0)

    def renew(average: Any, weights: Any) -> Any:
        if settings.ema_memory == "host":
            average = jax.device_put(average, jax.memory.Space.Device)
        wide = jax.tree.map(lambda e: e.astype(jnp.float32), average)
        wide = jax.tree.map(lambda e, p: e + (1.0 - rate) * (p.astype(e.dtype) - e), wide, weights)
        new = store(wide, average, key)
        return jax.device_put(new, jax.memory.Space.Host) if settings.ema_memory == "host" else new

    if settings.ema_every == 1:
        return renew(average, weights)
    due = (step + 1) % settings.ema_every == 0
    return jax.lax.cond(due, renew, lambda average, weights: average, average, weights)
