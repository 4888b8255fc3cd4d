"""Intervals of differences."""

from __future__ import annotations

import numpy as np
import pytest

from process_gen.core.errors import DataError
from process_gen.evaluation.differences import Limits, independent, paired
from process_gen.evaluation.intervals import mean_of_rates, mean_of_values, wilson


def limits(hits, n):
    rate = wilson(hits, n)
    return Limits(hits / n, rate.low, rate.high)


def test_independent_rates_as_in_newcombes_table():
    # Newcombe (1998), table II, his method 10, rows (a) and (h).
    found = independent(limits(48, 80), limits(56, 70))
    assert (found.difference, found.low, found.high) == pytest.approx(
        (0.2, 0.0524, 0.3339), abs=1e-4
    )
    found = independent(limits(0, 10), limits(10, 10))
    assert (found.low, found.high) == pytest.approx((0.6075, 1.0), abs=1e-4)
    assert found.clear and not independent(limits(4, 10), limits(5, 10)).clear


def test_pairs_by_hand():
    # 3 better, 1 worse, 6 alike: sum 2, squares 4; with the two added pairs 6 of 12.
    pairs = [(0, 1)] * 3 + [(1, 0)] + [(1, 1)] * 6
    found = paired([pairs])
    half = 1.959964 * ((6 / 12 - (2 / 12) ** 2) / 12) ** 0.5
    assert (found.difference, found.low, found.high) == pytest.approx((0.2, 0.2 - half, 0.2 + half))
    assert (found.pairs, found.better, found.worse) == (10, 3, 1)
    assert paired([pairs, [(0, 0)] * 10]).difference == pytest.approx(0.1)
    assert paired([pairs, [(0, 0)] * 10], [0.75, 0.25]).difference == pytest.approx(0.15)
    assert paired([[(0, 1)] * 5]).high == 1.0


def test_pairs_tell_more_than_their_rates():
    """What is hard for both runs cancels; shuffled, the pairs lose that."""
    rng = np.random.default_rng(0)
    hard = rng.random(400) < 0.5
    a, b = hard.astype(float), np.where(rng.random(400) < 0.05, 1.0, hard)
    together = paired([list(zip(a, b, strict=True))])
    apart = paired([list(zip(rng.permutation(a), b, strict=True))])
    assert together.clear and not apart.clear
    assert together.difference == pytest.approx(apart.difference)
    assert not paired([[(1.0, 1.0)] * 400]).clear


def test_the_interval_covers_the_truth():
    rng = np.random.default_rng(1)
    covered = {True: 0, False: 0}
    for _ in range(400):
        groups = []
        for _ in range(3):
            a = (rng.random(40) < 0.6).astype(float)
            groups.append(list(zip(a, np.where(rng.random(40) < 0.2, 1.0, a), strict=True)))
        found = paired(groups)
        for truth, right in ((0.08, True), (0.2, False)):  # 0.2 of the 40 % that were wrong
            covered[right] += found.low <= truth <= found.high
    assert covered[True] >= 370 and covered[False] < 40


@pytest.mark.parametrize(
    ("groups", "weights"), [([], None), ([[]], None), ([[(0, 1)]], [0.5, 0.5])]
)
def test_what_cannot_be_compared(groups, weights):
    with pytest.raises(DataError):
        paired(groups, weights)


def test_means_of_values_agree_with_rates_and_go_on_from_there():
    groups = [[1.0] * 7 + [0.0] * 3, [1.0] * 2 + [0.0] * 6]
    rates = mean_of_rates([wilson(7, 10), wilson(2, 8)])
    found = mean_of_values(groups)
    assert (found.rate, found.low, found.high) == pytest.approx((rates.rate, rates.low, rates.high))
    assert mean_of_values(groups, [0.9, 0.1]).rate == pytest.approx(0.655)
    narrow, wide = mean_of_values([[0.5] * 50]), mean_of_values([[0.0, 1.0] * 25])
    assert narrow.rate == wide.rate == 0.5
    assert 0 < narrow.high - narrow.low < wide.high - wide.low
    assert mean_of_values([[1.0] * 5]).high == 1.0 and mean_of_values([]).rate is None
