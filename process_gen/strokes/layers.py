"""Reads cells in which one thing may lie in front of another, by painting what could be there.

Objects of a layered world keep to their cells, so each cell is read by itself: a thing of each
kind, size, colour and place on a grid is compared with the pixels, and so is each pair of something
in front and something behind it. What explains the pixels best is there, if it explains them well.
Sums of squares are over the pixels of a cell and their three colours.
"""

from __future__ import annotations

import functools
import itertools
from typing import NamedTuple

import numpy as np

from process_gen.strokes.render import coverage
from process_gen.strokes.scene import BACKGROUND, COLOR_NAMES, COLORS, World

EMPTY = 4.0  # covered pixels; a cell with fewer holds nothing
UNEXPLAINED = 0.16  # largest share of a cell's squares that may be left over
BETTER = 0.55  # a pair must leave less than this share of what one thing alone leaves
_FRONTS = 12  # candidates for what lies in front that are looked at closely
_STRONG = 0.45  # pixels from this strength on decide which colours there are
_DIRECTIONS = np.array([COLORS[name] for name in COLOR_NAMES], np.float32) - np.array(
    BACKGROUND, np.float32
)
_LENGTHS2 = (_DIRECTIONS**2).sum(1)


class Found(NamedTuple):
    """An object: kind, colour, and centre in pixels."""

    shape: str
    color: str
    x: float
    y: float


class CellReading(NamedTuple):
    """What is in a cell, and the covered pixels that are nothing readable."""

    objects: tuple[Found, ...]
    stray: float


class _Sprites(NamedTuple):
    """Sprites of one layer as rows: float32[n, pixels], with kind and centre."""

    cover: np.ndarray
    squared: np.ndarray
    norm: np.ndarray  # of each row, squared
    meaning: list[tuple[str, float, float]]


@functools.cache
def _sprites(world: World, layer: int) -> _Sprites:
    rows, meaning = [], []
    side = world.sprite
    # A Gaussian of 0.7 px, as a matrix: what a soft painter does to an edge.
    blur = np.exp(-(np.subtract.outer(np.arange(side), np.arange(side)) ** 2) / (2 * 0.7**2))
    blur = (blur / blur.sum(1, keepdims=True)).astype(np.float32)
    reach = 1.4 * world.jitters[-1]
    steps = np.linspace(-reach, reach, 5).tolist()
    for kind in world.kinds:
        if kind.layer != layer:
            continue
        low, high = kind.radii[0], kind.radii[-1]
        for radius, x, y in itertools.product((low, high), steps, steps):
            # Not through the cache, which belongs to the renderer.
            sprite = coverage.__wrapped__(kind.outline, radius, x, y, side, 6)[..., 0]
            for picture in (sprite, blur @ sprite @ blur.T):
                rows.append(picture.ravel())
                meaning.append((kind.name, x, y))
    cover = np.stack(rows).astype(np.float32)
    squared = cover**2
    return _Sprites(cover, squared, squared.sum(1), meaning)


class _Best(NamedTuple):
    """What explains a cell, and the squares that it leaves over."""

    left: float
    objects: tuple[tuple[int, int, int], ...]  # layer, sprite, colour


def _single(pixels: np.ndarray, energy: float, sprites: _Sprites, layer: int) -> _Best:
    along_PxC = pixels @ _DIRECTIONS.T
    match_NxC = sprites.cover @ along_PxC
    norm_NxC = sprites.norm[:, None] * _LENGTHS2
    strength_NxC = np.clip(match_NxC / norm_NxC, 0.75, 1.1)
    left_NxC = energy - 2 * strength_NxC * match_NxC + strength_NxC**2 * norm_NxC
    sprite, color = np.unravel_index(int(left_NxC.argmin()), left_NxC.shape)
    return _Best(float(left_NxC[sprite, color]), ((layer, int(sprite), int(color)),))


@functools.cache
def _pair_plane(front_color: int, back_color: int) -> tuple[np.ndarray, np.ndarray]:
    """Shares of two colours in a pixel, and the projection off the plane that they span."""
    pair_2x3 = _DIRECTIONS[[front_color, back_color]].astype(np.float64)
    inverse_3x2 = np.linalg.pinv(pair_2x3)
    return inverse_3x2.astype(np.float32), np.eye(3) - inverse_3x2 @ pair_2x3


def _pair(
    pixels: np.ndarray, front: _Sprites, back: _Sprites, front_color: int, back_color: int
) -> _Best:
    """The best front of one colour over the best back of another."""
    front_3, back_3 = _DIRECTIONS[front_color], _DIRECTIONS[back_color]
    inverse_3x2, _ = _pair_plane(front_color, back_color)
    share_P = np.clip(pixels @ inverse_3x2[:, 0], 0.0, 1.1)
    candidates_F = np.argsort(front.norm - 2 * front.cover @ share_P)[:_FRONTS]
    cover_FxP = front.cover[candidates_F]
    rest_FxPx3 = pixels - cover_FxP[..., None] * front_3
    seen_FxP = 1.0 - cover_FxP
    match_NxF = back.cover @ (seen_FxP * (rest_FxPx3 @ back_3)).T
    norm_NxF = back.squared @ (seen_FxP * seen_FxP).T * _LENGTHS2[back_color]
    left_NxF = (rest_FxPx3**2).sum((1, 2)) - 2 * match_NxF + norm_NxF
    chosen, nearest = np.unravel_index(int(left_NxF.argmin()), left_NxF.shape)
    objects = ((1, int(candidates_F[nearest]), front_color), (0, int(chosen), back_color))
    return _Best(float(left_NxF[chosen, nearest]), objects)


def read_cell(difference: np.ndarray, world: World, center: tuple[float, float]) -> CellReading:
    """Reads one cell.

    Args:
      difference: float32[side, side, 3], colours minus the background around the cell's centre.
      world: that it belongs to.
      center: of the cell, (x, y).
    """
    pixels = difference.reshape(-1, 3)
    along_PxC = pixels @ _DIRECTIONS.T
    strength_PxC = np.clip(along_PxC / _LENGTHS2, 0.0, 1.15)
    distance_PxC = strength_PxC * (strength_PxC * _LENGTHS2 - 2 * along_PxC)
    color_P = distance_PxC.argmin(1)
    strength_P = strength_PxC[np.arange(len(pixels)), color_P]
    strong_P = strength_P >= _STRONG
    mass = float(strength_P[strong_P].sum())
    if mass < EMPTY:
        return CellReading((), 0.0)
    energy = float((pixels**2).sum())
    layers = [_sprites(world, layer) for layer in (0, 1)]
    best = min((_single(pixels, energy, layers[n], n) for n in (0, 1)), key=lambda b: b.left)
    if best.left > 0.02 * energy:
        counts = np.bincount(color_P[strong_P], minlength=len(COLOR_NAMES))
        likely = [int(c) for c in np.argsort(-counts)[:3] if counts[c] >= 4]
        moments_3x3 = pixels.T @ pixels
        enough = min(BETTER * best.left, UNEXPLAINED * energy)
        for front, back in itertools.permutations(likely, 2):
            # No pair can leave less than what lies off the plane of its colours.
            if float((_pair_plane(front, back)[1] * moments_3x3).sum()) > enough:
                continue
            both = _pair(pixels, layers[1], layers[0], front, back)
            if both.left < enough:
                best, enough = both, both.left
    if best.left > UNEXPLAINED * energy:
        return CellReading((), mass)
    found = []
    for layer, sprite, color in best.objects:
        shape, x, y = layers[layer].meaning[sprite]
        found.append(Found(shape, COLOR_NAMES[color], center[0] + x, center[1] + y))
    return CellReading(tuple(found), 0.0)


def read_cells(difference: np.ndarray, world: World) -> tuple[list[Found], float]:
    """Reads all cells of a picture: its objects, and the covered pixels that are none.

    Args:
      difference: float32[size, size, 3], colours minus the background.
      world: that it belongs to.
    """
    side, objects, stray = world.sprite, list[Found](), 0.0
    for y, x in itertools.product(world.centers, world.centers):
        top, left = int(y - side / 2), int(x - side / 2)
        reading = read_cell(difference[top : top + side, left : left + side], world, (x, y))
        objects += reading.objects
        stray += reading.stray
    return objects, stray
