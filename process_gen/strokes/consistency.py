"""Whether what is planned can still become what the prompt asks for, decided from texts alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from process_gen.strokes.layout import Wanted, wanted
from process_gen.strokes.oracle import SeenObject
from process_gen.strokes.phrases import Placed
from process_gen.strokes.scene import EASY, SceneObject, World, fits, related


def as_seen(placed: Placed, world: World = EASY) -> SeenObject:
    """A planned object as a reader of the finished picture would report it."""
    color, shape, place = placed
    row, col = divmod(world.places.index(place), world.side)
    return SeenObject(shape, color, world.centers[col], world.centers[row], world)


def drawable(planned: Iterable[Placed], world: World = EASY) -> bool:
    """Whether a picture can show planned objects, placeholders among them (`scene.fits`)."""
    return fits(
        SceneObject(shape, color, *divmod(world.places.index(place), world.side), world=world)
        for color, shape, place in planned
    )


def extends_to(objects: Sequence[SeenObject], requirement: Mapping[str, Any]) -> bool:
    """Whether these objects contradict nothing that is asked for.

    That is, whether every object can be one that the prompt asks for, each for one only, with no
    relation violated between those that are there. Whether there is a cell left for every object
    that is still to come is not asked.

    Args:
      objects: without placeholders.
      requirement: in GenEval's schema.
    """
    return _assign(list(objects), wanted(requirement), [])


def _assign(objects: list[SeenObject], groups: list[Wanted], chosen: list[int]) -> bool:
    """Backtracking over groups for objects; `chosen` has the groups of the first ones."""
    if len(chosen) == len(objects):
        return all(
            related((a.x, a.y), group.relation, (b.x, b.y))
            for index, group in enumerate(groups)
            if group.relation is not None
            for a, own in zip(objects, chosen, strict=True)
            for b, other in zip(objects, chosen, strict=True)
            if own == index and other == group.target
        )
    here = objects[len(chosen)]
    return any(
        group.matches(here.color, here.shape)
        and chosen.count(index) < group.count
        and _assign(objects, groups, [*chosen, index])
        for index, group in enumerate(groups)
    )
