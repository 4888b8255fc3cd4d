"""Confidence intervals of differences between two runs.

Independent rates: the square-and-add rule of Newcombe (1998), "Interval estimation for the
difference between independent proportions", Statistics in Medicine 17, 873-890 (his method 10),
which needs the two estimates and their own limits only:

    d = b - a,   low  = d - sqrt((b - low_b)^2 + (high_a - a)^2)
                 high = d + sqrt((high_b - b)^2 + (a - low_a)^2)

Pairs (the same prompts, painted by both): what a prompt's difficulty does to both runs cancels. The
difference of each pair lies in [-1, 1]; two pairs that differ by +1 and -1 are added before the
variance is taken, as Bonett and Price (2012), J. Educational and Behavioral Statistics 37, 479-488,
do for proportions, so that runs without any discordant pair keep an interval. Over groups (tags)
that count alike, or by weights w with sum 1:

    d~ = sum(d) / (n + 2),   v = ((sum(d^2) + 2) / (n + 2) - d~^2) / (n + 2)
    difference = sum_g w_g mean(d_g),   half = z sqrt(sum_g w_g^2 v_g)

The centre is the plain difference: with seven groups the shrunk one of Bonett and Price drifts
towards 0. Simulated coverage of 95 % intervals, one or seven groups of 4, 12 or 100 pairs, gains
from none to large: 0.953 to 1.0 (the shrunk centre: down to 0.71).
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Sequence

from process_gen.core.errors import DataError
from process_gen.evaluation.intervals import CONFIDENCE, z_score


@dataclasses.dataclass(frozen=True)
class Limits:
    """An estimate with its confidence interval, all that a file of scores says of a rate."""

    rate: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class Difference:
    """How much larger a rate is in the second run than in the first.

    Attributes:
      difference: the point estimate.
      low, high: limits of the interval.
      pairs: paintings that were compared one by one; 0 where only the two rates were.
      better, worse: pairs in which the second run has the larger, the smaller value.
    """

    difference: float
    low: float
    high: float
    pairs: int = 0
    better: int = 0
    worse: int = 0

    @property
    def clear(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.low > 0 or self.high < 0


def independent(a: Limits, b: Limits) -> Difference:
    """The difference of two independently measured rates."""
    middle = b.rate - a.rate
    down = math.hypot(b.rate - b.low, a.high - a.rate)
    up = math.hypot(b.high - b.rate, a.rate - a.low)
    return Difference(middle, middle - down, middle + up)


def paired(
    groups: Sequence[Sequence[tuple[float, float]]],
    weights: Sequence[float] | None = None,
    confidence: float = CONFIDENCE,
) -> Difference:
    """The mean difference of pairs, group by group.

    Args:
      groups: (first run, second run) of each pair, values in [0, 1]; no group is empty.
      weights: of the groups, with sum 1; alike unless given.
      confidence: of the interval.

    Raises:
      DataError: no groups, an empty one, or weights that are not one a group.
    """
    if not groups or not all(groups):
        raise DataError("a paired difference needs pairs in every group")
    if weights is None:
        weights = [1 / len(groups)] * len(groups)
    if len(weights) != len(groups):
        raise DataError(f"{len(weights)} weights for {len(groups)} groups")
    middle = variance = 0.0
    for weight, pairs in zip(weights, groups, strict=True):
        moves = [b - a for a, b in pairs]
        n = len(moves)
        shrunk = sum(moves) / (n + 2)
        spread = (sum(d * d for d in moves) + 2) / (n + 2) - shrunk**2
        middle += weight * statistics.fmean(moves)
        variance += weight**2 * spread / (n + 2)
    half = z_score(confidence) * math.sqrt(variance)
    flat = [b - a for pairs in groups for a, b in pairs]
    return Difference(
        middle,
        max(-1.0, middle - half),
        min(1.0, middle + half),
        len(flat),
        sum(d > 0 for d in flat),
        sum(d < 0 for d in flat),
    )
