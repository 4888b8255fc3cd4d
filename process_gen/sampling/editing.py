"""Changing a painting: other words at one of its texts, and what follows them cut off.

What comes out is a beginning, which `Painter.stream` goes on with as if the model had written it.
"""

from __future__ import annotations

import dataclasses

from process_gen.core.errors import DataError
from process_gen.core.grammar import Part, check_text
from process_gen.core.trajectory import Step, Trajectory, parse_plan, plan_text, refine_command

TAGS = ("<ins>", "</ins>", "<des>", "</des>", "<refine>", "</refine>")


@dataclasses.dataclass(frozen=True)
class Place:
    """A text of a painting that can be written anew.

    Attributes:
      step: index of the step, from 0.
      part: `Part.PLAN` or `Part.INSPECTION`.
    """

    step: int
    part: Part


def places(trajectory: Trajectory) -> list[Place]:
    """Texts that can be changed, in the order of painting: every plan, and after every sketch the
    inspection, whether the model wrote one or not. None outside of mode "process"."""
    if trajectory.mode != "process":
        return []
    found = []
    for number, step in enumerate(trajectory.steps):
        found.append(Place(number, Part.PLAN))
        if step.sketch is not None:
            found.append(Place(number, Part.INSPECTION))
    return found


def words(trajectory: Trajectory, place: Place) -> tuple[str, str]:
    """The two halves of a text, without tags.

    Returns:
      Of a plan, the instruction and the description; of an inspection, what is said and the
      command, which is empty where no fault was found. A malformed text is a first half.
    """
    step = _step(trajectory, place)
    if place.part is Part.PLAN:
        return parse_plan(step.plan) or (_without_tags(step.plan), "")
    text = step.inspection or ""
    if check_text(Part.INSPECTION, text) is None:
        return _without_tags(text), ""
    command = refine_command(text)
    if command is None:
        return text, ""
    return _without_tags(text.replace(f"<refine>{command}</refine>", "")), command


def rewrite(trajectory: Trajectory, place: Place, first: str, second: str) -> Trajectory:
    """A painting up to a text, with other words there.

    Args:
      trajectory: whole, or as far as it came; stays as it is.
      place: one of `places`.
      first: of a plan, what to paint next; of an inspection, what is seen and thought of it.
      second: of a plan, the scene as it should look then; of an inspection, what to mend, or
        nothing where it is to go on.

    Raises:
      DataError: no such place; words that are missing, or that hold a tag of the grammar.
    """
    step = _step(trajectory, place)
    first, second = _clean(first), _clean(second)
    if place.part is Part.PLAN:
        if not first or not second:
            raise DataError(
                "a plan needs both what to paint next and the whole scene as it should look then"
            )
        last = Step(plan_text(first, second))
    else:
        if not first:
            raise DataError("an inspection needs words: what is seen, and whether it fits")
        text = f"{first} <refine>{second}</refine>" if second else first
        last = Step(step.plan, step.sketch, text)
    return Trajectory(
        trajectory.prompt,
        steps=(*trajectory.steps[: place.step], last),
        metadata=trajectory.metadata,
    )


def _step(trajectory: Trajectory, place: Place) -> Step:
    if place not in places(trajectory):
        what = place.part.name.lower()
        raise DataError(
            f"the painting of {trajectory.prompt[:60]!r} has no {what} at step {place.step + 1}"
        )
    return trajectory.steps[place.step]


def _clean(text: str) -> str:
    text = " ".join(text.split())
    if found := [tag for tag in TAGS if tag in text]:
        raise DataError(f"words may not hold {found[0]}, which marks the parts of a text")
    return text


def _without_tags(text: str) -> str:
    for tag in TAGS:
        text = text.replace(tag, " ")
    return " ".join(text.split())
