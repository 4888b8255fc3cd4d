"""Confidence intervals of rates.

One rate: the score interval of Wilson (1927), "Probable inference, the law of succession, and
statistical inference", JASA 22, 209-212. With `k` successes of `n`, `p = k / n`:

    centre = (p + z^2 / 2n) / (1 + z^2 / n)
    half   = z / (1 + z^2 / n) * sqrt(p (1 - p) / n + z^2 / 4n^2)

Mean of several independent rates: Zou, Huang and Zhang (2009), "A note on confidence interval
estimation for a linear function of binomial proportions", CSDA 53, 1080-1085. The distances of each
rate from its own Wilson limits stand in for its standard error, so that a rate of exactly 0 or 1
keeps a width (the plain normal interval gives it none). With weights `c = 1 / m`:

    low  = mean(p) - c * sqrt(sum (p_i - low_i)^2)
    high = mean(p) + c * sqrt(sum (high_i - p_i)^2)

Both take the trials to be independent.
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
    z = _z(confidence)
    if n == 0:
        return Rate(None, 0.0, 1.0, 0, 0)
    p = hits / n
    shrink = 1.0 / (1.0 + z * z / n)
    centre = shrink * (p + z * z / (2 * n))
    half = shrink * z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    # At 0 and n hits the limit is exactly 0 or 1; rounding would put it a hair beyond the rate.
    low = 0.0 if hits == 0 else centre - half
    high = 1.0 if hits == n else centre + half
    return Rate(p, low, high, hits, n)


def mean_of_rates(rates: Sequence[Rate]) -> Rate:
    """The unweighted mean of independent rates, with an interval of their confidence.

    Rates without trials are left out of the mean.
    """
    known = [(r.rate, r) for r in rates if r.rate is not None]
    if not known:
        return Rate(None, 0.0, 1.0, None, 0)
    mean = statistics.fmean(p for p, _ in known)
    below = math.sqrt(sum((p - r.low) ** 2 for p, r in known)) / len(known)
    above = math.sqrt(sum((r.high - p) ** 2 for p, r in known)) / len(known)
    n = sum(r.n for _, r in known)
    return Rate(mean, max(0.0, mean - below), min(1.0, mean + above), None, n)


def _z(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise DataError(
            f"confidence must lie strictly between 0 and 1, got {confidence}"
        )
    return statistics.NormalDist().inv_cdf(0.5 + confidence / 2)
