"""Tests of metrics as sums."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from process_gen.train import metrics


def pairs(total, count):
    return {"plan_ce": (jnp.float32(total), jnp.float32(count))}


def test_mean_is_over_tokens_however_they_are_split():
    values = np.array([1.0, 2.0, 3.0, 10.0], np.float32)
    together = metrics.compute(metrics.collect(pairs(values.sum(), 4)))
    parts = [
        metrics.collect(pairs(values[:1].sum(), 1)),
        metrics.collect(pairs(values[1:].sum(), 3)),
    ]
    split = metrics.compute(metrics.merge(*parts))
    assert together == split == {"plan_ce": 4.0}
    # Partner: the mean of means is another number.
    assert np.mean([metrics.compute(p)["plan_ce"] for p in parts]) == 3.0


def test_a_mean_over_nothing_is_left_out_and_nan_is_kept():
    assert metrics.compute(metrics.collect(pairs(0.0, 0.0))) == {}
    assert math.isnan(metrics.compute(metrics.collect(pairs(np.nan, 2.0)))["plan_ce"])
    padded = metrics.merge(metrics.collect(pairs(0.0, 0.0)), metrics.collect(pairs(6.0, 2.0)))
    assert metrics.compute(padded) == {"plan_ce": 3.0}


def test_terms_are_divided_by_themselves_and_added_up():
    def terms(ce, mse):
        pairs = {"loss+ce": ce, "loss+mse": mse, "ce": (1.0, 1.0)}
        return metrics.collect({k: tuple(map(jnp.float32, pair)) for k, pair in pairs.items()})

    full, padded = terms((8.0, 4.0), (30.0, 3.0)), terms((6.0, 1.0), (0.0, 0.0))
    assert metrics.compute(full) == {"loss": 12.0, "ce": 1.0}
    assert metrics.compute(padded) == {"loss": 6.0, "ce": 1.0}
    assert metrics.compute(metrics.merge(full, padded))["loss"] == 14.0 / 5.0 + 10.0
    nothing = terms((0.0, 0.0), (0.0, 0.0))
    assert metrics.compute(nothing)["loss"] == 0.0  # as of a batch of empty packs


def test_empty_is_neutral_and_collections_pass_through_jit():
    ratio = metrics.Ratio(jnp.float32(3.0), jnp.float32(2.0))
    assert ratio.merge(metrics.Ratio.empty()).compute() == 1.5
    again = jax.jit(lambda x: x)({"a": ratio})
    assert metrics.compute(again) == {"a": 1.5}
