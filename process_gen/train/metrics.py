"""Metrics as numerator and denominator, added up before they are divided.

A step gives a flat dict `name -> (numerator, denominator)` of float32 scalars. Sums of both are
kept on the device, over steps, accumulation and hosts alike, and divided once on the host: neither
the packing nor the number of hosts can change a reported mean.
"""

from __future__ import annotations

from collections.abc import Mapping

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from clu import metrics as clu_metrics

StepMetrics = Mapping[str, tuple[jax.Array, jax.Array]]


@flax.struct.dataclass
class Ratio(clu_metrics.Metric):
    """A mean as the two sums it is made of, float32 scalars."""

    total: jax.Array
    count: jax.Array

    @classmethod
    def empty(cls) -> Ratio:
        """Nothing yet."""
        return cls(jnp.float32(0.0), jnp.float32(0.0))

    def merge(self, other: Ratio) -> Ratio:
        """The mean over both."""
        return Ratio(self.total + other.total, self.count + other.count)

    def compute(self) -> jax.Array:
        """The mean; NaN where nothing was counted."""
        return self.total / self.count


def only_if(finite: tuple[jax.Array, jax.Array], metrics: StepMetrics) -> StepMetrics:
    """The metrics of a step if its update was made, else nothing seen; and `finite` itself.

    Args:
      finite: what `state.advance` says, (bool, 1).
      metrics: the others.
    """
    made, _ = finite
    counted = jax.tree.map(lambda x: jnp.where(made, x, jnp.zeros_like(x)), dict(metrics))
    return {**counted, "finite": finite}


def collect(step_metrics: StepMetrics) -> dict[str, Ratio]:
    """Reads what a step returned; the result is a pytree that `merge` adds up."""
    return {name: Ratio(*pair) for name, pair in step_metrics.items()}


@jax.jit
def merge(a: dict[str, Ratio], b: dict[str, Ratio]) -> dict[str, Ratio]:
    """Adds up two collections with the same names, on the device."""
    return {name: ratio.merge(b[name]) for name, ratio in a.items()}


def compute(collected: dict[str, Ratio]) -> dict[str, float]:
    """Fetches a collection and divides.

    This waits for the steps in it: call it when the next step is already on its way. A mean over
    nothing (no token of that stage was seen) is left out; a mean that is not finite is kept.
    "NAME+TERM" is a term of NAME, which is the sum of its terms' means; one over nothing adds 0.
    """
    fetched = jax.device_get(collected)
    means = {
        name: float(np.float64(ratio.total) / np.float64(ratio.count))
        for name, ratio in fetched.items()
        if ratio.count != 0
    }
    values = {}
    for name in fetched:
        whole, plus, _ = name.partition("+")
        if plus:
            values[whole] = values.get(whole, 0.0) + means.get(name, 0.0)
        elif name in means:
            values[name] = means[name]
    return values
