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
from process_gen.strokes.scene import COLOR_NAMES, DEPTHS, EASY, SceneObject, World

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
def _related_cells(
    relation: str, subjects: int, targets: int, world: World
) -> list[tuple[Cells, Cells]]:
    """Every way to put two groups into cells so that all of one are `relation` all of the other."""
    cells = range(world.num_cells)
    if relation in DEPTHS:
        return [((c,), (c,)) for c in cells] if subjects == targets == 1 else []
    ways = []
    for a in itertools.combinations(cells, subjects):
        able = [c for c in cells if all(world.cells_related(x, relation, c) for x in a)]
        ways += [(a, b) for b in itertools.combinations(able, targets)]
    return ways


def draw_cells(rng: np.random.Generator, groups: list[Wanted], world: World = EASY) -> list[Cells]:
    """Cells for every group, uniform among those that satisfy the requirement, each sorted.

    Raises:
      DataError: more than one relation, or more objects than fit.
    """
    cells: list[Cells] = [()] * len(groups)
    related = [i for i, group in enumerate(groups) if group.relation is not None]
    rest = [i for i in range(len(groups)) if i not in related]
    if len(related) > 1 or sum(group.count for group in groups) > world.num_cells:
        raise DataError(
            f"cannot lay out {groups}: at most one relation and {world.num_cells} objects"
        )
    free = list(range(world.num_cells))
    if related:
        group = groups[related[0]]
        target = int(group.target or 0)
        ways = _related_cells(str(group.relation), group.count, groups[target].count, world)
        if not ways:
            raise DataError(f"cannot lay out {groups}: no cells satisfy the relation")
        cells[related[0]], cells[target] = pick(rng, ways)
        free = [c for c in free if c not in cells[related[0]] and c not in cells[target]]
        rest.remove(target)
    for index in rest:
        drawn = [free.pop(int(rng.random() * len(free))) for _ in range(groups[index].count)]
        cells[index] = tuple(sorted(drawn))
    return cells


def draw_objects(
    rng: np.random.Generator,
    groups: list[Wanted],
    world: World = EASY,
    same_color: float = 0.0,
) -> list[list[SceneObject]]:
    """Objects for every group, in reading order; a group without a colour gets one at random.

    With probability `same_color` it is that of another group, where that can be.
    """
    cells = draw_cells(rng, groups, world)
    steps = len(world.jitters)
    numbers = iter((rng.random(3 * sum(map(len, cells))) * steps).astype(int).tolist())
    taken = {(group.color, group.shape) for group in groups}
    objects = []
    colors: dict[int, str] = {}  # by cell
    for group, own in zip(groups, cells, strict=True):
        color = group.color
        # What lies in front of something, or behind it, has another colour.
        beside = {colors.get(cell) for cell in own} | _asked_beside(groups, cells, own, group)
        if color is None and same_color and rng.random() < same_color:
            able = [c for c, _ in taken if c and (c, group.shape) not in taken and c not in beside]
            color = pick(rng, sorted(able)) if able else None
        while color is None:
            drawn = pick(rng, COLOR_NAMES)
            color = None if (drawn, group.shape) in taken or drawn in beside else drawn
        taken.add((color, group.shape))
        colors.update(dict.fromkeys(own, color))
        objects.append([place(group.shape, color, cell, numbers, world) for cell in own])
    return objects


def _asked_beside(
    groups: list[Wanted], cells: list[Cells], own: Cells, group: Wanted
) -> set[str | None]:
    """Colours that the prompt gives to other groups in the same cells."""
    return {
        other.color
        for other, theirs in zip(groups, cells, strict=True)
        if other is not group and other.color and set(theirs) & set(own)
    }


def place(shape: str, color: str, cell: int, numbers: Any, world: World = EASY) -> SceneObject:
    """An object in a cell; `numbers` yields indices into the grids of jitter and radius."""
    jitters, radii = world.jitters, world.kind[shape].radii
    dx, dy, radius = jitters[next(numbers)], jitters[next(numbers)], radii[next(numbers)]
    row, col = divmod(cell, world.side)
    return SceneObject(shape, color, row, col, dx, dy, radius, world)


def draw_object(
    rng: np.random.Generator, shape: str, color: str, cell: int, world: World = EASY
) -> SceneObject:
    """An object of a given kind in a given cell."""
    numbers = iter([int(rng.random() * len(world.jitters)) for _ in range(3)])
    return place(shape, color, cell, numbers, world)


def at(item: SceneObject, cell: int) -> SceneObject:
    """The same object in another cell; its jitter and size go with it."""
    row, col = divmod(cell, item.world.side)
    return SceneObject(item.shape, item.color, row, col, item.dx, item.dy, item.radius, item.world)


def recolored(item: SceneObject, color: str, shape: str | None = None) -> SceneObject:
    """The same object in another colour, and perhaps of another shape; its size goes with it."""
    shape = shape or item.shape
    kinds = item.world.kind
    radii, before = kinds[shape].radii, kinds[item.shape].radii
    radius = item.radius if radii == before else radii[before.index(item.radius)]
    return SceneObject(shape, color, item.row, item.col, item.dx, item.dy, radius, item.world)
