"""What can be on a canvas, and where: nine cells, four shapes, seven colours (docs/strokes.md).

Coordinates are pixels, x to the right and y down, and pixel i covers [i, i + 1).
"""

from __future__ import annotations

import dataclasses

SIZE = 32
CENTERS = (6.0, 16.0, 26.0)
MAX_JITTER = 0.6
MIN_RADIUS, MAX_RADIUS = 3.6, 4.2
# Jitter and radius are drawn from these grids, so that a small cache of sprites paints everything.
JITTERS = (-0.6, -0.4, -0.2, 0.0, 0.2, 0.4, 0.6)
RADII = (3.6, 3.7, 3.8, 3.9, 4.0, 4.1, 4.2)

SHAPES = ("circle", "square", "triangle", "star")
COLORS = {
    "red": (230, 38, 38),
    "green": (38, 191, 64),
    "blue": (51, 102, 242),
    "yellow": (242, 230, 51),
    "purple": (166, 51, 204),
    "orange": (255, 140, 26),
    "white": (242, 242, 242),
}
COLOR_NAMES = tuple(COLORS)
BACKGROUND = (26, 26, 31)

ROWS = ("top", "middle", "bottom")
COLUMNS = ("left", "center", "right")
PLACES = tuple(f"{row} {column}" for row in ROWS for column in COLUMNS)
NUM_CELLS = len(PLACES)

# A relation holds when the centres differ by more than this many pixels in its direction.
RELATION_MARGIN = 4.0
_DIRECTIONS = {
    "left of": (-1, 0),
    "right of": (1, 0),
    "above": (0, -1),
    "below": (0, 1),
}
RELATIONS = tuple(_DIRECTIONS)
INVERSE = {
    "left of": "right of",
    "right of": "left of",
    "above": "below",
    "below": "above",
}


@dataclasses.dataclass(frozen=True, slots=True)
class SceneObject:
    """One shape on the canvas.

    Attributes:
      shape: one of `SHAPES`.
      color: one of `COLORS`.
      row, col: cell, 0 to 2 from the top and from the left.
      dx, dy: the centre's distance from the cell's centre in pixels, at most `MAX_JITTER`.
      radius: in pixels; see `render` for what it means for each shape.
    """

    shape: str
    color: str
    row: int
    col: int
    dx: float = 0.0
    dy: float = 0.0
    radius: float = 3.9

    @property
    def cell(self) -> int:
        """Number of the cell in reading order, 0 to 8."""
        return 3 * self.row + self.col

    @property
    def place(self) -> str:
        """The cell in words, "top left" to "bottom right"."""
        return PLACES[3 * self.row + self.col]

    @property
    def center(self) -> tuple[float, float]:
        """(x, y) in pixels."""
        return CENTERS[self.col] + self.dx, CENTERS[self.row] + self.dy


@dataclasses.dataclass(frozen=True, slots=True)
class Scene:
    """Objects in painting order; where they touch, a later one lies on top."""

    objects: tuple[SceneObject, ...] = ()


def related(a: tuple[float, float], relation: str, b: tuple[float, float]) -> bool:
    """Whether a thing centred at `a` (x, y) is `relation` ("left of") one centred at `b`."""
    x, y = _DIRECTIONS[relation]
    return x * (a[0] - b[0]) + y * (a[1] - b[1]) > RELATION_MARGIN


def cells_related(a: int, relation: str, b: int) -> bool:
    """`related` for cell numbers; jitter cannot change the answer."""
    x, y = _DIRECTIONS[relation]
    return x * (a % 3 - b % 3) + y * (a // 3 - b // 3) > 0
