"""What a painter thinks of pictures that it did not paint: the best of several can be chosen.

An inspection judges a sketch by a plan, and such pictures have none. So each is inspected twice:
first with the prompt itself as the plan, for what the painter says it sees; then with that as the
plan, and now the question is whether what is there fits the prompt, and is all of it.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Sequence

from process_gen.core.trajectory import Step, Trajectory, plan_text
from process_gen.sampling.painter import Painter
from process_gen.strokes import phrases
from process_gen.strokes.prompts import NUMBERS
from process_gen.strokes.scene import EASY, SceneObject, World

# Paintings that end with a sketch which nobody has inspected -> what is said of each sketch.
Inspect = Callable[[Sequence[Trajectory]], Sequence[str | None]]

# What a picture is worth by the opinion of it. One that is called unfinished is no more what was
# asked for than a faulty one; one of which nothing readable is said may be; no picture never is.
WORTH = {"no_image": -1, "faulty": 0, "unfinished": 0, "unreadable": 1, "complete": 2}


def inspections_of(painter: Painter) -> Inspect:
    """What a painter says, in its likeliest words; it does not begin a picture of its own."""

    def inspect(starts: Sequence[Trajectory]) -> list[str | None]:
        painted = painter.paint(starts, temperature=0.0, max_images=1)
        # One that it refuses, for too long a plan, comes back without steps.
        return [t.steps[0].inspection if t.steps else None for t in painted]

    return inspect


def opinions(painted: Sequence[Trajectory], inspect: Inspect, world: World = EASY) -> list[str]:
    """What the painter thinks of pictures.

    Args:
      painted: whose final pictures are judged by their prompts.
      inspect: the painter.
      world: that its words are about.

    Returns:
      Of each picture a key of `WORTH`: "complete" (it is what the prompt asks for), "unfinished"
      (something is missing), "faulty" (something is wrong), "unreadable" (what is said of it is no
      inspection, or lists what no plan can say), or "no_image".
    """
    found = ["no_image" if t.final_image is None else "unreadable" for t in painted]
    whole = {
        i: plan_text(f"add {trajectory.prompt}", trajectory.prompt)
        for i, trajectory in enumerate(painted)
        if trajectory.final_image is not None
    }
    there = {}
    for i, said in _inspections(painted, whole, inspect, world).items():
        if said.seen:
            if _can_be_said(said.seen):
                there[i] = _plan(said.seen, world)
        else:  # nothing, or it does not say what: then this is its verdict
            found[i] = "unfinished" if said.seen == () else _verdict(said)
    for i, said in _inspections(painted, there, inspect, world).items():
        found[i] = _verdict(said)
    return found


def _verdict(said: phrases.Inspection) -> str:
    return "faulty" if said.command else "complete" if said.complete else "unfinished"


def _inspections(
    painted: Sequence[Trajectory], plans: dict[int, str], inspect: Inspect, world: World
) -> dict[int, phrases.Inspection]:
    """Those that can be read."""
    starts = [
        Trajectory(painted[i].prompt, steps=(Step(plan, painted[i].final_image),))
        for i, plan in plans.items()
    ]
    said = zip(plans, inspect(starts), strict=True)
    read = {i: phrases.parse_inspection(text, world) for i, text in said if text is not None}
    return {i: inspection for i, inspection in read.items() if inspection is not None}


def _can_be_said(seen: Sequence[phrases.Placed]) -> bool:
    """Whether a plan can name these objects: each once, and no more of a kind than are counted."""
    kinds = collections.Counter((color, shape) for color, shape, _ in seen)
    return len(set(seen)) == len(seen) and max(kinds.values()) < len(NUMBERS)


def _plan(seen: Sequence[phrases.Placed], world: World) -> str:
    """The plan of a picture that shows these objects, all added at once."""
    objects = []
    for color, shape, place in seen:
        row, col = divmod(world.places.index(place), len(world.centers))
        objects.append((SceneObject(shape, color, row, col, world=world), False))
    there = phrases.describe(objects)
    return plan_text(f"add {there}", there)
