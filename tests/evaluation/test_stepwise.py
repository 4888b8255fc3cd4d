"""Step by step metrics on paintings whose faults are known."""

from __future__ import annotations

import dataclasses

import pytest

from process_gen.core.trajectory import Step, Trajectory, plan_text
from process_gen.evaluation import probes, stepwise
from process_gen.strokes.consistency import as_seen, extends_to
from process_gen.strokes.phrases import COMPLETE, FITS_INSTRUCTION, FITS_PROMPT, parse_state
from process_gen.strokes.plans import StrokesOptions, trajectory_at
from process_gen.strokes.prompts import parse
from process_gen.strokes.render import render
from process_gen.strokes.scene import EASY, HARD, Scene, SceneObject

FAULTS = StrokesOptions(conflict=0.4, misalignment=0.5)
NUM = 120


@pytest.fixture(scope="module")
def painted():
    return [
        dataclasses.replace(trajectory_at(5, i, FAULTS), finish_reason="finished")
        for i in range(NUM)
    ]


def value(rates, name):
    return rates[name]["rate"], rates[name]["n"]


def test_supervised_paintings_are_perfect(painted):
    rates = stepwise.painting_rates(painted)
    inspection = rates["inspection"]
    for name in ("precision", "recall", "recall_misaligned", "recall_conflict", "repaired"):
        rate, n = value(inspection, name)
        assert rate == 1.0 and n > 20, name
    for name in ("false_alarms", "false_alarms_unfinished", "damaged"):
        rate, n = value(inspection, name)
        assert rate == 0.0 and n > 40, name
    assert value(inspection, "seen_right")[0] == 1.0
    assert value(inspection, "says_complete_right")[0] == 1.0
    assert value(rates, "plan_correct") == (1.0, NUM)
    assert value(rates, "stopped_early") == (0.0, NUM)
    assert value(rates, "painted_on")[0] == 0.0
    assert rates["unjudged"] == 0
    # Older objects are among what rendered faults spoil.
    assert 0.0 < value(rates, "drift")[0] < 0.2


def blind(step: Step) -> Step:
    """The same step by an inspector that approves of everything."""
    fine = f"seen: nothing. {FITS_PROMPT} {FITS_INSTRUCTION} {COMPLETE}"
    return dataclasses.replace(step, inspection=fine, refined_plan=None, refined=None)


def test_an_inspector_that_approves_of_everything_finds_nothing(painted):
    accepted = [dataclasses.replace(t, steps=tuple(blind(s) for s in t.steps)) for t in painted]
    rates = stepwise.painting_rates(accepted)
    assert value(rates["inspection"], "recall")[0] == 0.0
    assert value(rates["inspection"], "precision") == (None, 0)
    assert value(rates["inspection"], "repaired")[0] == 0.0
    assert value(rates["inspection"], "seen_right")[0] < 0.05
    assert value(rates["inspection"], "says_complete_right")[0] < 1.0


def test_a_repair_that_spoils_more_is_damage(painted):
    blank = render(Scene())

    def meddled(step: Step) -> Step:
        text = f"{step.inspection} <refine>start again</refine>"
        return step if step.rejected else dataclasses.replace(step, inspection=text, refined=blank)

    rates = stepwise.painting_rates(
        [dataclasses.replace(t, steps=tuple(meddled(s) for s in t.steps)) for t in painted]
    )
    assert value(rates["inspection"], "damaged")[0] == 1.0
    assert value(rates["inspection"], "false_alarms")[0] == 1.0
    assert value(rates["inspection"], "precision")[0] < 0.6


RED = SceneObject("circle", "red", 0, 0)
BLUE = SceneObject("square", "blue", 2, 2)


def painting(*steps, prompt="a red circle and a blue square"):
    return Trajectory(prompt, steps=steps, finish_reason="finished", metadata=parse(prompt))


def one(objects, words, inspection="fine."):
    return Step(plan_text("x", words), render(Scene(tuple(objects))), inspection)


FIRST = one([RED], "a red circle at top left")
BOTH = "a red circle at top left, a blue square at bottom right"


def test_an_old_object_that_changes_is_drift():
    kept = painting(FIRST, one([RED, BLUE], BOTH))
    moved = dataclasses.replace(RED, col=1)
    lost = painting(FIRST, one([moved, BLUE], BOTH))
    assert value(stepwise.painting_rates([kept]), "drift") == (0.0, 1)
    assert value(stepwise.painting_rates([lost]), "drift") == (1.0, 1)


def test_stopping_too_early_and_painting_on():
    early = stepwise.painting_rates([painting(FIRST)])
    assert value(early, "stopped_early") == (1.0, 1) and value(early, "plan_correct")[0] == 0.0
    both = one([RED, BLUE], BOTH)
    on = stepwise.painting_rates([painting(FIRST, both, both)])
    assert value(on, "painted_on") == (0.5, 2) and value(on, "stopped_early")[0] == 0.0


def test_painting_on_after_a_repair():
    """What a step ended with counts, not the sketch that it began with."""
    right, half = render(Scene((RED, BLUE))), render(Scene((RED,)))
    plan, less = plan_text("x", BOTH), plan_text("x", "a red circle at top left")
    said = "no. <refine>repaint</refine>"
    mended = Step(plan, half, said, plan, right)
    spoiled = Step(plan, right, said, less, half)
    both = one([RED, BLUE], BOTH)
    for step, wanted in ((mended, 1.0), (spoiled, 0.0)):
        assert value(stepwise.painting_rates([painting(step, both)]), "painted_on") == (wanted, 1)


def test_steps_that_cannot_be_read_are_counted():
    rates = stepwise.painting_rates([painting(FIRST, one([RED], "a thing"))])
    assert rates["unjudged"] == 1 and rates["steps"] == 1
    assert value(rates, "plan_correct")[0] == 0.0


@pytest.mark.parametrize(
    "state, wanted",
    [
        ("a red circle at top left", True),
        ("a green circle at top left", False),
        ("a green circle at top left as a placeholder", True),
        ("two red circles at top left and top right", False),
        ("a red circle at top left, a star at top right", None),
    ],
)
def test_plans_that_can_become_the_prompt(state, wanted):
    requirement = parse("a red circle left of a blue square")
    parsed = parse_state(state)
    if wanted is None:
        assert parsed is None
        return
    objects = [as_seen(placed) for placed, holds in parsed if not holds]
    assert extends_to(objects, requirement) is wanted


def test_a_violated_relation_cannot_be_mended_by_adding():
    requirement = parse("a red circle left of a blue square")
    for words, wanted in (
        ("a red circle at top left, a blue square at top right", True),
        ("a red circle at top right, a blue square at top left", False),
    ):
        objects = [as_seen(placed) for placed, _ in parse_state(words)]
        assert extends_to(objects, requirement) is wanted


@pytest.mark.parametrize(
    ("world", "prompt", "state", "wanted"),
    [
        (EASY, "a red circle and a blue square", "{} at top left, {} at top right", True),
        (EASY, "a red circle and a blue square", "{} at top left, {} at top left", False),
        (HARD, "a red small star and a blue large bar", "{} at top left, {} at top left", True),
        (HARD, "a red small star and a red large bar", "{} at top left, {} at top left", False),
        (HARD, "a red large star and a blue large bar", "{} at top left, {} at top left", False),
    ],
)
def test_what_cannot_be_drawn_is_neither_complete_nor_consistent(world, prompt, state, wanted):
    """Two things in one cell, but for the hard world's, of two layers and colours."""
    words = state.format(*prompt.split(" and "))
    plan = stepwise.planned(plan_text("x", words), world)
    requirement = parse(prompt, world)
    assert stepwise.complete(plan, requirement, world) is wanted
    assert stepwise.consistent(plan, requirement, world) is wanted


def test_a_placeholder_takes_a_cell_too():
    words = "a red circle at top left, a blue star at {} as a placeholder"
    requirement = parse("a red circle and a blue square")
    for place, wanted in (("top right", True), ("top left", False)):
        plan = stepwise.planned(plan_text("x", words.format(place)))
        assert stepwise.consistent(plan, requirement) is wanted


def test_probes_end_where_the_question_begins():
    made = probes.make_probes(40, 60, seed=3)
    assert sum(p.faulty for p in made) == 40 and len(made) == 100
    for probe in made:
        last = probe.start.steps[-1]
        assert last.sketch is not None and last.inspection is None
        check = stepwise.check_step(
            dataclasses.replace(last, inspection="fine."), probe.start.metadata
        )
        assert check is not None and check.faulty == probe.faulty
    again = probes.make_probes(40, 60, seed=3)
    assert [p.start.prompt for p in made] == [p.start.prompt for p in again]
    assert [p.start.prompt for p in made] != [
        p.start.prompt for p in probes.make_probes(40, 60, seed=4)
    ]


def test_probes_are_scored_at_their_own_step():
    made = probes.make_probes(10, 10)
    fine = [
        dataclasses.replace(
            p.start,
            steps=(*p.start.steps[:-1], blind(p.start.steps[-1]), p.start.steps[-1]),
        )
        for p in made
    ]
    rates = probes.score(made, fine)
    assert rates["n"] == 20 and rates["unjudged"] == 0
    assert value(rates, "recall") == (0.0, 10) and value(rates, "damaged") == (0.0, 10)
    unread = probes.score(made, [p.start for p in made])
    assert unread["unjudged"] == 20
