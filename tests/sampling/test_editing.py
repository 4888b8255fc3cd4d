"""Other words at a text of a painting; what follows them is cut off."""

from __future__ import annotations

import numpy as np
import pytest

from process_gen.core.errors import DataError
from process_gen.core.grammar import Part
from process_gen.core.trajectory import Step, Trajectory, plan_text
from process_gen.sampling import editing
from process_gen.sampling.editing import Place
from process_gen.sampling.painting import given_parts

PICTURES = [np.full((8, 8, 3), 40 * i, np.uint8) for i in range(4)]
FAULT = "Seen: a square. It should be round. <refine>make it round</refine>"
WHOLE = Trajectory(
    "a circle and a star",
    steps=(
        Step(plan_text("add a circle", "a circle"), PICTURES[0], FAULT, None, PICTURES[1]),
        Step(plan_text("add a star", "a circle, a star"), PICTURES[2], "Seen: both. It fits."),
    ),
    final_image=PICTURES[2],
    finish_reason="finished",
    metadata={"tag": "two_object"},
)
PLAN, INSPECTION = Part.PLAN, Part.INSPECTION


def test_every_plan_and_every_sketch_can_be_spoken_to():
    whole = [Place(0, PLAN), Place(0, INSPECTION), Place(1, PLAN), Place(1, INSPECTION)]
    assert editing.places(WHOLE) == whole
    stopped = Trajectory("a", steps=(Step("<ins>", None),), finish_reason="malformed")
    assert editing.places(stopped) == [Place(0, PLAN)]
    assert editing.places(Trajectory("a", mode="one_shot", final_image=PICTURES[0])) == []


def test_the_words_of_a_text_come_without_tags():
    assert editing.words(WHOLE, Place(0, PLAN)) == ("add a circle", "a circle")
    seen = ("Seen: a square. It should be round.", "make it round")
    assert editing.words(WHOLE, Place(0, INSPECTION)) == seen
    assert editing.words(WHOLE, Place(1, INSPECTION)) == ("Seen: both. It fits.", "")
    torn = Trajectory("a", steps=(Step("<ins>x</ins", PICTURES[0], "oh <refine>no"),))
    assert editing.words(torn, Place(0, PLAN)) == ("x</ins", "")
    assert editing.words(torn, Place(0, INSPECTION)) == ("oh no", "")


@pytest.mark.parametrize("place", editing.places(WHOLE))
def test_words_written_again_are_the_same_beginning(place):
    out = editing.rewrite(WHOLE, place, *editing.words(WHOLE, place))
    assert out.steps[: place.step] == WHOLE.steps[: place.step]
    assert len(out.steps) == place.step + 1
    last, was = out.steps[-1], WHOLE.steps[place.step]
    assert last.plan == was.plan and last.refined is None
    if place.part is PLAN:
        assert last.sketch is None and last.inspection is None
    else:
        assert last.sketch is was.sketch and last.inspection == was.inspection
    assert out.finish_reason is None and out.final_image is None and out.metadata == WHOLE.metadata
    given_parts(out)  # raises where the parts do not follow one another


def test_other_words_take_their_place():
    out = editing.rewrite(WHOLE, Place(1, PLAN), " add\na moon ", "a circle, a moon")
    assert out.steps[1].plan == plan_text("add a moon", "a circle, a moon")
    fault = editing.rewrite(WHOLE, Place(1, INSPECTION), "Seen: one.", "add the star")
    assert fault.steps[1].inspection == "Seen: one. <refine>add the star</refine>"
    assert fault.steps[1].rejected and not WHOLE.steps[1].rejected


@pytest.mark.parametrize(
    ("place", "first", "second", "why"),
    [
        (Place(2, PLAN), "a", "b", "no plan at step 3"),
        (Place(-1, PLAN), "a", "b", "no plan at step 0"),
        (Place(0, Part.REFINED), "a", "b", "no refined at step 1"),
        (Place(0, PLAN), "a", " ", "needs both"),
        (Place(0, INSPECTION), "", "b", "needs words"),
        (Place(0, INSPECTION), "</ins>", "", "may not hold </ins>"),
        (Place(0, PLAN), "a", "<refine>", "may not hold <refine>"),
    ],
)
def test_what_makes_no_text_is_refused(place, first, second, why):
    with pytest.raises(DataError, match=why):
        editing.rewrite(WHOLE, place, first, second)
