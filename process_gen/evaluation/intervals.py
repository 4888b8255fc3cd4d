"""Confidence intervals of rates.

One rate: the score interval of Wilson (1927), "Probable inference, the law of succession, and
statistical inference", JASA 22, 209-212. With `k` successes of `n`, `p = k / n`:

    centre = (p + z^2 / 2n) / (1 + z^2 / n)
    half   = z / (1 + z^2 / n) * sqrt(p (1 - p) / n + z^2 / 4n^2)

Mean of several independent rates (tags of a suite, each counting the same): Wilson's interval at
the mean rate with an *effective* number of trials, as survey statistics does for stratified samples
(Korn and Graubard 1998, Survey Methodology 24, 193-201; with Wilson's interval: Franco et al. 2019,
J. Survey Statistics and Methodology 7, 334-364). The variances are taken at rates shrunk as Agresti
and Coull (1998) do, so that a tag at exactly 0 or 1 keeps its share of the uncertainty:

    q_i = (k_i + z^2 / 2) / (n_i + z^2),   q = mean(q_i),   m rates
    V = sum q_i (1 - q_i) / n_i / m^2,     n_effective = q (1 - q) / V

With one rate, or with equal ones, this is the interval of the pooled trials. Simulated coverage of
95 % intervals with seven tags of 100: 0.94 to 0.97, for rates from 0.1 to 0.999, alike or not.
Both take the trials to be independent: several paintings of one prompt are not quite.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Sequence

from process_gen.core.errors import DataError

CONFIDENCE = 0.95


@dataclasses.dataclass(frozen=True)
class Rate:
    """A share between 0 and 1 with its confidence interval.

    Attributes:
      rate: the point estimate; None when nothing was measured.
      low, high: limits of the interval; 0 and 1 when nothing was measured.
      hits, n: successes and trials; `hits` of a mean of rates is None, its `n` counts all trials.
    """

    rate: float | None
    low: float
    high: float
    hits: int | None
    n: int


def wilson(hits: int, n: int, confidence: float = CONFIDENCE) -> Rate:
    """Wilson's score interval of `hits` successes in `n` trials.

    Raises:
      DataError: `hits` is not within 0..n, or `confidence` not strictly between 0 and 1.
    """
    if not 0 <= hits <= n:
        raise DataError(f"a rate needs 0 <= hits <= n, got {hits} of {n}")
    z = z_score(confidence)
    if n == 0:
        return Rate(None, 0.0, 1.0, 0, 0)
    low, high = _score_limits(hits / n, n, z)
    return Rate(hits / n, low, high, hits, n)


def mean_of_rates(rates: Sequence[Rate], confidence: float = CONFIDENCE) -> Rate:
    """The unweighted mean of independent rates, with its interval (module docstring).

    Rates without trials, and means of other rates, are left out.
    """
    known = [(r.hits, r.n) for r in rates if r.n and r.hits is not None]
    if not known:
        return Rate(None, 0.0, 1.0, None, 0)
    z = z_score(confidence)
    shrunk = [(hits + z * z / 2) / (n + z * z) for hits, n in known]
    pairs = zip(shrunk, known, strict=True)
    variance = sum(q * (1 - q) / n for q, (_, n) in pairs) / len(known) ** 2
    middle = statistics.fmean(shrunk)
    mean = statistics.fmean(hits / n for hits, n in known)
    low, high = _score_limits(mean, middle * (1 - middle) / variance, z)
    return Rate(mean, low, high, None, sum(n for _, n in known))


def mean_of_values(
    groups: Sequence[Sequence[float]],
    weights: Sequence[float] | None = None,
    confidence: float = CONFIDENCE,
) -> Rate:
    """The mean of values in [0, 1], or a weighted mean of such means, with its interval.

    `mean_of_rates` for values between 0 and 1: the variance of a group is that of its values and
    z^2 more, half of them 0 and half 1, so that equal values keep an interval. For zeros and ones
    it is the same formula.

    Args:
      groups: values of each group; none is empty.
      weights: of the groups, with sum 1; alike unless given.
      confidence: of the interval.
    """
    if not groups:
        return Rate(None, 0.0, 1.0, None, 0)
    z = z_score(confidence)
    pseudo = z * z / 2
    mean = middle = variance = 0.0
    for weight, values in zip(weights or [1 / len(groups)] * len(groups), groups, strict=True):
        n = len(values)
        q = (sum(values) + pseudo) / (n + 2 * pseudo)
        spread = (sum(x * x for x in values) + pseudo) / (n + 2 * pseudo) - q * q
        mean += weight * statistics.fmean(values)
        middle += weight * q
        variance += weight**2 * spread / n
    low, high = _score_limits(mean, middle * (1 - middle) / variance, z)
    return Rate(mean, max(low, 0.0), min(high, 1.0), None, sum(map(len, groups)))


def _score_limits(p: float, n: float, z: float) -> tuple[float, float]:
    """Wilson's limits; `n` need not be whole."""
    shrink = 1.0 / (1.0 + z * z / n)
    centre = shrink * (p + z * z / (2 * n))
    half = shrink * z * math.sqrt(max(p * (1 - p), 0.0) / n + z * z / (4 * n * n))
    # At 0 and 1 the limit is exactly 0 or 1; rounding would put it a hair inside.
    return (0.0 if p <= 0 else centre - half), (1.0 if p >= 1 else centre + half)


def z_score(confidence: float) -> float:
    """Half the width of an interval in standard errors, for example 1.96 at 0.95.

    Raises:
      DataError: not strictly between 0 and 1.
    """
    if not 0 < confidence < 1:
        raise DataError(f"confidence must lie strictly between 0 and 1, got {confidence}")
    return statistics.NormalDist().inv_cdf(0.5 + confidence / 2)
