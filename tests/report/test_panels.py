"""Panels: order, marks of faults, the finished picture shown once."""

import dataclasses

import numpy as np
import pytest

from process_gen.core.trajectory import Step, Trajectory, Turn, plan_text
from process_gen.report.panels import panels


def image(seed):
    return np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)


MISALIGNED = Step(
    plan_text("add a red circle", "a red circle"),
    image(0),
    "seen: green circle. the instruction fits the prompt. the sketch does not fit the instruction: "
    "it is green. <refine>change it to red</refine>",
    None,
    image(1),
)
CONFLICT = Step(
    plan_text("add a square", "a square"),
    image(2),
    "seen: square. the instruction does not fit the prompt: it should be a star. "
    "<refine>add a star</refine>",
    plan_text("change it to a star", "a star"),
    image(3),
)
GOOD = Step(
    plan_text("add a star", "a star"), image(4), "seen: star. not yet painted, no fault: a circle."
)


def marks(pieces):
    return [piece.mark for piece in pieces]


def test_order_and_headings():
    row = panels(Trajectory("p", steps=(MISALIGNED, CONFLICT, GOOD), final_image=image(4)))
    assert [p.heading for p in row] == [
        "1 · sketch",
        "1 · refined",
        "2 · sketch",
        "2 · refined",
        "3 · sketch",
    ]
    assert [p.faulty for p in row] == [True, False, True, False, False]
    assert [p.final for p in row] == [False] * 4 + [True]
    assert [p.label for p in row] == ["plan", "as commanded", "plan", "plan again", "plan"]
    assert [p.image[0, 0, 0] for p in row] == [image(i)[0, 0, 0] for i in range(5)]


def test_the_faulty_sentence_is_marked_and_no_other():
    row = panels(Trajectory("p", steps=(MISALIGNED, GOOD)))
    assert marks(row[0].after) == ["seen", "verdict", "fault", "command"]
    assert row[0].after[2].text.startswith("the sketch does not fit")
    assert row[0].after[3].text == "change it to red"
    assert "fault" not in marks(row[2].after)  # "no fault" is said, none is marked


def test_a_fault_in_other_words_marks_the_last_sentence():
    step = dataclasses.replace(MISALIGNED, inspection="one. wrong colour. <refine>x</refine>")
    assert marks(panels(Trajectory("p", steps=(step,)))[0].after) == ["verdict", "fault", "command"]


@pytest.mark.parametrize("inspection", ["a <refine>b", "a </refine>", "<refine>"])
def test_malformed_text_is_shown_as_it_is(inspection):
    step = Step("no plan", image(0), inspection)
    panel = panels(Trajectory("p", steps=(step,), finish_reason="malformed"))[0]
    assert [(p.mark, p.text) for p in panel.before] == [("malformed", "no plan")]
    assert [(p.mark, p.text) for p in panel.after] == [("malformed", inspection)]
    assert not panel.faulty


def test_another_final_picture_gets_its_own_panel():
    steps = (GOOD,)
    assert len(panels(Trajectory("p", steps=steps, final_image=image(4)))) == 1
    row = panels(Trajectory("p", steps=steps, final_image=image(5)))
    assert [(p.kind, p.final) for p in row] == [("sketch", False), ("painting", True)]


def test_other_modes():
    one = panels(Trajectory("p", mode="one_shot", final_image=image(0)))
    assert [(p.heading, p.final) for p in one] == [("painting", True)]
    assert one[0].describe("a cat") == "painting for: a cat"
    none = panels(Trajectory("p", mode="one_shot", finish_reason="refused"))
    assert [(p.heading, p.image) for p in none] == [("nothing painted", None)]
    edit = panels(Trajectory("p", mode="edit", inputs=(image(0), image(1)), final_image=image(2)))
    assert [p.heading for p in edit] == ["input 1", "input 2", "painting"]
    asked = Trajectory("p", mode="understand", inputs=(image(0),), text="a cat")
    assert [p.heading for p in panels(asked)] == ["input"]


def test_a_conversation_shows_each_picture_with_the_words_before_it():
    turns = (
        Turn(False, text="look"),
        Turn(False, image=image(0)),
        Turn(False, text="what?"),
        Turn(True, text="I draw it"),
        Turn(True, image=image(1)),
        Turn(True, text="a cat"),
    )
    row = panels(Trajectory("look", mode="understand", turns=turns))
    assert [p.heading for p in row] == ["1 · given", "2 · painted"]
    assert [[piece.text for piece in p.before] for p in row] == [["look"], ["what?", "I draw it"]]
    assert marks(row[1].before) == ["instruction", "description"]
    assert [piece.text for piece in row[1].after] == ["a cat"] and not row[0].after
    (words,) = panels(
        Trajectory("hm", mode="understand", turns=(Turn(False, text="hm"), turns[-1]))
    )
    assert words.image is None and len(words.before) == 2
