"""Places what a requirement asks for on the canvas."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np

from process_gen.core.errors import DataError
from process_gen.strokes.prompts import pick
from process_gen.strokes.scene import (
    COLOR_NAMES,
    JITTERS,
    NUM_CELLS,
    RADII,
    SceneObject,
    cells_related,
)

Cells = tuple[int, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Wanted:
    """One include item: `count` objects of a shape (and colour), `relation` to item `target`."""

    count: int
    color: str | None
    shape: str
    relation: str | None = None
    target: int | None = None

    def matches(self, color: str, shape: str) -> bool:
        """Whether an object of this colour and shape could belong to the group."""
        return shape == self.shape and self.color in (None, color)


def wanted(requirement: Mapping[str, Any]) -> list[Wanted]:
    """The include items of a requirement in GenEval's schema."""
    return [
        Wanted(
            item.get("count", 1),
            item.get("color"),
            item["class"],
            *item.get("position", (None, None)),
        )
        for item in requirement["include"]
    ]


def prompt_order(groups: list[Wanted]) -> list[int]:
    """Indices of the groups in the order in which the prompt names them."""
    order = list(range(len(groups)))
    for index, group in enumerate(groups):
        if group.target is not None:
            order.remove(index)
            order.insert(order.index(group.target), index)
    return order


@functools.lru_cache(maxsize=64)
def _related_cells(relation: str, subjects: int, targets: int) -> list[tuple[Cells, Cells]]:
    """Every way to put two groups into cells so that all of one are `relation` all of the other."""
    return [
        (a, b)
        for a in itertools.combinations(range(NUM_CELLS), subjects)
        for b in itertools.combinations([c for c in range(NUM_CELLS) if c not in a], targets)
        if all(cells_related(x, relation, y) for x in a for y in b)
    ]


def draw_cells(rng: np.random.Generator, groups: list[Wanted]) -> list[Cells]:
    """Cells for every group, uniform among those that satisfy the requirement, each sorted.

    Raises:
      DataError: more than one relation, or more objects than fit.
    """
    cells: list[Cells] = [()] * len(groups)
    related = [i for i, group in enumerate(groups) if group.relation is not None]
    rest = [i for i in range(len(groups)) if i not in related]
    if len(related) > 1 or sum(group.count for group in groups) > NUM_CELLS:
        raise DataError(f"cannot lay out {groups}: at most one relation and {NUM_CELLS} objects")
    free = list(range(NUM_CELLS))
    if related:
        group = groups[related[0]]
        target = int(group.target or 0)
        ways = _related_cells(str(group.relation), group.count, groups[target].count)
        if not ways:
            raise DataError(f"cannot lay out {groups}: no cells satisfy the relation")
        cells[related[0]], cells[target] = pick(rng, ways)
        free = [c for c in free if c not in cells[related[0]] and c not in cells[target]]
        rest.remove(target)
    for index in rest:
        drawn = [free.pop(int(rng.random() * len(free))) for _ in range(groups[index].count)]
        cells[index] = tuple(sorted(drawn))
    return cells


def draw_objects(rng: np.random.Generator, groups: list[Wanted]) -> list[list[SceneObject]]:
    """Objects for every group, in reading order; a group without a colour gets one at random."""
    cells = draw_cells(rng, groups)
    numbers = iter((rng.random(3 * sum(map(len, cells))) * len(RADII)).astype(int).tolist())
    taken = {(group.color, group.shape) for group in groups}
    objects = []
    for group, own in zip(groups, cells, strict=True):
        color = group.color
        while color is None:
            drawn = pick(rng, COLOR_NAMES)
            color = None if (drawn, group.shape) in taken else drawn
        taken.add((color, group.shape))
        objects.append([place(group.shape, color, cell, numbers) for cell in own])
    return objects


def place(shape: str, color: str, cell: int, numbers: Any) -> SceneObject:
    """An object in a cell; `numbers` yields indices into the grids of jitter and radius."""
    dx, dy, radius = JITTERS[next(numbers)], JITTERS[next(numbers)], RADII[next(numbers)]
    return SceneObject(shape, color, cell // 3, cell % 3, dx, dy, radius)


def draw_object(rng: np.random.Generator, shape: str, color: str, cell: int) -> SceneObject:
    """An object of a given kind in a given cell."""
    return place(shape, color, cell, iter([int(rng.random() * len(RADII)) for _ in range(3)]))


def at(item: SceneObject, cell: int) -> SceneObject:
    """The same object in another cell; its jitter and size go with it."""
    row, col = divmod(cell, 3)
    return SceneObject(item.shape, item.color, row, col, item.dx, item.dy, item.radius)


def recolored(item: SceneObject, color: str, shape: str | None = None) -> SceneObject:
    """The same object in another colour, and perhaps of another shape."""
    shape = shape or item.shape
    return SceneObject(shape, color, item.row, item.col, item.dx, item.dy, item.radius)
