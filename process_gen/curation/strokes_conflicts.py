"""Whether a plan of the Strokes world contradicts its prompt, and how it should have been.

Decided from texts: the prompt, what was planned before, and the plan. What is wrong is said in the
words of `strokes.faults`; a plan that is wrong in a way which they cannot say is a `Failed`.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from process_gen.core.trajectory import plan_text
from process_gen.curation.protocols import Failed, Operation
from process_gen.strokes import faults, phrases, scene
from process_gen.strokes.layout import Wanted, at, recolored
from process_gen.strokes.prompts import phrase, pick
from process_gen.strokes.scene import NUM_CELLS, PLACES, SceneObject, cells_related
from process_gen.strokes.script import Canvas, Story

Entry = tuple[SceneObject, bool]  # an object, and whether it is a placeholder


def read_state(description: str) -> list[Entry] | None:
    """What a `<des>` text says is in the picture, in its order; None when it cannot be read.

    Objects lie in the middle of their cells, for texts say no more.
    """
    if not description:
        return []
    state: list[Entry] = []
    for part in description.split(", "):
        found = phrases.parse_state(part)
        if found is None:
            return None
        for (color, shape, place), holds in found:
            row, col = divmod(PLACES.index(place), 3)
            state.append((SceneObject(shape, color, row, col), holds))
    return state if scene.fits(item for item, _ in state) else None


@dataclasses.dataclass(frozen=True)
class Change:
    """A step as the difference between two states.

    Attributes:
      gone, new: entries of one state that the other does not have.
      operation: what kind of step it is; None when no one instruction says it.
      texts: the instructions that say so.
    """

    gone: tuple[Entry, ...]
    new: tuple[Entry, ...]
    operation: Operation | None
    texts: tuple[str, ...]


def change_between(before: Sequence[Entry], after: Sequence[Entry]) -> Change:
    """What a step does."""
    gone = tuple(entry for entry in before if entry not in after)
    new = tuple(entry for entry in after if entry not in before)
    return Change(gone, new, *_instruction(gone, new))


def _instruction(
    gone: Sequence[Entry], new: Sequence[Entry]
) -> tuple[Operation | None, tuple[str, ...]]:
    old, fresh = [item for item, _ in gone], [item for item, _ in new]
    if not gone and new and _one_kind(fresh) and len({holds for _, holds in new}) == 1:
        return "add", (phrases.add(fresh, new[0][1]),)
    if len(gone) == 1 and not new:
        return "remove", (phrases.remove(old[0]),)
    if not gone or {item.cell for item in old} != {item.cell for item in fresh}:
        return None, ()
    if _one_kind(old) and _one_kind(fresh) and not any(holds for _, holds in new):
        return "modify", (phrases.change(old, (fresh[0].color, fresh[0].shape)),)
    if len(gone) == 2 and {(at(item, 0), holds) for item, holds in gone} == {
        (at(item, 0), holds) for item, holds in new
    }:
        return "swap", (phrases.swap(*old), phrases.swap(*reversed(old)))
    return None, ()


def _one_kind(items: Sequence[SceneObject]) -> bool:
    return len({(item.color, item.shape) for item in items}) == 1


@dataclasses.dataclass(frozen=True)
class Conflict:
    """A plan that contradicts the prompt.

    Attributes:
      kind: one of `strokes.faults.CONFLICTS`.
      why, command: what the inspection says.
      plan: the plan as it should have been.
    """

    kind: str
    why: str
    command: str
    plan: str


def find_conflict(
    groups: list[Wanted],
    before: Sequence[Entry],
    after: Sequence[Entry],
    change: Change,
    rng: np.random.Generator,
) -> Conflict | Failed | None:
    """Compares a step with what the prompt asks for.

    Args:
      groups: of the prompt.
      before, after: states around the step; `before` must not contradict the prompt.
      change: the difference between them.
      rng: chooses cells for objects that lie on the wrong side.

    Returns:
      None for a plan that can still become what the prompt asks for.
    """
    story, canvas = as_story(groups, before)
    if story is None:
        return Failed("an earlier plan contradicts the prompt")
    canvas = {number: entry for number, entry in canvas.items() if entry not in change.gone}
    for item, holds in change.new:
        if holds and _group_of(groups, item) is not None:
            return Failed("a placeholder of a kind that the prompt asks for", fault="conflict")
    new = [item for item, holds in change.new if not holds]
    if change.operation == "swap" or not new:
        return (
            None
            if _fits(groups, after)
            else Failed("a plan that moves a thing to a wrong side", fault="conflict")
        )
    found = _find(story, canvas, new, rng)
    if found is None or isinstance(found, Failed):
        return found
    kept = [entry for entry in after if entry not in change.new]
    state = [found.moved.get(entry, entry) for entry in kept]
    state += [(item, False) for item in found.right]
    if not _fits(groups, state):
        return Failed("two conflicts in one plan", fault="conflict")
    old = [item for item, _ in change.gone]
    kind = found.right[0].color, found.right[0].shape
    instruction = phrases.change(old, kind) if old else phrases.add(found.right)
    if found.moved:
        instruction = found.said[1]
    plan = plan_text(instruction, phrases.describe(state))
    return Conflict(found.kind, *found.said, plan)


def as_story(groups: list[Wanted], state: Sequence[Entry]) -> tuple[Story | None, Canvas]:
    """A state as `strokes.script` has it; no story where an object matches no group."""
    canvas = dict(enumerate(state))
    group_of = {}
    for number, (item, holds) in canvas.items():
        group = _group_of(groups, item)
        if not holds and group is None:
            return None, canvas
        if group is not None:
            group_of[number] = group
    story = Story(groups, group_of, [])
    return (story if min(story.remaining(canvas)) >= 0 else None), canvas


def _group_of(groups: list[Wanted], item: SceneObject) -> int | None:
    return next((i for i, g in enumerate(groups) if g.matches(item.color, item.shape)), None)


class _Found(NamedTuple):
    kind: str
    said: faults.Saying
    right: list[SceneObject]  # the step's objects as they should be
    moved: Mapping[Entry, Entry] = {}  # older objects that have to give way


def _find(
    story: Story, canvas: Canvas, new: list[SceneObject], rng: np.random.Generator
) -> _Found | Failed | None:
    left = story.remaining(canvas)
    own = _group_of(story.groups, new[0])
    if own is not None and len(new) <= left[own]:
        return _wrong_side(story, canvas, new, own, rng)
    if own is not None and len(new) == left[own] + 1 and len(new) > 1:
        group = story.groups[own]
        extra = max(new, key=lambda item: item.cell)
        said = faults.too_many(extra, group.count, group.color, group.shape)
        return _Found("count", said, [item for item in new if item is not extra])
    if own is not None and left[own]:
        return Failed("a plan with several objects too many", fault="conflict")
    return _wrong_kind(story, left, new)


def _wrong_kind(story: Story, left: list[int], new: list[SceneObject]) -> _Found | Failed:
    groups, first = story.groups, new[0]
    open_ = [i for i, count in enumerate(left) if count]
    by_shape = [i for i in open_ if groups[i].shape == first.shape]
    by_color = [i for i in open_ if groups[i].color in (None, first.color)]
    meant = by_shape if len(by_shape) == 1 else by_color if len(by_color) == 1 else open_
    if len(meant) != 1 or len(new) > left[meant[0]]:
        return Failed("a plan of which it is unclear what was meant", fault="conflict")
    group = groups[meant[0]]
    color = group.color or first.color
    right = [recolored(item, color, group.shape) for item in new]
    kind, why = "shape", phrase(len(new), group.color, group.shape)
    if group.shape == first.shape and group.color is not None:
        kind, why = "color", group.color
    return _Found(kind, faults.wrong_kind(new, color, group.shape, why), right)


def _wrong_side(
    story: Story, canvas: Canvas, new: list[SceneObject], own: int, rng: np.random.Generator
) -> _Found | Failed | None:
    for relation, index in faults.relations_of(story, own):
        fixed = faults.painted(story, canvas, index)

        def fits(cell: int, relation: str = relation, fixed: Sequence[int] = fixed) -> bool:
            return all(cells_related(cell, relation, other) for other in fixed)

        wrong = [item for item in new if not fits(item.cell)]
        if not wrong:
            continue
        rest = [item for item in new if fits(item.cell)]
        used = {item.cell for item, _ in canvas.values()} | {item.cell for item in new}
        free = [cell for cell in range(NUM_CELLS) if cell not in used and fits(cell)]
        kept = [*canvas.values(), *((item, False) for item in rest)]
        ways = [
            cells
            for cells in itertools.combinations(free, len(wrong))
            if _fits(
                story.groups,
                [*kept, *((at(i, c), False) for i, c in zip(wrong, cells, strict=True))],
            )
        ]
        if not ways:
            return _exchanged(story, canvas, new, relation, index)
        cells = pick(rng, ways)
        said = faults.wrong_side(wrong, cells, relation, story.groups[index])
        right = [at(item, cell) for item, cell in zip(wrong, cells, strict=True)]
        return _Found("relation", said, rest + right)
    return None


def _exchanged(
    story: Story, canvas: Canvas, new: list[SceneObject], relation: str, index: int
) -> _Found | Failed:
    """No cell lies on the right side: the two objects take each other's places."""
    fixed = [
        entry
        for number, entry in canvas.items()
        if story.group_of.get(number) == index and not entry[1]
    ]
    if len(new) != 1 or len(fixed) != 1:
        return Failed("a plan that cannot be put right", fault="conflict")
    (item,), ((other, _),) = new, fixed
    why, _ = faults.wrong_side(new, [], relation, story.groups[index])
    moved = {fixed[0]: (at(other, item.cell), False)}
    right = [at(item, other.cell)]
    return _Found("relation", (why, phrases.swap(item, other)), right, moved)


def _fits(groups: list[Wanted], state: Sequence[Entry]) -> bool:
    """Whether a state can still become what the prompt asks for; later steps may move things."""
    story, canvas = as_story(groups, state)
    if story is None:
        return False
    cells = [faults.painted(story, canvas, i) for i in range(len(groups))]
    return all(
        cells_related(a, group.relation, b)
        for i, group in enumerate(groups)
        if group.relation is not None and group.target is not None
        for a in cells[i]
        for b in cells[group.target]
    )
