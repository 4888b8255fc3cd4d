"""Words of plans and inspections, written and read back."""

from __future__ import annotations

import pytest

from process_gen.strokes import phrases
from process_gen.strokes.scene import SceneObject

RED = SceneObject("circle", "red", 0, 0)
RED_2 = SceneObject("circle", "red", 2, 2)
BLUE = SceneObject("square", "blue", 1, 1)
STAR = SceneObject("star", "orange", 0, 2)


def test_instructions():
    assert phrases.add([RED]) == "add a red circle at top left"
    assert phrases.add([RED_2, RED]) == "add two red circles at top left and bottom right"
    assert phrases.add([STAR], True) == "add an orange star at top right as a placeholder"
    assert phrases.change([RED], ("blue", "circle")) == "change the red circle at top left to blue"
    assert (
        phrases.change([RED], ("blue", "square"))
        == "change the red circle at top left to a blue square"
    )
    assert (
        phrases.change([RED, RED_2], ("orange", "star"))
        == "change the two red circles at top left and bottom right to two orange stars"
    )
    assert phrases.move([RED], [4]) == "move the red circle at top left to middle center"
    assert phrases.remove(STAR) == "remove the orange star at top right"
    assert (
        phrases.swap(RED, BLUE)
        == "swap the red circle at top left and the blue square at middle center"
    )


def test_descriptions_group_by_kind_in_painting_order():
    state = [(RED_2, False), (STAR, True), (BLUE, False), (RED, False)]
    text = phrases.describe(state)
    assert text == (
        "two red circles at top left and bottom right, an orange star at top right as a "
        "placeholder, a blue square at middle center"
    )
    assert phrases.parse_description(text) == (
        ("blue", "square", "middle center"),
        ("orange", "star", "top right"),
        ("red", "circle", "bottom right"),
        ("red", "circle", "top left"),
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a red circle",
        "two red circles at top left",
        "a red circles at top left",
        "a red circle at top left.",
        "a pink circle at top left",
        "two red circles at top left and top left",
    ],
)
def test_malformed_descriptions(text):
    assert phrases.parse_description(text) is None


def test_seen():
    assert phrases.seen([BLUE, RED]) == "seen: red circle top left, blue square middle center."
    assert phrases.seen([]) == "seen: nothing."


SEEN = "seen: red circle top left, blue square middle center. "
OK = "the instruction fits the prompt. the sketch fits the instruction. "


def test_inspections():
    done = phrases.parse_inspection(SEEN + OK + "the picture is complete.")
    assert done.seen == (("blue", "square", "middle center"), ("red", "circle", "top left"))
    assert done.fits_prompt and done.fits_instruction and done.complete and done.command is None
    more = phrases.parse_inspection(OK + "not yet painted, no fault: a yellow star.")
    assert more.seen is None and more.fits_instruction and not more.complete
    wrong = phrases.parse_inspection(
        "seen: nothing. the instruction fits the prompt. the sketch does not fit the instruction: "
        "the red circle at top left is missing. <refine>add a red circle at top left</refine>"
    )
    assert wrong.seen == () and wrong.fits_prompt and wrong.fits_instruction is False
    assert wrong.command == "add a red circle at top left"
    conflict = phrases.parse_inspection(
        SEEN + "the instruction does not fit the prompt: it should be blue. <refine>change the red "
        "circle at top left to blue</refine>"
    )
    assert not conflict.fits_prompt and conflict.fits_instruction is None and conflict.command


@pytest.mark.parametrize(
    "text",
    [
        "",
        "seen: red dog top left. " + OK + "the picture is complete.",
        SEEN,
        SEEN + OK,
        SEEN + OK + "the picture is done.",
        OK + "the picture is complete. <refine>add a star</refine>",
        "the instruction does not fit the prompt: it should be blue.",
        "the instruction fits the prompt. the sketch does not fit the instruction: it is red.",
        "the instruction fits the prompt. <refine>",
    ],
)
def test_malformed_inspections(text):
    assert phrases.parse_inspection(text) is None
