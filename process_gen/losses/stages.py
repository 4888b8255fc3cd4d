"""Reduces elementwise losses to the scalar that is trained and to per-stage means.

    loss = w_ce  sum(s(stage) ce)  / N_ce  +  w_mse  sum(s(stage) mse) / N_mse

N counts all supervised tokens of the kind in the whole global batch, whatever the number of packs,
micro-batches or devices; scales s = 1 give BAGEL's loss exactly. Where tokens of text have weights,
they multiply ce, and N_ce is their sum.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from process_gen.core.trajectory import Stage

# Reported means: name -> (kind, stage).
STAGE_METRICS: dict[str, tuple[str, Stage]] = {
    "plan_ce": ("ce", Stage.PLAN),
    "inspect_ce": ("ce", Stage.INSPECT),
    "refine_ce": ("ce", Stage.REFINE),
    "control_ce": ("ce", Stage.CONTROL),
    "answer_ce": ("ce", Stage.ANSWER),
    "sketch_mse": ("mse", Stage.SKETCH),
    "refine_mse": ("mse", Stage.REFINE),
    "one_shot_mse": ("mse", Stage.ONE_SHOT),
}


class Elements(NamedTuple):
    """Elementwise losses with the stage that each is counted under.

    Attributes:
      ce_BxT, mse_BxG: float32 values.
      ce_stage_BxT, mse_stage_BxG: int32 `Stage`, negative where there is no loss.
    """

    ce_BxT: jax.Array
    ce_stage_BxT: jax.Array
    mse_BxG: jax.Array
    mse_stage_BxG: jax.Array


class Counts(NamedTuple):
    """Supervised tokens of either kind."""

    ce: jax.Array
    mse: jax.Array


def count(
    ce_stage_BxT: jax.Array, mse_stage_BxG: jax.Array, ce_token_BxT: jax.Array | None = None
) -> Counts:
    """Supervised tokens of a (global) batch, float32 scalars; or the sum of their weights."""
    ce_token_BxT = jnp.ones((1, 1)) if ce_token_BxT is None else ce_token_BxT
    return Counts(
        jnp.sum(jnp.where(ce_stage_BxT >= 0, ce_token_BxT, 0.0)),
        jnp.sum(mse_stage_BxG >= 0).astype(jnp.float32),
    )


def scale_table(scales: Mapping[str, float]) -> np.ndarray:
    """``float32[stages]`` of s(stage), 1 where `scales` (lower-case stage names) is silent."""
    table = np.ones(len(Stage), np.float32)
    for name, value in scales.items():
        table[Stage[name.upper()]] = value
    return table


def reduce(
    elements: Elements,
    counts: Counts,
    *,
    ce_weight: jax.Array | float,
    mse_weight: jax.Array | float,
    scales: np.ndarray,
    ce_token_BxT: jax.Array | None = None,
) -> tuple[jax.Array, dict[str, tuple[jax.Array, jax.Array]]]:
    """The scalar loss, and metrics as (numerator, denominator) pairs.

    Args:
      elements: losses of a batch, or of a part of one.
      counts: of the *whole* global batch, so that parts add up.
      ce_weight, mse_weight: of the two kinds.
      scales: of `scale_table`.
      ce_token_BxT: weights of the text's tokens, which `counts` took into account; 1 where None.
        Metrics do not have them.

    Returns:
      The loss (this part's share of it), and every name of `STAGE_METRICS` plus "ce" and "mse".
    """
    sums, metrics = {}, {}
    for kind, value, stage, weight in (
        ("ce", elements.ce_BxT, elements.ce_stage_BxT, ce_token_BxT),
        ("mse", elements.mse_BxG, elements.mse_stage_BxG, None),
    ):
        used = stage >= 0
        scale = jnp.asarray(scales)[jnp.maximum(stage, 0)]
        scale = scale if weight is None else scale * weight
        sums[kind] = jnp.sum(jnp.where(used, value * scale, 0.0))
        metrics[kind] = (
            jnp.sum(jnp.where(used, value, 0.0)),
            jnp.sum(used).astype(jnp.float32),
        )
        for name, (its_kind, its_stage) in STAGE_METRICS.items():
            if its_kind == kind:
                here = stage == int(its_stage)
                metrics[name] = (
                    jnp.sum(jnp.where(here, value, 0.0)),
                    jnp.sum(here).astype(jnp.float32),
                )
    loss = ce_weight * sums["ce"] / jnp.maximum(counts.ce, 1.0)
    loss = loss + mse_weight * sums["mse"] / jnp.maximum(counts.mse, 1.0)
    return loss, metrics
