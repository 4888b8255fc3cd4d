"""What can be on a canvas, and where: cells, kinds of shapes, colours (docs/strokes.md).

A `World` says how large the canvas is, what can be on it, and what is asked for. `EASY` is the
world of all scores, with four shapes in nine cells; `HARD` has sixteen kinds in sixteen cells, some
of which lie in front of others. Coordinates are pixels, x to the right and y down, and pixel i
covers [i, i + 1).
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

from process_gen.core.errors import ConfigError

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

# A relation holds when the centres differ by more than this many pixels in its direction, and one
# thing lies in front of another when they differ by less than this in both.
RELATION_MARGIN = 4.0
_DIRECTIONS = {
    "left of": (-1, 0),
    "right of": (1, 0),
    "above": (0, -1),
    "below": (0, 1),
}
RELATIONS = tuple(_DIRECTIONS)
DEPTHS = ("in front of", "behind")
INVERSE = {
    "left of": "right of",
    "right of": "left of",
    "above": "below",
    "below": "above",
    "in front of": "behind",
    "behind": "in front of",
}

Counts = tuple[int, ...]  # objects of each group of a prompt


@dataclasses.dataclass(frozen=True)
class Kind:
    """What prompts call a shape.

    Attributes:
      name: in words.
      outline: of `render.inside`.
      radii: in pixels, those that are drawn; the shortest first.
      layer: a thing lies in front of one of a lower layer. Only things of different layers may
        share a cell.
    """

    name: str
    outline: str
    radii: tuple[float, ...]
    layer: int = 0


@dataclasses.dataclass(frozen=True, eq=False)
class World:
    """Settings of the canvas and of the prompts. There is one object of each, compared as such.

    Attributes:
      name: what configs call it.
      size: side of the canvas in pixels.
      centers: of the cells' columns, and of the rows.
      rows, columns: their names.
      kinds: of shapes.
      jitters: distances of an object's centre from its cell's, in x and in y.
      relations: between two groups.
      counting: objects of a `counting` prompt.
      groups: groups of a `complex` prompt; one of the pools is taken, then one of its entries.
      sprite: side in pixels of the patch that an object is painted into.
    """

    name: str
    size: int
    centers: tuple[float, ...]
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    kinds: tuple[Kind, ...]
    jitters: tuple[float, ...]
    relations: tuple[str, ...]
    counting: tuple[int, ...]
    groups: tuple[tuple[Counts, ...], ...]
    sprite: int

    def __reduce__(self) -> Any:
        """Another process has the object of the same name."""
        return world_named, (self.name,)

    @property
    def side(self) -> int:
        """Cells a side."""
        return len(self.centers)

    @property
    def num_cells(self) -> int:
        """Cells of the canvas."""
        return len(self.centers) ** 2

    @functools.cached_property
    def places(self) -> tuple[str, ...]:
        """The cells in words, in reading order."""
        return tuple(f"{row} {column}" for row in self.rows for column in self.columns)

    @functools.cached_property
    def kind(self) -> dict[str, Kind]:
        """Kinds by name."""
        return {kind.name: kind for kind in self.kinds}

    @functools.cached_property
    def shapes(self) -> tuple[str, ...]:
        """Names of the kinds."""
        return tuple(kind.name for kind in self.kinds)

    @functools.cached_property
    def numbers(self) -> tuple[int, ...]:
        """Counts that a group of a prompt may have, besides one."""
        counts = {n for pool in self.groups for entry in pool for n in entry}
        return tuple(sorted((counts | set(self.counting)) - {1}))

    @property
    def layered(self) -> bool:
        """Whether things may share a cell."""
        return any(kind.layer for kind in self.kinds)

    def cells_related(self, a: int, relation: str, b: int) -> bool:
        """`related` for cell numbers; jitter cannot change the answer."""
        if relation in DEPTHS:
            return a == b
        x, y = _DIRECTIONS[relation]
        side = len(self.centers)
        return x * (a % side - b % side) + y * (a // side - b // side) > 0


EASY = World(
    name="easy",
    size=32,
    centers=(6.0, 16.0, 26.0),
    rows=("top", "middle", "bottom"),
    columns=("left", "center", "right"),
    # Jitter and radius are drawn from grids, so that a small cache of sprites paints everything.
    kinds=tuple(
        Kind(name, name, (3.6, 3.7, 3.8, 3.9, 4.0, 4.1, 4.2))
        for name in ("circle", "square", "triangle", "star")
    ),
    jitters=(-0.6, -0.4, -0.2, 0.0, 0.2, 0.4, 0.6),
    relations=RELATIONS,
    counting=(2, 3, 4),
    # 3 to 5 objects in two groups or three, at most three in one.
    groups=(
        tuple((a, b) for a in (1, 2, 3) for b in (1, 2, 3) if 3 <= a + b <= 5),
        tuple((a, b, c) for a in (1, 2, 3) for b in (1, 2, 3) for c in (1, 2, 3) if a + b + c <= 5),
    ),
    sprite=12,
)

_SIZES = (
    ("small", 1, (2.5, 2.55, 2.6, 2.65, 2.7, 2.75, 2.8)),
    ("large", 0, (4.3, 4.35, 4.4, 4.45, 4.5, 4.55, 4.6)),
)
OUTLINES = ("circle", "square", "triangle", "star", "diamond", "ring", "moon", "bar")
_UP_TO_3 = (1, 2, 3)

HARD = World(
    name="hard",
    size=48,
    centers=(7.5, 18.5, 29.5, 40.5),
    rows=("top", "upper", "lower", "bottom"),
    columns=("far left", "left", "right", "far right"),
    kinds=tuple(
        Kind(f"{size} {outline}", outline, radii, layer)
        for outline in OUTLINES
        for size, layer, radii in _SIZES
    ),
    jitters=(-0.45, -0.3, -0.15, 0.0, 0.15, 0.3, 0.45),
    relations=(*RELATIONS, *DEPTHS),
    counting=(4, 5, 6, 7),
    # 4 to 7 objects in two to four groups, at most three in one.
    groups=(
        tuple((a, b) for a in _UP_TO_3 for b in _UP_TO_3 if 4 <= a + b),
        tuple(
            (a, b, c) for a in _UP_TO_3 for b in _UP_TO_3 for c in _UP_TO_3 if 4 <= a + b + c <= 7
        ),
        tuple(
            (a, b, c, d)
            for a in _UP_TO_3
            for b in _UP_TO_3
            for c in _UP_TO_3
            for d in _UP_TO_3
            if a + b + c + d <= 7
        ),
    ),
    sprite=13,
)

WORLDS = {world.name: world for world in (EASY, HARD)}


def world_named(name: str) -> World:
    """The world of a name.

    Raises:
      ConfigError: there is none.
    """
    if name not in WORLDS:
        raise ConfigError(f"unknown world {name!r}; one of {', '.join(WORLDS)}")
    return WORLDS[name]


# The easy world's own, for what knows no other.
SIZE = EASY.size
SHAPES = EASY.shapes
PLACES = EASY.places
NUM_CELLS = EASY.num_cells
JITTERS = EASY.jitters
RADII = EASY.kinds[0].radii
cells_related = EASY.cells_related


@dataclasses.dataclass(frozen=True, slots=True)
class SceneObject:
    """One shape on the canvas.

    Attributes:
      shape: name of one of the world's kinds.
      color: one of `COLORS`.
      row, col: cell, from 0, from the top and from the left.
      dx, dy: the centre's distance from the cell's centre in pixels.
      radius: in pixels; see `render` for what it means for each shape.
      world: where it is.
    """

    shape: str
    color: str
    row: int
    col: int
    dx: float = 0.0
    dy: float = 0.0
    radius: float = 3.9
    world: World = dataclasses.field(default=EASY, compare=False, repr=False)

    @property
    def cell(self) -> int:
        """Number of the cell in reading order."""
        return len(self.world.centers) * self.row + self.col

    @property
    def place(self) -> str:
        """The cell in words."""
        return self.world.places[self.cell]

    @property
    def center(self) -> tuple[float, float]:
        """(x, y) in pixels."""
        centers = self.world.centers
        return centers[self.col] + self.dx, centers[self.row] + self.dy

    @property
    def layer(self) -> int:
        """What lies in front has the higher one."""
        return self.world.kind[self.shape].layer


@dataclasses.dataclass(frozen=True, slots=True)
class Scene:
    """Objects in painting order; where they touch, a later one of the same layer lies on top."""

    objects: tuple[SceneObject, ...] = ()
    world: World = dataclasses.field(default=EASY, compare=False, repr=False)


def fits(items: Any) -> bool:
    """Whether objects can be told apart: those that share a cell differ in layer and colour."""
    by_cell: dict[int, list[SceneObject]] = {}
    for item in items:
        by_cell.setdefault(item.cell, []).append(item)
    return all(
        len({i.layer for i in own}) == len({i.color for i in own}) == len(own)
        for own in by_cell.values()
    )


def related(a: tuple[float, float], relation: str, b: tuple[float, float]) -> bool:
    """Whether a thing centred at `a` (x, y) is `relation` ("left of") one centred at `b`.

    Which of two things at one place lies in front follows from their kinds, which prompts name.
    """
    if relation in DEPTHS:
        return max(abs(a[0] - b[0]), abs(a[1] - b[1])) < RELATION_MARGIN
    x, y = _DIRECTIONS[relation]
    return x * (a[0] - b[0]) + y * (a[1] - b[1]) > RELATION_MARGIN
