"""Reads a picture back into objects, without a neural network, and judges it.

Every pixel is projected onto the lines from the background to the seven colours, which gives its
strength (1 inside a shape, a fraction on its edge). Connected strong pixels are a candidate; it is
an object when its colour lies near one of those lines and its strengths correlate with the coverage
of one of the shapes. What cannot be read this way is *stray*: it is no object, but the picture is
not `exact` either. Pictures of a layered world are read by `layers` instead.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from process_gen.core.errors import DataError
from process_gen.strokes.layers import read_cells
from process_gen.strokes.layout import Wanted, wanted
from process_gen.strokes.render import coverage
from process_gen.strokes.scene import (
    BACKGROUND,
    COLOR_NAMES,
    COLORS,
    EASY,
    SHAPES,
    SIZE,
    Scene,
    World,
    related,
)

STRONG = 0.45  # a pixel belongs to a shape from this strength on
MIN_MASS = 5.0  # fewer covered pixels than this are dirt
MIN_PIXELS = 12  # fewer strong pixels are no shape; the smallest one has 18
MAX_NOISE = 150.0  # with more strong area than this left unread, a picture shows nothing at all
MIN_MATCH = 0.90  # cosine between strengths and the best template
MAX_OFF_COLOR = 0.30  # mean distance from the colour's line, in lengths of that line
MAX_EXTENT = 11  # pixels; no single shape is wider

_WINDOW = 13
_HALF = _WINDOW // 2
_PAD = _HALF + 2
_WIDE = SIZE + 2 * _PAD
_DIRECTIONS = np.array([COLORS[name] for name in COLOR_NAMES], np.float32) - np.array(
    BACKGROUND, np.float32
)
_LENGTHS2 = (_DIRECTIONS**2).sum(1)
# A Gaussian of 0.8 px, as a matrix: what a soft painter does to an edge.
_BLUR = np.exp(-(np.subtract.outer(np.arange(_WINDOW), np.arange(_WINDOW)) ** 2) / (2 * 0.8**2))
_BLUR = (_BLUR / _BLUR.sum(1, keepdims=True)).astype(np.float32)
_CELL_OF_PIXEL = np.minimum(np.maximum(np.arange(SIZE) - 1, 0) // 10, 2)
_CELLS = 3 * _CELL_OF_PIXEL[:, None] + _CELL_OF_PIXEL[None, :]


@dataclasses.dataclass(frozen=True, slots=True)
class SeenObject:
    """An object found in a picture: class, colour, and centre in pixels."""

    shape: str
    color: str
    x: float
    y: float
    world: World = dataclasses.field(default=EASY, compare=False, repr=False)

    @property
    def cell(self) -> int:
        """Number of the nearest cell."""
        centers = self.world.centers
        near = range(len(centers))
        row, col = (min(near, key=lambda i: abs(centers[i] - v)) for v in (self.y, self.x))
        return len(centers) * row + col

    @property
    def place(self) -> str:
        """The nearest cell in words."""
        return self.world.places[self.cell]


@dataclasses.dataclass(frozen=True, slots=True)
class Reading:
    """What a picture shows.

    Attributes:
      objects: in reading order of their cells.
      stray: covered pixels (area, edges counted in part) that are no readable object.
    """

    objects: tuple[SeenObject, ...]
    stray: float

    @property
    def placed(self) -> tuple[tuple[str, str, str], ...]:
        """(colour, shape, place) of the objects, sorted, as `phrases` reads them from texts."""
        return tuple(sorted((o.color, o.shape, o.place) for o in self.objects))


@dataclasses.dataclass(frozen=True, slots=True)
class Verdict:
    """`geneval`: what is asked for is there. `exact`: that, and nothing else."""

    geneval: bool
    exact: bool
    reading: Reading


@functools.cache
def _templates() -> tuple[np.ndarray, list[tuple[str, float, float]]]:
    """Unit vectors float32[n, 169], and (shape, x, y of its centre from the window's middle)."""
    # A triangle's centre of mass lies below the point that its cell places.
    drop = {"triangle": -0.9 + 2 / 3 * 1.7}
    rows, meanings = [], []
    steps = np.arange(-3, 4) / 4
    for shape, radius in itertools.product(SHAPES, (3.3, 3.7, 4.1, 4.5)):
        for x, y in itertools.product(steps, steps):
            y = float(y - drop.get(shape, 0.0) * radius)
            # Not through the cache, which belongs to the renderer.
            sprite = coverage.__wrapped__(shape, radius, float(x), y, _WINDOW, 6)
            sprite = sprite.reshape(_WINDOW, _WINDOW)
            for picture in (sprite, _BLUR @ sprite @ _BLUR.T):
                rows.append(picture.ravel() / np.linalg.norm(picture))
                meanings.append((shape, float(x), y))
    return np.stack(rows), meanings


def _components(keys: np.ndarray) -> list[np.ndarray]:
    """Flat indices of the 4-connected runs of equal non-zero `keys` (int[32, 32])."""
    width = SIZE + 1  # one empty column separates the end of a row from the start of the next
    flat = np.zeros((SIZE + 2) * width, np.int64)
    flat[width : width * (SIZE + 1)].reshape(SIZE, width)[:, :SIZE] = keys
    left = flat.tolist()
    found = []
    for start in np.flatnonzero(flat).tolist():
        key = left[start]
        if not key:
            continue
        left[start] = 0
        run = [start]
        for here in run:
            for there in (here + 1, here - 1, here + width, here - width):
                if left[there] == key:
                    left[there] = 0
                    run.append(there)
        cells = np.array(run)
        found.append((cells // width - 1) * SIZE + cells % width)
    return found


def _unmix(difference: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Nearest colour and strength in [0, 1.15] of colours float32[n, 3] minus the background."""
    along = difference @ _DIRECTIONS.T
    strength = np.clip(along / _LENGTHS2, 0.0, 1.15)
    # Squared distance from the colour's line, up to the colour's own |difference|^2.
    distance = strength * (strength * _LENGTHS2 - 2 * along)
    color = distance.argmin(1)
    return color, strength[np.arange(len(color)), color]


@dataclasses.dataclass
class _Picture:
    difference: np.ndarray  # float32[1024, 3]
    color: np.ndarray  # int[1024]
    strength: np.ndarray  # float32[1024]


def _fit(picture: _Picture, pixels: np.ndarray) -> SeenObject | None:
    """Reads one candidate, or None."""
    if len(pixels) < MIN_PIXELS:
        return None
    rows, cols = np.divmod(pixels, SIZE)
    if np.ptp(rows) >= MAX_EXTENT or np.ptp(cols) >= MAX_EXTENT:
        return None
    strength = picture.strength[pixels]
    inner = pixels[strength >= np.median(strength)]
    color = _color_of(picture.difference[inner].mean(0))
    line = _DIRECTIONS[color]
    along = np.clip(picture.difference @ line / _LENGTHS2[color], 0.0, 1.15)
    off = picture.difference[inner] - along[inner, None] * line
    if np.sqrt((off * off).sum(1)).mean() > MAX_OFF_COLOR * np.sqrt(_LENGTHS2[color]):
        return None
    # The soft edge belongs to the shape: strengths of the candidate and of the pixels around it,
    # as far as they are not strong themselves, that is, part of something else.
    own = np.zeros((_WIDE, _WIDE), bool)
    own[rows + _PAD, cols + _PAD] = True
    near = own.copy()
    near[1:] |= own[:-1]
    near[:-1] |= own[1:]
    side = near.copy()
    near[:, 1:] |= side[:, :-1]
    near[:, :-1] |= side[:, 1:]
    soft = np.zeros((_WIDE, _WIDE), np.float32)
    soft[_PAD:-_PAD, _PAD:-_PAD] = np.where(picture.strength < STRONG, along, 0.0).reshape(
        SIZE, SIZE
    )
    soft = np.where(near, soft, 0.0)
    soft[rows + _PAD, cols + _PAD] = along[pixels]
    weight = along[pixels]
    row = int(round(float((rows * weight).sum() / weight.sum()))) if weight.sum() > 0 else 0
    col = int(round(float((cols * weight).sum() / weight.sum()))) if weight.sum() > 0 else 0
    top, left = row + _PAD - _HALF, col + _PAD - _HALF
    window = soft[top : top + _WINDOW, left : left + _WINDOW].ravel()
    rows_of, meanings = _templates()
    match = rows_of @ window
    best = int(match.argmax())
    if match[best] < MIN_MATCH * np.sqrt((soft * soft).sum()):
        return None
    shape, x, y = meanings[best]
    return SeenObject(shape, COLOR_NAMES[color], col + 0.5 + x, row + 0.5 + y)


def _color_of(difference: np.ndarray) -> int:
    """The colour that a shape's inside shows, which may be a little faint or too strong."""
    along = np.clip(_DIRECTIONS @ difference / _LENGTHS2, 0.6, 1.15)
    return int(((difference - along[:, None] * _DIRECTIONS) ** 2).sum(1).argmin())


def read(image: np.ndarray, world: World = EASY) -> Reading:
    """Finds the objects of a picture.

    Args:
      image: ``uint8[size, size, 3]``.
      world: that it belongs to.

    Raises:
      DataError: any other shape or type.
    """
    size = world.size
    if image.shape != (size, size, 3) or image.dtype != np.uint8:
        raise DataError(
            f"the oracle reads uint8[{size}, {size}, 3], got {image.dtype}{list(image.shape)}"
        )
    difference = image.reshape(-1, 3).astype(np.float32) - np.array(BACKGROUND, np.float32)
    if world.layered:
        return _read_layers(difference.reshape(size, size, 3), world)
    picture = _Picture(difference, *_unmix(difference))
    strong = (picture.strength >= STRONG).reshape(SIZE, SIZE)
    objects, stray, unread = [], 0.0, 0.0
    for pixels in _components(strong.astype(np.int64)):
        left = float(picture.strength[pixels].sum())
        found = _fit(picture, pixels)
        if found is not None:
            objects.append(found)
            continue
        # Perhaps several shapes touch: neighbours part at the border of their cells, and shapes
        # that are off the grid by their colours.
        keys = np.zeros(SIZE * SIZE, np.int64)
        keys[pixels] = 1 + 9 * picture.color[pixels] + _CELLS.ravel()[pixels]
        for part in _components(keys.reshape(SIZE, SIZE)) if len(pixels) > MIN_PIXELS else ():
            found = _fit(picture, part)
            if found is not None:
                objects.append(found)
                left -= float(picture.strength[part].sum())
        unread += left
        stray += left if left >= MIN_MASS else 0.0
    # In much noise something will look like a shape by chance.
    if unread > MAX_NOISE:
        return Reading((), stray)
    objects.sort(key=lambda o: (o.cell, o.y, o.x))
    return Reading(tuple(objects), stray)


def _read_layers(difference: np.ndarray, world: World) -> Reading:
    found, stray = read_cells(difference, world)
    if stray > MAX_NOISE:
        return Reading((), stray)
    objects = [SeenObject(*item, world) for item in found]
    objects.sort(key=lambda o: (o.cell, o.y, o.x))
    return Reading(tuple(objects), stray)


# ---- verdicts ------------------------------------------------------------------------------------


def _assign(
    objects: Sequence[SeenObject], groups: list[Wanted], order: list[int], chosen: dict[int, tuple]
) -> bool:
    """Whether the groups from `order` on find distinct objects that satisfy every relation."""
    if not order:
        return all(
            related((a.x, a.y), group.relation, (b.x, b.y))
            for index, group in enumerate(groups)
            if group.relation is not None and group.target is not None
            for a in (objects[i] for i in chosen[index])
            for b in (objects[i] for i in chosen[group.target])
        )
    index, group = order[0], groups[order[0]]
    used = {i for own in chosen.values() for i in own}
    able = [i for i, o in enumerate(objects) if i not in used and group.matches(o.color, o.shape)]
    return any(
        _assign(objects, groups, order[1:], {**chosen, index: own})
        for own in itertools.combinations(able, group.count)
    )


def satisfies(objects: Sequence[SeenObject], requirement: Mapping[str, Any]) -> bool:
    """Whether everything that is asked for is among the objects, and nothing that is excluded."""
    for item in requirement.get("exclude", ()):
        kind = Wanted(item.get("count", 1), item.get("color"), item["class"])
        if sum(kind.matches(o.color, o.shape) for o in objects) >= kind.count:
            return False
    groups = wanted(requirement)
    return _assign(objects, groups, list(range(len(groups))), {})


def satisfies_exactly(objects: Sequence[SeenObject], requirement: Mapping[str, Any]) -> bool:
    """Whether the objects are what is asked for, and nothing else."""
    total = sum(group.count for group in wanted(requirement))
    return len(objects) == total and satisfies(objects, requirement)


def judge(image: np.ndarray, requirement: Mapping[str, Any], world: World = EASY) -> Verdict:
    """Both verdicts on a picture of a world for a requirement in GenEval's schema."""
    reading = read(image, world)
    good = satisfies(reading.objects, requirement)
    exactly = good and not reading.stray and satisfies_exactly(reading.objects, requirement)
    return Verdict(good, exactly, reading)


def geneval(image: np.ndarray, requirement: Mapping[str, Any]) -> bool:
    """Whether what is asked for is in the picture."""
    return judge(image, requirement).geneval


def exact(image: np.ndarray, requirement: Mapping[str, Any]) -> bool:
    """Whether what is asked for is in the picture, and nothing else. The headline."""
    return judge(image, requirement).exact


def truth(scene: Scene) -> tuple[SeenObject, ...]:
    """What a perfect reader would find in the picture of a scene, in reading order."""
    objects = [SeenObject(o.shape, o.color, *o.center, scene.world) for o in scene.objects]
    return tuple(sorted(objects, key=lambda o: (o.cell, o.y, o.x)))
