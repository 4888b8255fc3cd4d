from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from process_gen.core.trajectory import Stage
from process_gen.losses.stages import (
    STAGE_METRICS,
    Elements,
    count,
    reduce,
    scale_table,
)

P, I, C = int(Stage.PLAN), int(Stage.INSPECT), int(Stage.CONTROL)
S, R = int(Stage.SKETCH), int(Stage.REFINE)
ELEMENTS = Elements(
    ce_BxT=jnp.asarray([[1.0, 2.0, 4.0, 100.0], [8.0, 16.0, 32.0, 100.0]]),
    ce_stage_BxT=jnp.asarray([[P, P, I, -1], [C, R, I, -1]]),
    mse_BxG=jnp.asarray([[0.5, 1.5, 100.0], [2.5, 100.0, 100.0]]),
    mse_stage_BxG=jnp.asarray([[S, S, -1], [R, -1, -1]]),
)
COUNTS = count(ELEMENTS.ce_stage_BxT, ELEMENTS.mse_stage_BxG)
ONES = scale_table({})


def test_the_loss_by_hand():
    assert (float(COUNTS.ce), float(COUNTS.mse)) == (6.0, 3.0)
    loss, _ = reduce(ELEMENTS, COUNTS, ce_weight=0.25, mse_weight=2.0, scales=ONES)
    assert float(loss) == pytest.approx(0.25 * 63 / 6 + 2.0 * 4.5 / 3)
    other, _ = reduce(ELEMENTS, COUNTS, ce_weight=0.5, mse_weight=2.0, scales=ONES)
    assert float(other) != pytest.approx(float(loss))


def test_metrics_carry_numerator_and_denominator():
    _, metrics = reduce(ELEMENTS, COUNTS, ce_weight=1.0, mse_weight=1.0, scales=ONES)
    expected = {
        "ce": (63.0, 6.0),
        "mse": (4.5, 3.0),
        "plan_ce": (3.0, 2.0),
        "inspect_ce": (36.0, 2.0),
        "refine_ce": (16.0, 1.0),
        "control_ce": (8.0, 1.0),
        "answer_ce": (0.0, 0.0),
        "sketch_mse": (2.0, 2.0),
        "refine_mse": (2.5, 1.0),
        "one_shot_mse": (0.0, 0.0),
    }
    assert {name: (float(a), float(b)) for name, (a, b) in metrics.items()} == expected
    assert set(metrics) == set(STAGE_METRICS) | {"ce", "mse"}
    by_stage = [metrics[name] for name, (kind, _) in STAGE_METRICS.items() if kind == "ce"]
    assert sum(float(a) for a, _ in by_stage) == 63.0  # no text token is counted twice or never


def test_a_refined_plan_and_a_refined_picture_are_counted_apart():
    """Both belong to the stage REFINE; the kind tells them apart."""
    _, metrics = reduce(ELEMENTS, COUNTS, ce_weight=1.0, mse_weight=1.0, scales=ONES)
    assert float(metrics["refine_ce"][0]) == 16.0 and float(metrics["refine_mse"][0]) == 2.5


def test_parts_add_up_to_the_whole():
    """Micro-batches or devices, each with the counts of the whole batch."""
    whole, metrics = reduce(ELEMENTS, COUNTS, ce_weight=1.0, mse_weight=1.0, scales=ONES)
    parts = [Elements(*(x[i : i + 1] for x in ELEMENTS)) for i in range(2)]
    shared = [reduce(p, COUNTS, ce_weight=1.0, mse_weight=1.0, scales=ONES) for p in parts]
    assert float(sum(loss for loss, _ in shared)) == pytest.approx(float(whole))
    for name, (numerator, denominator) in metrics.items():
        assert float(sum(m[name][0] for _, m in shared)) == float(numerator)
        assert float(sum(m[name][1] for _, m in shared)) == float(denominator)
    # With counts of their own, the parts' mean is another number.
    own = [
        reduce(p, count(p.ce_stage_BxT, p.mse_stage_BxG), ce_weight=1.0, mse_weight=1.0,
               scales=ONES)[0]
        for p in parts
    ]  # fmt: skip
    assert float(sum(own)) / 2 != pytest.approx(float(whole), rel=1e-2)


def test_stage_scales_change_the_loss_and_no_metric():
    scales = scale_table({"plan": 10.0, "sketch": 0.0, "refine": 2.0})
    assert scales.dtype == np.float32 and scales.shape == (len(Stage),)
    loss, metrics = reduce(ELEMENTS, COUNTS, ce_weight=1.0, mse_weight=1.0, scales=scales)
    # REFINE scales its text and its pictures.
    assert float(loss) == pytest.approx((30 + 4 + 8 + 32 + 32) / 6 + 2 * 2.5 / 3)
    plain, unscaled = reduce(ELEMENTS, COUNTS, ce_weight=1.0, mse_weight=1.0, scales=ONES)
    assert float(plain) != pytest.approx(float(loss))
    for name, (numerator, denominator) in unscaled.items():
        assert float(metrics[name][0]) == float(numerator)
        assert float(metrics[name][1]) == float(denominator)


def test_a_batch_without_one_kind_has_a_finite_loss():
    empty = ELEMENTS._replace(mse_stage_BxG=jnp.full((2, 3), -1))
    counts = count(empty.ce_stage_BxT, empty.mse_stage_BxG)
    loss, metrics = reduce(empty, counts, ce_weight=1.0, mse_weight=1.0, scales=ONES)
    assert float(loss) == pytest.approx(63 / 6) and float(metrics["mse"][1]) == 0.0


def test_weights_of_tokens_enter_the_loss_and_its_count_and_no_metric():
    weight = jnp.asarray([[0.5, 0.5, 1.0, 9.0], [1.0, 0.25, 0.25, 9.0]])
    counts = count(ELEMENTS.ce_stage_BxT, ELEMENTS.mse_stage_BxG, weight)
    assert (float(counts.ce), float(counts.mse)) == (3.5, 3.0)
    factors = {"ce_weight": 1.0, "mse_weight": 1.0, "scales": scale_table({"plan": 2.0})}
    loss, metrics = reduce(ELEMENTS, counts, **factors, ce_token_BxT=weight)
    expected = 2 * (0.5 * 1 + 0.5 * 2) + 1.0 * 4 + 1.0 * 8 + 0.25 * 16 + 0.25 * 32
    assert float(loss) == pytest.approx(expected / 3.5 + 4.5 / 3)
    plain, plain_metrics = reduce(ELEMENTS, COUNTS, **factors)
    assert float(plain) != pytest.approx(float(loss))
    assert {k: tuple(map(float, v)) for k, v in metrics.items()} == {
        k: tuple(map(float, v)) for k, v in plain_metrics.items()
    }
