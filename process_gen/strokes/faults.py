"""Steps that go wrong: the plan contradicts the prompt, or the drawing differs from the plan.

Every fault can be decided from the prompt, the plan and the picture, and has one correction.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np

from process_gen.strokes import phrases
from process_gen.strokes.layout import Wanted, at, draw_object, recolored
from process_gen.strokes.prompts import phrase, pick
from process_gen.strokes.scene import COLOR_NAMES, INVERSE, SceneObject, World, fits
from process_gen.strokes.script import Beat, Canvas, Story, shuffled

_EXTRA = -1  # number of an object that is on the faulty canvas only


@dataclasses.dataclass(frozen=True, slots=True)
class Fault:
    """One faulty step.

    Attributes:
      step: its index.
      kind: see `CONFLICTS` and `MISALIGNMENTS`.
      instruction: the wrong instruction of a conflict; None for a misalignment.
      canvas: what is drawn instead.
      why: what the inspection says about it.
      command: what the inspection orders.
    """

    step: int
    kind: str
    instruction: str | None
    canvas: Canvas
    why: str
    command: str


CONFLICTS = ("color", "shape", "count", "relation")
MISALIGNMENTS = ("color", "shape", "place", "missing", "extra", "swap")


# ---- what inspections say: (why, command) of each kind of fault ----------------------------------

Saying = tuple[str, str]


def wrong_kind(wrong: Sequence[SceneObject], color: str, shape: str, why: str) -> Saying:
    """Objects of a conflicting plan that should be of another kind; `why` as below."""
    return f"it should be {why}", phrases.change(wrong, (color, shape))


def too_many(extra: SceneObject, count: int, color: str | None, shape: str) -> Saying:
    """One object more than the `count` that the prompt asks for."""
    return f"it should be {phrase(count, color, shape)}", phrases.remove(extra)


def wrong_side(
    wrong: Sequence[SceneObject], cells: Iterable[int], relation: str, other: Wanted
) -> Saying:
    """Objects of a conflicting plan that should be `relation` a group, at `cells`."""
    why = f"it should be {relation} {phrases.the(other.count, other.color, other.shape)}"
    return why, phrases.move(wrong, cells)


def wrong_color(wrong: SceneObject, color: str) -> Saying:
    """An object that is drawn in another colour than planned."""
    why = f"the {wrong.shape} at {wrong.place} should be {color}, it is {wrong.color}"
    return why, phrases.change([wrong], (color, wrong.shape))


def wrong_shape(wrong: SceneObject, color: str, shape: str) -> Saying:
    """An object that is drawn in another shape, and perhaps colour."""
    why = f"{phrases.the_group_at([wrong])} should be {phrase(1, color, shape)}"
    return why, phrases.change([wrong], (color, shape))


def wrong_place(wrong: SceneObject, cell: int) -> Saying:
    """An object that is drawn in another cell."""
    why = f"{phrases.the_group_at([wrong])} should be at {wrong.world.places[cell]}"
    return why, phrases.move([wrong], [cell])


def missing(item: SceneObject) -> Saying:
    """An object that is not drawn."""
    return f"{phrases.the_group_at([item])} is missing", phrases.add([item])


def left_over(extra: SceneObject) -> Saying:
    """An object that is not planned."""
    return f"{phrases.the_group_at([extra])} should not be there", phrases.remove(extra)


def exchanged(a: SceneObject, b: SceneObject) -> Saying:
    """Two objects that are drawn in each other's cells."""
    one, other = phrases.the(1, a.color, a.shape), phrases.the(1, b.color, b.shape)
    return f"{one} and {other} should be swapped", phrases.swap(a, b)


def _free_cells(world: World, *canvases: Canvas) -> list[int]:
    used = {item.cell for canvas in canvases for item, _ in canvas.values()}
    return [cell for cell in range(world.num_cells) if cell not in used]


def _readable(story: Story, fault: Fault | None) -> bool:
    """Whether all that is drawn can be told apart."""
    if fault is None or not story.world.layered:
        return fault is not None
    return fits(item for item, _ in fault.canvas.values())


# ---- conflicts -----------------------------------------------------------------------------------


def conflict(rng: np.random.Generator, story: Story) -> Fault | None:
    """A step whose plan contradicts the prompt; None where no such plan would be decidable."""
    # A relation can be wrong in few prompts; where it can, it is so in two of five conflicts.
    makers = (_wrong_color, _wrong_shape, _wrong_count, _wrong_relation, _wrong_relation)
    steps = [
        i
        for i, beat in enumerate(story.beats)
        if beat.op == "add" and not beat.after[beat.ids[0]][1]
    ]
    # By kind first, so that kinds which few prompts allow are not drowned by the others.
    for make in shuffled(rng, makers):
        for step in shuffled(rng, steps):
            fault = make(rng, story, step)
            if _readable(story, fault):
                return fault
    return None


def _conflict(
    step: int, kind: str, beat: Beat, wrong: dict[int, SceneObject], said: Saying
) -> Fault:
    canvas = beat.before | {number: (item, False) for number, item in wrong.items()}
    return Fault(step, kind, phrases.add(list(wrong.values())), canvas, *said)


def _unfinished_others(story: Story, beat: Beat) -> list[int]:
    own = story.group_of[beat.ids[0]]
    left = story.remaining(beat.before)
    return [i for i, count in enumerate(left) if count > 0 and i != own]


def _wrong_color(rng: np.random.Generator, story: Story, step: int) -> Fault | None:
    """The colour contradicts the prompt; the shape tells which group is meant."""
    beat = story.beats[step]
    group = story.groups[story.group_of[beat.ids[0]]]
    others = [story.groups[i] for i in _unfinished_others(story, beat)]
    if group.color is None or any(other.shape == group.shape for other in others):
        return None
    colors = [color for color in COLOR_NAMES if not story.asks_for(color, group.shape)]
    color = pick(rng, colors)
    wrong = {n: recolored(beat.after[n][0], color) for n in beat.ids}
    said = wrong_kind(list(wrong.values()), group.color, group.shape, group.color)
    return _conflict(step, "color", beat, wrong, said)


def _wrong_shape(rng: np.random.Generator, story: Story, step: int) -> Fault | None:
    """The shape contradicts the prompt; the colour, or the lack of a choice, tells the group."""
    beat = story.beats[step]
    group = story.groups[story.group_of[beat.ids[0]]]
    others = [story.groups[i] for i in _unfinished_others(story, beat)]
    if others and (group.color is None or any(o.color in (None, group.color) for o in others)):
        return None
    right = beat.after[beat.ids[0]][0]
    color = right.color
    if group.color is not None and not others and rng.random() < 0.3:
        color = pick(rng, COLOR_NAMES)
    kinds = [s for s in story.world.shapes if s != group.shape and not story.asks_for(color, s)]
    if not kinds:
        return None
    shape = pick(rng, kinds)
    wrong = {n: recolored(beat.after[n][0], color, shape) for n in beat.ids}
    why = phrase(len(beat.ids), group.color, group.shape)
    said = wrong_kind(list(wrong.values()), right.color, group.shape, why)
    return _conflict(step, "shape", beat, wrong, said)


def relations_of(story: Story, own: int) -> list[tuple[str, int]]:
    """(relation, other group) of a group, whichever of the two the prompt names first."""
    group = story.groups[own]
    found = [(group.relation, group.target)] if group.relation is not None else []
    found += [
        (INVERSE[other.relation], i)
        for i, other in enumerate(story.groups)
        if other.relation is not None and other.target == own
    ]
    return [(relation, other) for relation, other in found if relation and other is not None]


def painted(story: Story, canvas: Canvas, group: int) -> list[int]:
    """Cells of a group's objects on a canvas."""
    return [
        item.cell
        for number, (item, placeholder) in canvas.items()
        if not placeholder and story.group_of.get(number) == group
    ]


def _wrong_count(rng: np.random.Generator, story: Story, step: int) -> Fault | None:
    """One object too many, the last in reading order; too few would be no fault yet."""
    beat = story.beats[step]
    own = story.group_of[beat.ids[0]]
    group = story.groups[own]
    if len(beat.ids) != group.count:
        return None
    last = max(beat.after[n][0].cell for n in beat.ids)
    cells = [
        cell
        for cell in _free_cells(story.world, beat.after)
        if cell > last
        and all(
            story.world.cells_related(cell, relation, other)
            for relation, index in relations_of(story, own)
            for other in painted(story, beat.before, index)
        )
    ]
    if not cells:
        return None
    right = {n: beat.after[n][0] for n in beat.ids}
    kind = right[beat.ids[0]]
    extra = draw_object(rng, kind.shape, kind.color, pick(rng, cells), story.world)
    said = too_many(extra, group.count, group.color, group.shape)
    return _conflict(step, "count", beat, right | {_EXTRA: extra}, said)


def _wrong_relation(rng: np.random.Generator, story: Story, step: int) -> Fault | None:
    """All of the step's objects lie on the wrong side of a group that is there already."""
    beat = story.beats[step]
    for relation, index in relations_of(story, story.group_of[beat.ids[0]]):
        fixed = painted(story, beat.before, index)
        cells = [
            cell
            for cell in _free_cells(story.world, beat.before)
            if any(not story.world.cells_related(cell, relation, other) for other in fixed)
        ]
        if not fixed or len(cells) < len(beat.ids):
            continue
        chosen = sorted(shuffled(rng, cells)[: len(beat.ids)])
        right = [beat.after[n][0] for n in beat.ids]
        wrong = {n: at(item, cell) for n, item, cell in zip(beat.ids, right, chosen, strict=True)}
        cells = [item.cell for item in right]
        said = wrong_side(list(wrong.values()), cells, relation, story.groups[index])
        return _conflict(step, "relation", beat, wrong, said)
    return None


# ---- misalignments -------------------------------------------------------------------------------


def misalignment(rng: np.random.Generator, story: Story) -> Fault | None:
    """A step that is drawn otherwise than planned."""
    step = int(rng.random() * len(story.beats))
    beat = story.beats[step]
    if beat.op != "add" and rng.random() < 0.6:
        fault = _undone(rng, step, beat)
        return fault if _readable(story, fault) else None
    for kind in shuffled(rng, MISALIGNMENTS):
        fault = _misdrawn(rng, step, beat, kind, story.world)
        if _readable(story, fault):
            return fault
    return None


def _pick_target(rng: np.random.Generator, beat: Beat) -> int | None:
    """An object of the step, or now and then an older one that should have stayed as it was."""
    touched = [n for n in beat.ids if n in beat.after]
    older = [n for n in beat.after if n not in beat.ids]
    if older and (not touched or rng.random() < 0.25):
        return pick(rng, older)
    return pick(rng, touched) if touched else None


def _replaced(beat: Beat, number: int, item: SceneObject) -> Canvas:
    return beat.after | {number: (item, beat.after[number][1])}


def _miscolored(step: int, beat: Beat, n: int, color: str) -> Fault:
    item = beat.after[n][0]
    wrong = recolored(item, color)
    return Fault(step, "color", None, _replaced(beat, n, wrong), *wrong_color(wrong, item.color))


def _misshapen(step: int, beat: Beat, n: int, wrong: SceneObject) -> Fault:
    item = beat.after[n][0]
    said = wrong_shape(wrong, item.color, item.shape)
    return Fault(step, "shape", None, _replaced(beat, n, wrong), *said)


def _left_over(step: int, extra: SceneObject, canvas: Canvas) -> Fault:
    return Fault(step, "extra", None, canvas, *left_over(extra))


def _swapped(step: int, beat: Beat, a: int, b: int) -> Fault:
    first, second = beat.after[a][0], beat.after[b][0]
    wrong_first, wrong_second = at(first, second.cell), at(second, first.cell)
    canvas = _replaced(beat, a, wrong_first) | {b: (wrong_second, beat.after[b][1])}
    return Fault(step, "swap", None, canvas, *exchanged(wrong_first, wrong_second))


def _undone(rng: np.random.Generator, step: int, beat: Beat) -> Fault:
    """The sketch ignores a change, a removal or a swap."""
    if beat.op == "remove":
        return _left_over(step, beat.before[beat.ids[0]][0], dict(beat.before))
    if beat.op == "swap":
        return _swapped(step, beat, *beat.ids)
    n = pick(rng, beat.ids)
    old, new = beat.before[n][0], beat.after[n][0]
    if old.shape == new.shape:
        return _miscolored(step, beat, n, old.color)
    return _misshapen(step, beat, n, old)


def _misdrawn(
    rng: np.random.Generator, step: int, beat: Beat, kind: str, world: World
) -> Fault | None:
    n = _pick_target(rng, beat)
    if n is None:
        return None
    item = beat.after[n][0]
    # A cell that was emptied by this very step would look like the step not being carried out.
    free = _free_cells(world, beat.after, beat.before)
    if kind == "color":
        return _miscolored(step, beat, n, pick(rng, [c for c in COLOR_NAMES if c != item.color]))
    if kind == "shape":
        shape = pick(rng, [s for s in world.shapes if s != item.shape])
        return _misshapen(step, beat, n, recolored(item, item.color, shape))
    if kind == "missing":
        canvas = {number: entry for number, entry in beat.after.items() if number != n}
        return Fault(step, kind, None, canvas, *missing(item))
    if kind == "swap":
        other = [
            m
            for m, (o, _) in beat.after.items()
            if (o.color, o.shape) != (item.color, item.shape) and o.cell != item.cell
        ]
        return _swapped(step, beat, n, pick(rng, other)) if other else None
    if not free:
        return None
    cell = pick(rng, free)
    if kind == "place":
        wrong = at(item, cell)
        said = wrong_place(wrong, item.cell)
        return Fault(step, kind, None, _replaced(beat, n, wrong), *said)
    color, shape = item.color, item.shape
    if rng.random() < 0.4:
        color, shape = pick(rng, COLOR_NAMES), pick(rng, world.shapes)
    extra = draw_object(rng, shape, color, cell, world)
    return _left_over(step, extra, beat.after | {_EXTRA: (extra, False)})
