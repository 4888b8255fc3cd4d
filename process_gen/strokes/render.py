"""Paints a scene: anti-aliased shapes on a dark 32 x 32 canvas (geometry: docs/strokes.md).

A sprite is a shape's coverage of its 12 x 12 pixel patch, estimated from 16 x 16 points a pixel
and cached. Sprites are laid over each other in painting order, in sRGB values, rounded once at the
end: `canvas += coverage * (color - canvas)`.
"""

from __future__ import annotations

import functools

import numpy as np

from process_gen.core.errors import DataError
from process_gen.strokes.scene import (
    BACKGROUND,
    COLORS,
    MAX_JITTER,
    MAX_RADIUS,
    SHAPES,
    SIZE,
    Scene,
)

PATCH = 12  # a cell and one pixel around it: the longest reach is 1.1 * 4.2 + 0.6 = 5.22 px
_SAMPLES = 16

_COLORS = {name: np.array(rgb, np.float32) for name, rgb in COLORS.items()}
_CANVAS = np.broadcast_to(np.array(BACKGROUND, np.float32), (SIZE, SIZE, 3))


def inside(shape: str, x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    """bool, whether points lie in a shape centred at (0, 0); `radius` in the unit of `x` and `y`.

    Circle of radius r; square of half-side 0.84 r; triangle with its apex up, from -0.9 r to
    +0.8 r, its base 2 r wide; five-pointed star, one point up, outer radius 1.1 r, inner 0.506 r.
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
    raise DataError(f"unknown shape {shape!r}; one of {', '.join(SHAPES)}")


@functools.lru_cache(maxsize=8192)
def coverage(
    shape: str, radius: float, dx: float, dy: float, size: int = PATCH, samples: int = _SAMPLES
) -> np.ndarray:
    """float32[size, size, 1] in [0, 1]: how much of each pixel a shape covers.

    Args:
      shape: one of `SHAPES`.
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


def render(scene: Scene) -> np.ndarray:
    """Paints a scene as ``uint8[32, 32, 3]``.

    Raises:
      DataError: an object of an unknown shape or colour, or one that does not fit its cell.
    """
    canvas = _CANVAS.copy()
    for item in scene.objects:
        fits = item.radius <= MAX_RADIUS and max(abs(item.dx), abs(item.dy)) <= MAX_JITTER
        if not fits or item.color not in _COLORS:
            raise DataError(f"cannot paint {item}: unknown colour, or too large for its cell")
        sprite = coverage(item.shape, item.radius, item.dx, item.dy)
        top, left = 10 * item.row, 10 * item.col
        patch = canvas[top : top + PATCH, left : left + PATCH]
        patch += sprite * (_COLORS[item.color] - patch)
    return (canvas + 0.5).astype(np.uint8)
