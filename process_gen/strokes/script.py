"""Decides in which order a scene is painted, and over which detours.

A script is a list of beats; each beat adds, changes, removes or swaps objects. Detours never make
the canvas contradict the prompt: what the prompt does not ask for is painted "as a placeholder".
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from process_gen.strokes import phrases
from process_gen.strokes.layout import (
    Wanted,
    at,
    draw_object,
    draw_objects,
    prompt_order,
    recolored,
)
from process_gen.strokes.prompts import pick
from process_gen.strokes.scene import COLOR_NAMES, EASY, SceneObject, World, fits

Canvas = dict[int, tuple[SceneObject, bool]]  # object by number, and whether it is a placeholder


@dataclasses.dataclass(frozen=True, slots=True)
class Beat:
    """One step as it should go.

    Attributes:
      op: "add", "change", "remove" or "swap".
      ids: numbers of the objects it is about.
      instruction: in words.
      before, after: the canvas, in painting order.
    """

    op: str
    ids: tuple[int, ...]
    instruction: str
    before: Canvas
    after: Canvas


@dataclasses.dataclass(frozen=True, slots=True)
class Story:
    """A whole painting without faults.

    Attributes:
      groups: what the prompt asks for.
      group_of: group of every object's number; absent for objects that nobody asked for.
      beats: the steps.
      world: where it is set.
    """

    groups: list[Wanted]
    group_of: dict[int, int]
    beats: list[Beat]
    world: World = EASY

    def remaining(self, canvas: Canvas) -> list[int]:
        """How many objects of every group are not on the canvas yet; placeholders do not count."""
        left = [group.count for group in self.groups]
        for number, (_, placeholder) in canvas.items():
            if not placeholder:
                left[self.group_of[number]] -= 1
        return left

    def asks_for(self, color: str, shape: str) -> bool:
        """Whether an object of this kind could be one that the prompt asks for."""
        return any(group.matches(color, shape) for group in self.groups)


@dataclasses.dataclass
class _Draft:
    """A script while it is being varied: `start` is how objects are first painted."""

    script: list[tuple[str, list[int]]]
    final: dict[int, SceneObject]
    start: dict[int, SceneObject]
    placeholders: set[int]


def shuffled(rng: np.random.Generator, items: Sequence) -> list:
    """A random order; much cheaper than `rng.permutation` for a few items."""
    left = list(items)
    return [left.pop(int(rng.random() * len(left))) for _ in range(len(left))]


def write(
    rng: np.random.Generator,
    groups: list[Wanted],
    *,
    diversify: float,
    split: float,
    shuffle: float,
    max_steps: int,
    world: World = EASY,
    same_color: float = 0.0,
) -> Story:
    """Draws a final scene and a way to paint it.

    Args:
      rng: random numbers.
      groups: what to paint.
      diversify: probability of a detour; prompts for a single object never get one.
      split: probability that a group of three or more is painted over two steps.
      shuffle: probability that the groups are not painted in the order of the prompt.
      max_steps: longest script; detours and splits that would exceed it are not taken.
      world: where the scene is.
      same_color: see `draw_objects`.
    """
    final: dict[int, SceneObject] = {}
    group_of: dict[int, int] = {}
    members: list[list[int]] = []
    for index, objects in enumerate(draw_objects(rng, groups, world, same_color)):
        numbers = list(range(len(final), len(final) + len(objects)))
        members.append(numbers)
        final.update(zip(numbers, objects, strict=True))
        group_of.update(dict.fromkeys(numbers, index))
    order = prompt_order(groups)
    if len(order) > 1 and rng.random() < shuffle:
        order = shuffled(rng, order)
    script: list[tuple[str, list[int]]] = []
    spare = max_steps - len(order)
    for index in order:
        numbers = members[index]
        if len(numbers) >= 3 and spare > 0 and rng.random() < split:
            cut = 1 + int(rng.random() * (len(numbers) - 1))
            script += [("add", numbers[:cut]), ("add", numbers[cut:])]
            spare -= 1
        else:
            script.append(("add", numbers))
    story = Story(groups, group_of, [], world)
    draft = _Draft(script, final, dict(final), set())
    if len(final) > 1 and rng.random() < diversify:
        for detour in shuffled(rng, (_remove, _replace, _recolor, _swap)):
            varied = detour(rng, story, draft)
            if varied is not None and len(varied.script) <= max_steps:
                beats = _replay(varied)
                if all(_consistent(story, beat.after) for beat in beats):
                    return Story(groups, group_of, beats, world)
    return Story(groups, group_of, _replay(draft), world)


def _replay(draft: _Draft) -> list[Beat]:
    beats = []
    canvas: Canvas = {}
    for op, numbers in draft.script:
        before = dict(canvas)
        objects = [before[n][0] for n in numbers if n in before]
        if op == "add":
            for n in numbers:
                canvas[n] = (draft.start[n], n in draft.placeholders)
            instruction = phrases.add(
                [draft.start[n] for n in numbers], numbers[0] in draft.placeholders
            )
        elif op == "change":
            kind = draft.final[numbers[0]].color, draft.final[numbers[0]].shape
            instruction = phrases.change(objects, kind)
            for n, item in zip(numbers, objects, strict=True):
                canvas[n] = (recolored(item, *kind), False)
        elif op == "remove":
            instruction = phrases.remove(objects[0])
            del canvas[numbers[0]]
        else:
            (a, b), (first, second) = numbers, objects
            instruction = phrases.swap(first, second)
            canvas[a] = (at(first, second.cell), before[a][1])
            canvas[b] = (at(second, first.cell), before[b][1])
        beats.append(Beat(op, tuple(numbers), instruction, before, dict(canvas)))
    return beats


def _consistent(story: Story, canvas: Canvas) -> bool:
    """Whether no two painted groups stand in the wrong relation, and all can be told apart."""
    if story.world.layered and not fits(item for item, _ in canvas.values()):
        return False
    cells: list[list[int]] = [[] for _ in story.groups]
    for number, (item, placeholder) in canvas.items():
        if not placeholder:
            cells[story.group_of[number]].append(item.cell)
    return all(
        story.world.cells_related(a, group.relation, b)
        for own, group in zip(cells, story.groups, strict=True)
        if group.relation is not None and group.target is not None
        for a in own
        for b in cells[group.target]
    )


# ---- detours: each takes the straight script and gives a longer one, or None where it cannot -----


def _foreign_kind(rng: np.random.Generator, story: Story) -> tuple[str, str]:
    """A colour and shape that cannot be mistaken for something the prompt asks for."""
    while True:
        color, shape = pick(rng, COLOR_NAMES), pick(rng, story.world.shapes)
        if not story.asks_for(color, shape):
            return color, shape


def _remove(rng: np.random.Generator, story: Story, draft: _Draft) -> _Draft | None:
    """Paints something nobody asked for, and takes it away later."""
    used = {item.cell for item in draft.final.values()}
    free = [cell for cell in range(story.world.num_cells) if cell not in used]
    color, shape = _foreign_kind(rng, story)
    number = len(draft.final)
    extra = draw_object(rng, shape, color, pick(rng, free), story.world)
    script = list(draft.script)
    first = int(rng.random() * len(script))
    script.insert(first, ("add", [number]))
    script.insert(pick(rng, range(first + 2, len(script) + 1)), ("remove", [number]))
    return _Draft(script, draft.final, {**draft.start, number: extra}, {number})


def _single_adds(draft: _Draft) -> list[int]:
    return [i for i, (_, numbers) in enumerate(draft.script) if len(numbers) == 1]


def _replace(rng: np.random.Generator, story: Story, draft: _Draft) -> _Draft | None:
    """Paints a placeholder, and changes it into something asked for later."""
    singles = _single_adds(draft)
    if not singles:
        return None
    i = pick(rng, singles)
    number = draft.script[i][1][0]
    script = list(draft.script)
    script[i] = ("change", [number])
    script.insert(pick(rng, range(i + 1)), ("add", [number]))
    item = recolored(draft.final[number], *_foreign_kind(rng, story))
    return _Draft(script, draft.final, {**draft.start, number: item}, {number})


def _recolor(rng: np.random.Generator, story: Story, draft: _Draft) -> _Draft | None:
    """Paints a group whose colour is free in one colour, and changes its mind."""
    last = len(draft.script) - 1
    able = [
        i
        for i, (_, numbers) in enumerate(draft.script[:last])
        if (group := story.groups[story.group_of[numbers[0]]]).color is None
        and len(numbers) == group.count
    ]
    if not able:
        return None
    i = pick(rng, able)
    numbers = draft.script[i][1]
    color = pick(rng, [c for c in COLOR_NAMES if c != draft.final[numbers[0]].color])
    script = list(draft.script)
    script.insert(pick(rng, range(i + 1, last + 1)), ("change", numbers))
    first = {n: recolored(draft.final[n], color) for n in numbers}
    return _Draft(script, draft.final, {**draft.start, **first}, set())


def _swap(rng: np.random.Generator, story: Story, draft: _Draft) -> _Draft | None:
    """Paints two objects in each other's places and swaps them before the picture is complete."""
    singles = _single_adds(draft)
    if len(singles) < 2:
        return None
    early, late = sorted(shuffled(rng, singles)[:2])
    a, b = draft.script[early][1][0], draft.script[late][1][0]
    if draft.final[a].cell == draft.final[b].cell:
        return None
    start = dict(draft.start)
    start[a], start[b] = (
        at(draft.final[a], draft.final[b].cell),
        at(draft.final[b], draft.final[a].cell),
    )
    script = list(draft.script)
    if late < len(script) - 1:  # something is left to paint afterwards: both are what is asked for
        script.insert(pick(rng, range(late + 1, len(script))), ("swap", [a, b]))
        return _Draft(script, draft.final, start, set())
    start[b] = recolored(start[b], *_foreign_kind(rng, story))
    script[late] = ("change", [b])
    script.insert(pick(rng, range(late + 1)), ("add", [b]))
    painted = max(script.index(("add", [n])) for n in (a, b))
    script.insert(pick(rng, range(painted + 1, len(script))), ("swap", [a, b]))
    return _Draft(script, draft.final, start, {b})
