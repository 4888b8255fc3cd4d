"""Fitting trajectories into packs of three streams, and choosing the packs' shape.

Putting items of three lengths into as few packs as possible is vector bin packing. The way taken is
the usual one (Panigrahy et al. 2011, "Heuristics for vector bin packing"): packs are filled one
after the other, begun with the largest item that is left, and go on with the one that fits what is
left of the three streams best. Then, some times over, the emptiest packs are emptied and packed
anew in a shaken order, which gains one to two per cent where few trajectories share a pack.

Everything is a pure function of the arguments, on any machine: feasibility is decided in integers,
and scores take elementwise arithmetic only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

_ROUNDS = 6
_EMPTIED = 0.5  # share of the packs that a round empties because of their waste,
_MIXED_IN = 0.25  # and of those that it takes besides, at random
_SHAKEN = 0.15  # by how much a size may be misjudged in a round
_GOOD_ENOUGH = 0.99  # fill of the fullest stream, after which nothing is emptied

Score = Callable[[np.ndarray, np.ndarray], np.ndarray]


def _tightness(share_Nx3: np.ndarray, room_3: np.ndarray) -> np.ndarray:
    """Leaves the pack's emptiest stream as full as possible."""
    return -(room_3 - share_Nx3).max(axis=1)


def _alignment(share_Nx3: np.ndarray, room_3: np.ndarray) -> np.ndarray:
    """Takes from the streams in the proportion in which there is room."""
    a, b, c = share_Nx3.T
    norm_N = np.sqrt(a * a + b * b + c * c) + 1e-12
    return (a * room_3[0] + b * room_3[1] + c * room_3[2]) / norm_N


_SCORES: tuple[Score, ...] = (_tightness, _alignment)


class _Packs(NamedTuple):
    """Items of each pack, and the unused share of its three streams."""

    items: list[np.ndarray]
    room_Px3: np.ndarray


def _fill(
    length_Nx3: np.ndarray,
    limit_3: np.ndarray,
    score: Score,
    rng: np.random.Generator | None = None,
) -> _Packs:
    """One pass; items of equal lengths are looked at once. `rng` shakes the order."""
    kind_Kx3, of_N = np.unique(length_Nx3, axis=0, return_inverse=True)
    share_Kx3 = kind_Kx3 / np.maximum(limit_3, 1)
    size_K = share_Kx3.max(axis=1)
    if rng is not None:
        size_K = size_K * (1 + rng.uniform(-_SHAKEN, _SHAKEN, len(size_K)))
    order_K = np.argsort(-size_K, kind="stable")
    kind_Kx3, share_Kx3 = kind_Kx3[order_K], share_Kx3[order_K]
    place_K = np.empty(len(order_K), np.int64)
    place_K[order_K] = np.arange(len(order_K))
    of_N = place_K[of_N.ravel()]
    by_kind = np.split(np.argsort(of_N, kind="stable"), np.cumsum(np.bincount(of_N))[:-1])
    left = [list(items[::-1]) for items in by_kind]
    items: list[np.ndarray] = []
    rooms: list[np.ndarray] = []
    first, alive_K = 0, np.ones(len(left), bool)
    while True:
        while first < len(left) and not left[first]:
            first += 1
        if first == len(left):
            return _Packs(items, np.array(rooms))
        mine = [left[first].pop()]
        alive_K[first] = bool(left[first])
        free_3, room_3 = limit_3 - kind_Kx3[first], 1 - share_Kx3[first]
        fits_M = np.flatnonzero(alive_K[first:]) + first
        while True:
            a, b, c = kind_Kx3[fits_M].T
            fits_M = fits_M[(a <= free_3[0]) & (b <= free_3[1]) & (c <= free_3[2])]
            if not len(fits_M):
                break
            best = int(fits_M[score(share_Kx3[fits_M], room_3).argmax()])
            mine.append(left[best].pop())
            free_3, room_3 = free_3 - kind_Kx3[best], room_3 - share_Kx3[best]
            if not left[best]:
                alive_K[best] = False
                fits_M = fits_M[fits_M != best]
        items.append(np.array(mine))
        rooms.append(room_3)


def fit(
    length_Nx3: np.ndarray, limits: Sequence[int], rng: np.random.Generator, rounds: int = _ROUNDS
) -> list[np.ndarray]:
    """Packs all items.

    Args:
      length_Nx3: int tokens of each item, none longer than a limit.
      limits: of a pack's streams.
      rng: of the rounds; equal ones give equal packs.
      rounds: how often the emptiest packs are packed anew.

    Returns:
      The numbers of the items in each pack.
    """
    if not len(length_Nx3):
        return []
    length_Nx3, limit_3 = np.asarray(length_Nx3, np.int64), np.asarray(limits, np.int64)
    demand_3 = length_Nx3.sum(axis=0) / np.maximum(limit_3, 1)
    need = float(demand_3.max())  # packs that no way of packing can do without
    weight_3 = demand_3 / need if need else np.ones(3)
    found = min((_fill(length_Nx3, limit_3, s) for s in _SCORES), key=lambda p: len(p.items))
    for number in range(rounds):
        count = len(found.items)
        if need >= _GOOD_ENOUGH * count or count < 3:
            break
        a, b, c = (found.room_Px3 * weight_3).T
        by_waste_P = np.argsort(-(a + b + c), kind="stable")
        emptied = int(count * _EMPTIED)
        others = rng.choice(by_waste_P[emptied:], int(count * _MIXED_IN), replace=False)
        again_P = np.concatenate([by_waste_P[:emptied], others])
        pool_M = np.concatenate([found.items[p] for p in again_P])
        new = _fill(length_Nx3[pool_M], limit_3, _SCORES[number % len(_SCORES)], rng)
        if len(new.items) <= len(again_P):
            kept = np.setdiff1d(np.arange(count), again_P)
            items = [found.items[p] for p in kept] + [pool_M[pack] for pack in new.items]
            found = _Packs(items, np.concatenate([found.room_Px3[kept], new.room_Px3]))
    return found.items


# ---- the shape of a pack -------------------------------------------------------------------------

_SAMPLE = 2048  # items that a shape is tried on
_MOST_LEFT_OUT = 0.01
_TRIED = 3  # shapes that are packed carefully, of those that a quick pass finds best


class Shape(NamedTuple):
    """A shape of packs, and how well it fits.

    Attributes:
      text, und, gen: T, V and G.
      und_fill: used share of the und stream, T and V together.
      gen_fill: used share of the gen stream; 1 where it has no tokens.
      left_out: share of the items that are too long for it.
    """

    text: int
    und: int
    gen: int
    und_fill: float
    gen_fill: float
    left_out: float

    @property
    def total(self) -> int:
        """S, tokens of a row."""
        return self.text + self.und + self.gen


def stream_fills(length_Nx3: np.ndarray, limits: Sequence[int], packs: int) -> tuple[float, float]:
    """Used shares of the und stream (text and understanding patches) and of the gen stream."""
    text, und, gen = (int(x) for x in np.asarray(length_Nx3).sum(axis=0))
    room_und, room_gen = (limits[0] + limits[1]) * packs, limits[2] * packs
    return (text + und) / max(room_und, 1), gen / room_gen if room_gen else 1.0


def measure_shape(
    length_Nx3: np.ndarray, limits: tuple[int, int, int], rounds: int = _ROUNDS
) -> Shape:
    """Packs items into a shape; what is too long for it is left out."""
    fits_N = (length_Nx3 <= np.asarray(limits)).all(axis=1)
    packs = fit(length_Nx3[fits_N], limits, np.random.default_rng(0), rounds)
    fills = stream_fills(length_Nx3[fits_N], limits, len(packs))
    return Shape(*limits, *fills, 1 - float(fits_N.mean()))


def propose(length_Nx3: np.ndarray, total: int) -> Shape:
    """The shape of about `total` tokens that fills both streams best.

    Streams should be as long as they are asked for; understanding patches and latents come in
    pictures, so that only multiples of a picture's tokens are of use. At most one item of a hundred
    is left out, where that can be had.

    Args:
      length_Nx3: int tokens in T, V and G of each item, in any order; see `packing.draw`.
      total: T + V + G wanted; the shape found may be a tenth longer or shorter.
    """
    length_Nx3 = np.asarray(length_Nx3, np.int64)
    step = max(1, len(length_Nx3) // _SAMPLE)
    sample_Nx3 = length_Nx3[::step][:_SAMPLE]
    mean_3 = np.maximum(sample_Nx3.mean(axis=0), 1e-9)
    ideal_3 = total * mean_3 / mean_3.sum()
    longest_3 = np.quantile(sample_Nx3, 1 - _MOST_LEFT_OUT, axis=0)
    unit_3 = [max(int(np.gcd.reduce(column)), 1) for column in sample_Nx3.T]
    shapes = set()
    for gen in _around(ideal_3[2], unit_3[2], longest_3[2]):
        for und in _around(ideal_3[1], unit_3[1], longest_3[1]):
            pictures = max(gen / mean_3[2], und / mean_3[1]) if gen + und else total / mean_3[0]
            for share in (0.97, 1.0):
                text = max(round(share * pictures * mean_3[0] / 4) * 4, int(longest_3[0]), 1)
                if abs(text + und + gen - total) <= total // 10:
                    shapes.add((text, und, gen))
    if not shapes:
        return measure_shape(sample_Nx3, tuple(int(x) for x in np.maximum(longest_3, ideal_3)))

    def worth(shape: Shape) -> tuple[float, ...]:
        return -max(shape.left_out - _MOST_LEFT_OUT, 0), min(shape.und_fill, shape.gen_fill)

    quick = [measure_shape(sample_Nx3, limits, rounds=0) for limits in sorted(shapes)]
    best = sorted(quick, key=worth, reverse=True)[:_TRIED]
    return max((measure_shape(sample_Nx3, shape[:3]) for shape in best), key=worth)


def _around(ideal: float, unit: int, least: float) -> list[int]:
    """Multiples of a unit near a number, a few at most, from `least` on."""
    step = unit * max(1, round(ideal / (16 * unit)))
    near = {step * max(0, int(ideal // step) + i) for i in (-1, 0, 1, 2)}
    return sorted(x for x in near if x >= least) or [-(-int(least) // unit) * unit]
