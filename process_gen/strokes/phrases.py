"""The words of plans and inspections, and how to read them back. A closed vocabulary.

Every word costs a token in every trajectory, so phrases are short, and one thing is always said in
one way. A *state* is what is on the canvas: pairs of an object and whether it is a placeholder, in
painting order.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterable, Sequence

from process_gen.core.errors import TrajectoryError
from process_gen.core.trajectory import refine_command
from process_gen.strokes.prompts import NUMBERS, noun, phrase
from process_gen.strokes.scene import COLORS, EASY, SHAPES, SceneObject, World

PLACEHOLDER = " as a placeholder"
FITS_PROMPT = "the instruction fits the prompt."
FITS_INSTRUCTION = "the sketch fits the instruction."
NO_FIT_PROMPT = "the instruction does not fit the prompt:"
NO_FIT_INSTRUCTION = "the sketch does not fit the instruction:"
COMPLETE = "the picture is complete."
NOT_PAINTED = "not yet painted, no fault:"
NOT_REMOVED = "not yet removed, no fault:"

Kind = tuple[str, str]  # colour, shape
State = Sequence[tuple[SceneObject, bool]]


# Phrases are put together a dozen times a trajectory; these tables keep that cheap.
@functools.cache
def _seen(world: World) -> dict[tuple[str, str], list[str]]:
    return {
        (color, shape): [f"{color} {shape} {place}" for place in world.places]
        for color in COLORS
        for shape in world.shapes
    }


_PHRASES = {
    (count, color, shape): phrase(count, color, shape)
    for count in range(1, 6)
    for color in COLORS
    for shape in SHAPES
}


def places(cells: Iterable[int], world: World = EASY) -> str:
    """Cells in reading order: "top left and bottom right"."""
    return " and ".join([world.places[cell] for cell in sorted(cells)])


def group_at(objects: Sequence[SceneObject]) -> str:
    """Objects of one kind: "two red circles at top left and bottom right"."""
    first = objects[0]
    words = _PHRASES.get((len(objects), first.color, first.shape))
    if words is None:
        words = phrase(len(objects), first.color, first.shape)
    return f"{words} at {places([item.cell for item in objects], first.world)}"


def the_group_at(objects: Sequence[SceneObject]) -> str:
    """The same with the definite article: "the red circle at top left"."""
    words = group_at(objects)
    return "the " + (words.split(" ", 1)[1] if len(objects) == 1 else words)


def describe(state: State) -> str:
    """The whole scene, one comma item a kind, in the order in which the kinds were painted."""
    groups: dict[tuple[str, str, bool], list[SceneObject]] = {}
    for item, placeholder in state:
        groups.setdefault((item.color, item.shape, placeholder), []).append(item)
    return ", ".join(
        [group_at(items) + (PLACEHOLDER if key[2] else "") for key, items in groups.items()]
    )


def seen(objects: Iterable[SceneObject]) -> str:
    """What is in a picture, in reading order: "seen: red circle top left, blue star top right."."""
    listed = list(objects)
    items = sorted([(item.cell, item.color, item.shape) for item in listed])
    table = _seen(listed[0].world) if listed else {}
    words = [table[color, shape][cell] for cell, color, shape in items]
    return f"seen: {', '.join(words) or 'nothing'}."


def add(objects: Sequence[SceneObject], placeholder: bool = False) -> str:
    """Instruction to paint objects of one kind."""
    return f"add {group_at(objects)}{PLACEHOLDER if placeholder else ''}"


def change(objects: Sequence[SceneObject], to: Kind) -> str:
    """Instruction to give objects of one kind another colour, or another colour and shape."""
    color, shape = to
    if shape == objects[0].shape:
        return f"change {the_group_at(objects)} to {color}"
    return f"change {the_group_at(objects)} to {phrase(len(objects), color, shape)}"


def move(objects: Sequence[SceneObject], cells: Iterable[int]) -> str:
    """Instruction to move objects of one kind."""
    return f"move {the_group_at(objects)} to {places(cells, objects[0].world)}"


def remove(item: SceneObject) -> str:
    """Instruction to take an object away."""
    return f"remove {the_group_at([item])}"


def swap(a: SceneObject, b: SceneObject) -> str:
    """Instruction to exchange the places of two objects."""
    return f"swap {the_group_at([a])} and {the_group_at([b])}"


def the(count: int, color: str | None, shape: str) -> str:
    """A group of the prompt as something known: "the red circle", "the stars"."""
    return f"the {noun(count, color, shape)}"


# ---- reading back --------------------------------------------------------------------------------

_COLOR = "|".join(COLORS)


@functools.cache
def _patterns(world: World) -> tuple[re.Pattern[str], re.Pattern[str]]:
    """An object that is seen, and an item of a description."""
    shape, place = "|".join(world.shapes), "|".join(world.places)
    number = "|".join(("an?", *NUMBERS[2:]))
    return (
        re.compile(rf"(?P<color>{_COLOR}) (?P<shape>{shape}) (?P<place>{place})"),
        re.compile(
            rf"(?P<number>{number}) (?P<color>{_COLOR}) (?P<shape>{shape})s? at "
            rf"(?P<places>(?:{place})(?: and (?:{place}))*)(?P<placeholder>{PLACEHOLDER})?"
        ),
    )


Placed = tuple[str, str, str]  # colour, shape, place


def parse_state(text: str, world: World = EASY) -> tuple[tuple[Placed, bool], ...] | None:
    """The objects of a `<des>` text and whether each is a placeholder, sorted.

    None when it cannot be read; the order of objects and places is free.
    """
    objects = []
    _, pattern = _patterns(world)
    for part in text.split(", "):
        match = pattern.fullmatch(part)
        if match is None:
            return None
        where, holds = match["places"].split(" and "), match["placeholder"] is not None
        if len(where) >= len(NUMBERS) or len(set(where)) < len(where):
            return None
        if phrase(len(where), match["color"], match["shape"]) != part.split(" at ")[0]:
            return None
        objects += [((match["color"], match["shape"], place), holds) for place in where]
    return tuple(sorted(objects))


def parse_description(text: str, world: World = EASY) -> tuple[Placed, ...] | None:
    """The objects of a `<des>` text, sorted; None when it cannot be read."""
    state = parse_state(text, world)
    return None if state is None else tuple(placed for placed, _ in state)


@dataclasses.dataclass(frozen=True)
class Inspection:
    """An inspection taken apart.

    Attributes:
      seen: (colour, shape, place) of the objects that are said to be seen, sorted; None where the
        text gives a bare verdict.
      fits_prompt: whether the instruction is said to be consistent with the prompt.
      fits_instruction: whether the sketch is said to match; None where it is not judged, because
        the instruction is wrong already.
      complete: whether the picture is said to be complete.
      command: the corrective instruction, None without a fault.
    """

    seen: tuple[Placed, ...] | None
    fits_prompt: bool
    fits_instruction: bool | None
    complete: bool
    command: str | None


def parse_inspection(text: str, world: World = EASY) -> Inspection | None:
    """Reads an inspection; None when it is not written in the form of `docs/strokes.md`."""
    try:
        command = refine_command(text)
    except TrajectoryError:
        return None
    objects: tuple[Placed, ...] | None = None
    rest = text
    if text.startswith("seen: "):
        listed, dot, rest = text.removeprefix("seen: ").partition(". ")
        pattern, _ = _patterns(world)
        matches = [pattern.fullmatch(part) for part in listed.split(", ")]
        if not dot or (None in matches and listed != "nothing"):
            return None
        found = [(m["color"], m["shape"], m["place"]) for m in matches if m is not None]
        objects = tuple(sorted(found))
    if rest.startswith(NO_FIT_PROMPT):
        return Inspection(objects, False, None, False, command) if command else None
    if not rest.startswith(FITS_PROMPT + " "):
        return None
    rest = rest.removeprefix(FITS_PROMPT + " ")
    if rest.startswith(NO_FIT_INSTRUCTION):
        return Inspection(objects, True, False, False, command) if command else None
    if not rest.startswith(FITS_INSTRUCTION + " ") or command:
        return None
    rest = rest.removeprefix(FITS_INSTRUCTION + " ")
    if rest != COMPLETE and not rest.startswith((NOT_PAINTED, NOT_REMOVED)):
        return None
    return Inspection(objects, True, True, rest == COMPLETE, None)
