"""Intervals: published values, limits at 0 and 1, and coverage by simulation."""

import numpy as np
import pytest

from process_gen.core.errors import DataError
from process_gen.evaluation.intervals import Rate, mean_of_rates, wilson


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"),
    # Newcombe (1998), Statistics in Medicine 17, 857-872, table I, method 3 (score, no correction).
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_published_values(hits, n, low, high):
    rate = wilson(hits, n)
    assert rate.low == pytest.approx(low, abs=6e-5)
    assert rate.high == pytest.approx(high, abs=6e-5)
    assert rate.rate == hits / n


def test_wilson_is_not_the_normal_interval():
    n = 20
    assert wilson(n, n).low < 0.9  # p +- z sqrt(p q / n) would be [1, 1]


def test_wilson_is_symmetric_and_ordered():
    for hits in range(11):
        a, b = wilson(hits, 10), wilson(10 - hits, 10)
        assert a.low == pytest.approx(1 - b.high)
        assert 0 <= a.low <= a.rate <= a.high <= 1


def test_wilson_narrows_with_n_and_widens_with_confidence():
    def width(rate):
        return rate.high - rate.low

    assert width(wilson(500, 1000)) < width(wilson(50, 100))
    assert width(wilson(50, 100, 0.99)) > width(wilson(50, 100, 0.95))


@pytest.mark.parametrize("arguments", [(-1, 5), (6, 5), (1, 5, 1.0), (1, 5, 0.0)])
def test_wilson_refuses(arguments):
    with pytest.raises(DataError):
        wilson(*arguments)


def test_nothing_measured_has_no_rate():
    assert wilson(0, 0) == Rate(None, 0.0, 1.0, 0, 0)
    assert mean_of_rates([]).rate is None
    assert mean_of_rates([wilson(0, 0), wilson(3, 4)]).rate == 0.75


def test_mean_of_one_rate_is_that_rate():
    one = wilson(7, 10)
    mean = mean_of_rates([one])
    assert (mean.rate, mean.low, mean.high) == pytest.approx((one.rate, one.low, one.high))


def test_mean_weighs_tags_not_pictures():
    rates = [wilson(100, 100), wilson(0, 10)]
    assert mean_of_rates(rates).rate == 0.5
    assert mean_of_rates(rates).rate != pytest.approx(100 / 110)


def test_equal_tags_give_the_interval_of_the_pooled_trials():
    mean, pooled = mean_of_rates([wilson(97, 100)] * 7), wilson(679, 700)
    assert (mean.low, mean.high) == pytest.approx((pooled.low, pooled.high))
    uneven = mean_of_rates([wilson(100, 100)] * 5 + [wilson(99, 100), wilson(80, 100)])
    assert uneven.high - uneven.low < 0.99 * (wilson(679, 700).high - wilson(679, 700).low)


def test_mean_of_perfect_rates_keeps_a_width():
    mean = mean_of_rates([wilson(100, 100)] * 7)
    assert mean.high == 1.0
    assert 0.99 < mean.low < 1.0
    assert mean.low > wilson(100, 100).low  # seven tags say more than one


@pytest.mark.parametrize(
    "truth", [[0.97] * 7, [1, 1, 1, 1, 1, 1, 0.8], [0.999] * 7, [0.1, 0.5, 0.9]]
)
def test_coverage(truth):
    """93 to 98 % of simulated suites hold the truth in their interval, near 1 too."""
    rng = np.random.default_rng(0)
    n, runs, mean_truth = 100, 1500, float(np.mean(truth))
    rates = [wilson(k, n) for k in range(n + 1)]
    covered = narrow = 0
    for row in rng.binomial(n, truth, size=(runs, len(truth))):
        mean = mean_of_rates([rates[k] for k in row])
        covered += mean.low <= mean_truth <= mean.high
        quarter = (mean.high - mean.low) / 4
        narrow += abs(mean_truth - (mean.low + mean.high) / 2) <= quarter
    assert 0.93 < covered / runs < 0.98
    assert narrow / runs < 0.9  # the partner: intervals half as wide would fail
