"""Paints a scene: anti-aliased shapes on a dark canvas (geometry: docs/strokes.md).

A sprite is a shape's coverage of its patch (12 x 12 pixels in the easy world), estimated from
16 x 16 points a pixel and cached. Sprites are laid over each other in painting order, in sRGB
values, rounded once at the end: `canvas += coverage * (color - canvas)`.
"""

from __future__ import annotations

import functools

import numpy as np

from process_gen.core.errors import DataError
from process_gen.strokes.scene import BACKGROUND, COLORS, EASY, OUTLINES, Scene, World

PATCH = (
    EASY.sprite
)  # a cell and one pixel around it: the longest reach is 1.1 * 4.2 + 0.6 = 5.22 px
_SAMPLES = 16

_COLORS = {name: np.array(rgb, np.float32) for name, rgb in COLORS.items()}
_BACKGROUND = np.array(BACKGROUND, np.float32)


def inside(shape: str, x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    """bool, whether points lie in a shape centred at (0, 0); `radius` in the unit of `x` and `y`.

    Circle of radius r; square of half-side 0.84 r; triangle with its apex up, from -0.9 r to
    +0.8 r, its base 2 r wide; five-pointed star, one point up, outer radius 1.1 r, inner 0.506 r;
    diamond with corners 1.1 r away; ring between 0.55 r and r; moon, the circle less one of radius
    0.85 r whose centre lies 0.55 r to the right; bar, 2.1 r wide and 0.9 r high.
    """
    if shape == "circle":
        return x * x + y * y <= radius * radius
    if shape == "square":
        return np.maximum(np.abs(x), np.abs(y)) <= 0.84 * radius
    if shape == "triangle":
        return (y <= 0.8 * radius) & (np.abs(x) * 1.7 <= y + 0.9 * radius)
    if shape == "star":
        # Mirrored into one of its ten equal wedges the star has a single edge, from its point on
        # the wedge's axis to the notch 36 degrees off it. The nearest of the five axes is the one
        # along which a point lies farthest out.
        angles = 2 * np.pi * np.arange(5) / 5
        along = functools.reduce(
            np.maximum, [np.sin(a) * x - np.cos(a) * y for a in angles.tolist()]
        )
        across = np.sqrt(np.maximum(x * x + y * y - along * along, 0.0))
        outer, inner = 1.1 * radius, 0.506 * radius
        notch_x, notch_y = inner * np.cos(np.pi / 5), inner * np.sin(np.pi / 5)
        return (notch_x - outer) * across - notch_y * (along - outer) >= 0
    if shape == "diamond":
        return np.abs(x) + np.abs(y) <= 1.1 * radius
    if shape == "ring":
        return (x * x + y * y <= radius * radius) & (x * x + y * y >= (0.55 * radius) ** 2)
    if shape == "moon":
        bite = (x - 0.55 * radius) ** 2 + y * y <= (0.85 * radius) ** 2
        return (x * x + y * y <= radius * radius) & ~bite
    if shape == "bar":
        return (np.abs(x) <= 1.05 * radius) & (np.abs(y) <= 0.45 * radius)
    raise DataError(f"unknown shape {shape!r}; one of {', '.join(OUTLINES)}")


@functools.lru_cache(maxsize=8192)
def coverage(
    shape: str, radius: float, dx: float, dy: float, size: int = PATCH, samples: int = _SAMPLES
) -> np.ndarray:
    """float32[size, size, 1] in [0, 1]: how much of each pixel a shape covers.

    Args:
      shape: one of `OUTLINES`.
      radius: in pixels.
      dx, dy: the shape's centre, measured from the middle of the patch, in pixels.
      size: side of the patch.
      samples: points a pixel along each axis.

    Returns:
      A cached, read-only array.
    """
    points = (np.arange(size * samples) + 0.5) / samples - size / 2
    hit = inside(shape, points[None, :] - dx, points[:, None] - dy, radius)
    share = hit.reshape(size, samples, size, samples).mean((1, 3), dtype=np.float32)[..., None]
    share.flags.writeable = False
    return share


@functools.cache
def _canvas(world: World) -> np.ndarray:
    return np.broadcast_to(_BACKGROUND, (world.size, world.size, 3))


def render(scene: Scene) -> np.ndarray:
    """Paints a scene as ``uint8[size, size, 3]``.

    Raises:
      DataError: an object of an unknown shape or colour, or one that does not fit its cell.
    """
    world = scene.world
    canvas = _canvas(world).copy()
    objects = sorted(scene.objects, key=lambda item: item.layer) if world.layered else scene.objects
    for item in objects:
        kind = world.kind.get(item.shape)
        fits = (
            kind is not None
            and item.radius <= kind.radii[-1]
            and max(abs(item.dx), abs(item.dy)) <= world.jitters[-1]
        )
        if kind is None or not fits or item.color not in _COLORS:
            raise DataError(
                f"cannot paint {item}: unknown shape or colour, or too large for its cell"
            )
        sprite = coverage(kind.outline, item.radius, item.dx, item.dy, world.sprite)
        top = int(world.centers[item.row] - world.sprite / 2)
        left = int(world.centers[item.col] - world.sprite / 2)
        patch = canvas[top : top + world.sprite, left : left + world.sprite]
        patch += sprite * (_COLORS[item.color] - patch)
    return (canvas + 0.5).astype(np.uint8)
