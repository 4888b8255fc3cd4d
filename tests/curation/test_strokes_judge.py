"""The oracle's words: the same as those that the Strokes world was trained with."""

from __future__ import annotations

import collections
import dataclasses

import numpy as np
import pytest

from process_gen.core.trajectory import Step, plan_text
from process_gen.curation.protocols import CheckRequest, Failed, Verdict
from process_gen.curation.strokes_judge import OracleJudge, differences
from process_gen.strokes import phrases
from process_gen.strokes.plans import StrokesOptions, trajectory_at
from process_gen.strokes.render import render
from process_gen.strokes.scene import PLACES, Scene, SceneObject

JUDGE = OracleJudge()


def thing(words):
    """ "red circle top left" -> the object."""
    color, shape, place = words.split(" ", 2)
    row, col = divmod(PLACES.index(place), 3)
    return SceneObject(shape, color, row, col)


def state(text, placeholders=()):
    return [(thing(t.strip()), t.strip() in placeholders) for t in text.split(",") if t.strip()]


def picture(text, noise=0.0):
    drawn = render(Scene(tuple(item for item, _ in state(text))))
    if noise:
        rng = np.random.default_rng(0)
        drawn = np.clip(drawn + rng.normal(0, noise, drawn.shape), 0, 255).astype(np.uint8)
    return drawn


def check(prompt, before, instruction, after, shown, placeholders=(), **settings):
    """The verdict on a step from the state `before` to `after`, of which `shown` is painted."""
    earlier = ()
    if before:
        said = plan_text("whatever", phrases.describe(state(before, placeholders)))
        earlier = (Step(said, picture(before), "fine"),)
    plan = plan_text(instruction, phrases.describe(state(after, placeholders)))
    shown = picture(shown) if isinstance(shown, str) else shown
    request = CheckRequest(prompt, {}, earlier, plan, shown, 3)
    (verdict,) = OracleJudge(**settings).check([request])
    return verdict


def test_rendered_paintings_are_inspected_in_the_same_words():
    """Where the words leave a choice, other cells, another order or another group may be named."""
    options = StrokesOptions(conflict=0.4, misalignment=0.45, diversify=0.4)
    counts = collections.Counter()
    for index in range(220):
        painting = trajectory_at(5, index, options)
        for number, step in enumerate(painting.steps):
            request = CheckRequest(
                painting.prompt, {}, painting.steps[:number], step.plan, step.sketch, index
            )
            (verdict,) = JUDGE.check([request])
            assert isinstance(verdict, Verdict), verdict
            said = verdict.inspection
            assert verdict.ok == (not step.rejected)
            assert (verdict.fault == "conflict") == (step.refined_plan is not None)
            assert phrases.parse_inspection(said) is not None
            assert said.split(".")[0] == step.inspection.split(".")[0]
            same = said == step.inspection and verdict.corrected_plan == step.refined_plan
            counts[verdict.kind if verdict.fault else "right", same] += 1
            if not same:
                assert verdict.kind.split()[-1] in ("relation", "swap", "color")
    kinds = {kind for kind, _ in counts}
    assert {"count", "relation", "color", "shape", "place", "missing", "extra"} <= kinds
    differing = sum(n for (_, same), n in counts.items() if not same)
    assert sum(counts.values()) > 400 and differing < 0.04 * sum(counts.values())


RED_BLUE = "a red circle left of a blue square"


def test_a_right_step_says_that_missing_things_are_no_fault():
    verdict = check(
        RED_BLUE, "", "add a blue square at top right", "blue square top right",
        "blue square top right",
    )  # fmt: skip
    assert verdict.inspection == (
        "seen: blue square top right. the instruction fits the prompt. the sketch fits the "
        "instruction. not yet painted, no fault: a red circle."
    )


@pytest.mark.parametrize(
    ("shown", "kind", "ends_in"),
    [
        ("blue square top right", "missing", "the red circle at top left is missing. "
         "<refine>add a red circle at top left</refine>"),
        ("red circle top left", "old missing", "the blue square at top right is missing. "
         "<refine>add a blue square at top right</refine>"),
        ("red circle top left, blue star top right", "old shape", "the blue star at top right "
         "should be a blue square. <refine>change the blue star at top right to a blue square"
         "</refine>"),
        ("green circle top left, blue square top right", "color", "the circle at top left should "
         "be red, it is green. <refine>change the green circle at top left to red</refine>"),
        ("red circle top left, blue square bottom right", "old place", "the blue square at bottom "
         "right should be at top right. <refine>move the blue square at bottom right to top right"
         "</refine>"),
        ("red circle top left, blue square top right, white star bottom left", "extra",
         "the white star at bottom left should not be there. "
         "<refine>remove the white star at bottom left</refine>"),
        ("blue square top left, red circle top right", "swap", "the blue square and the red circle "
         "should be swapped. <refine>swap the blue square at top left and the red circle at top "
         "right</refine>"),
        ("red star top left, blue circle top right", "shape + old shape", "the red star at top "
         "left should be a red circle and the blue circle at top right should be a blue square. "
         "<refine>change the red star at top left to a red circle and change the blue circle at "
         "top right to a blue square</refine>"),
    ],
)  # fmt: skip
def test_own_faults_have_words(shown, kind, ends_in):
    verdict = check(
        RED_BLUE, "blue square top right", "add a red circle at top left",
        "blue square top right, red circle top left", shown,
    )  # fmt: skip
    assert verdict.fault == "misalignment" and verdict.kind == kind
    assert verdict.inspection.endswith(f"the sketch does not fit the instruction: {ends_in}")
    parsed = phrases.parse_inspection(verdict.inspection)
    assert parsed is not None and parsed.fits_instruction is False
    assert parsed.seen == tuple(sorted((o.color, o.shape, o.place) for o, _ in state(shown)))


def test_a_faint_object_is_missing():
    drawn = picture("blue square top right, red circle top left").astype(float)
    drawn[:12, :12] = 26 + 0.3 * (drawn[:12, :12] - 26)
    verdict = check(
        RED_BLUE, "blue square top right", "add a red circle at top left",
        "blue square top right, red circle top left", drawn.astype(np.uint8),
    )  # fmt: skip
    assert verdict.kind == "missing" and verdict.command == "add a red circle at top left"


@pytest.mark.parametrize(
    ("instruction", "after", "kind", "why", "command", "corrected"),
    [
        ("add a green circle at top left", "green circle top left", "color",
         "it should be red", "change the green circle at top left to red",
         "add a red circle at top left"),
        ("add a red star at top left", "red star top left", "shape",
         "it should be a red circle", "change the red star at top left to a red circle",
         "add a red circle at top left"),
        ("add two red circles at top left and middle left", "red circle top left, red circle middle"
         " left", "count", "it should be a red circle", "remove the red circle at middle left",
         "add a red circle at top left"),
    ],
)  # fmt: skip
def test_a_plan_that_contradicts_the_prompt(instruction, after, kind, why, command, corrected):
    square = "blue square top center"
    verdict = check(RED_BLUE, square, instruction, f"{square}, {after}", f"{square}, {after}")
    assert (verdict.fault, verdict.kind) == ("conflict", kind)
    assert verdict.inspection.endswith(
        f"the instruction does not fit the prompt: {why}. <refine>{command}</refine>"
    )
    described = "a blue square at top center, a red circle at top left"
    assert verdict.corrected_plan == plan_text(corrected, described)


def test_an_object_on_the_wrong_side_is_moved_to_the_right_one():
    both = "blue square top center, red circle bottom right"
    verdict = check(
        RED_BLUE, "blue square top center", "add a red circle at bottom right", both, both
    )
    assert "it should be left of the blue square." in verdict.analysis
    assert verdict.command.startswith("move the red circle at bottom right to ")
    assert verdict.command.endswith(" left")
    assert verdict.command.split(" to ")[1] in verdict.corrected_plan


def test_with_no_cell_on_the_right_side_the_two_are_swapped():
    both = "blue square middle left, red circle bottom right"
    verdict = check(
        RED_BLUE, "blue square middle left", "add a red circle at bottom right", both, both
    )
    assert verdict.command == (
        "swap the red circle at bottom right and the blue square at middle left"
    )
    assert verdict.corrected_plan == plan_text(
        verdict.command, "a blue square at bottom right, a red circle at middle left"
    )


@pytest.mark.parametrize(
    ("instruction", "after", "shown", "reason", "fault"),
    [
        ("add a red circle at top left", "red circle top right", "red circle top right",
         "an instruction that its description does not follow", None),
        ("paint something", "red circle top left", "red circle top left",
         "an instruction that its description does not follow", None),
        ("add a red circle at top left as a placeholder", "red circle top left",
         "red circle top left", "an instruction that its description does not follow", None),
        ("add a green star at top left", "green star top left", "green star top left",
         "a plan of which it is unclear what was meant", "conflict"),
        ("add a green circle at top left", "green circle top left", "red circle top left",
         "a plan that contradicts the prompt, and a sketch of something else", "conflict"),
        ("add three red circles at top left and middle left and bottom left",
         "red circle top left, red circle middle left, red circle bottom left", "",
         "a plan with several objects too many", "conflict"),
    ],
)  # fmt: skip
def test_what_has_no_words_is_a_failure_with_its_reason(instruction, after, shown, reason, fault):
    verdict = check(RED_BLUE, "", instruction, after, shown)
    assert isinstance(verdict, Failed) and (verdict.reason, verdict.fault) == (reason, fault)


def test_too_many_faults_and_stray_marks_are_failures_that_know_of_a_fault():
    after = "red circle top left, blue square top right"
    add = "add a red circle at top left"
    before = "blue square top right"
    shown = "green star top left, white star top right"
    assert check(RED_BLUE, before, add, after, shown).kind == "shape + old shape"
    many = check(RED_BLUE, before, add, after, shown, max_faults=1)
    assert many == Failed("too many faults in one sketch", fault="misalignment")
    marked = picture(after)
    marked[28:31, 2:12] = (38, 191, 64)
    stray = check(RED_BLUE, before, add, after, marked)
    assert stray == Failed("marks that are no object", fault="misalignment")


def test_foreign_prompts_and_broken_plans_are_failures():
    request = CheckRequest("a dog", {}, (), plan_text("add a dog", "a dog"), None)
    (foreign,) = JUDGE.check([request])
    assert isinstance(foreign, Failed) and "not of the Strokes world" in foreign.reason
    for plan in ("", "<ins>a</ins>", plan_text("add", "two red circles at top left")):
        (broken,) = JUDGE.check([dataclasses.replace(request, prompt="a star", plan=plan)])
        assert broken == Failed("a plan that cannot be read", plan)


def test_a_plan_alone_can_be_judged():
    plan = plan_text("add a red star at top left", "a red star at top left")
    right, wrong = JUDGE.check(
        [CheckRequest(prompt, {}, (), plan, None) for prompt in ("a star", "a circle")]
    )
    assert right == Verdict("the instruction fits the prompt.")
    assert wrong.fault == "conflict" and not wrong.analysis.startswith("seen")


def test_noise_does_not_make_faults():
    after = "red circle top left, blue square top right"
    noisy = picture(after, noise=8.0)
    verdict = check(RED_BLUE, "blue square top right", "add a red circle at top left", after, noisy)
    assert verdict.ok and verdict.inspection.endswith("the picture is complete.")


def test_differences_take_the_fewest_sentences():
    def kinds(planned, seen):
        pairs = [[item for item, _ in state(text)] for text in (planned, seen)]
        return [kind for kind, _, _ in differences(*pairs)]

    assert kinds("red star top left", "red star top left") == []
    two = "red star top left, red star top right"
    assert kinds(two, "red star top left, red star bottom left") == ["place"]
    assert kinds(two, "red star middle left, red star bottom left") == ["place", "place"]
    assert kinds(two, "") == ["missing", "missing"]
    assert kinds("red star top left", "blue circle top right") == ["missing", "extra"]
