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
    width = lambda r: r.high - r.low  # noqa: E731
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
    assert (mean.rate, mean.low, mean.high) == pytest.approx(
        (one.rate, one.low, one.high)
    )


def test_mean_weighs_tags_not_pictures():
    rates = [wilson(100, 100), wilson(0, 10)]
    assert mean_of_rates(rates).rate == 0.5
    assert mean_of_rates(rates).rate != pytest.approx(100 / 110)


def test_mean_of_perfect_rates_keeps_a_width():
    mean = mean_of_rates([wilson(100, 100)] * 7)
    assert mean.high == 1.0
    assert 0.98 < mean.low < 1.0
    assert mean.low > wilson(100, 100).low  # seven tags say more than one


def test_coverage():
    """Within 93.5 to 97 % of 4,000 simulated suites, also with rates near 1."""
    rng = np.random.default_rng(0)
    truth, n, runs = np.array([0.99, 0.95, 0.9, 0.85, 1.0, 0.97, 0.7]), 100, 4000
    hits = rng.binomial(n, truth, size=(runs, len(truth)))
    rates = [wilson(k, n) for k in range(n + 1)]
    covered = naive = 0
    for row in hits:
        mean = mean_of_rates([rates[k] for k in row])
        covered += mean.low <= truth.mean() <= mean.high
        # The partner: half the width covers far less, so that the bounds above mean something.
        naive += abs(mean.rate - truth.mean()) <= (mean.high - mean.low) / 4
    assert 0.935 < covered / runs < 0.97
    assert naive / runs < 0.85
