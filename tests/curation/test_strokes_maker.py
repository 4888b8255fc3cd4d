from __future__ import annotations

import collections

import numpy as np
import pytest

from process_gen.core.errors import DataError
from process_gen.core.trajectory import Step
from process_gen.curation.protocols import CheckRequest, DrawRequest, Failed, PlanRequest
from process_gen.curation.strokes_judge import OracleJudge
from process_gen.curation.strokes_maker import (
    StrokesDrafter,
    StrokesPlanner,
    StrokesPrompts,
    placed,
)
from process_gen.strokes.oracle import read
from process_gen.strokes.plans import StrokesOptions, trajectory_at
from process_gen.strokes.prompts import TAGS, check, held_out
from process_gen.strokes.render import render
from process_gen.strokes.scene import Scene, SceneObject

PROMPTS = StrokesPrompts(dict.fromkeys(TAGS, 1.0), 400, 1)
PLANNER = StrokesPlanner(StrokesOptions(diversify=0.6))


def test_prompts_follow_the_weights_and_are_never_held_out():
    some = StrokesPrompts({"complex": 3.0, "position": 1.0}, 400, 2)
    tags = collections.Counter(check(some[i])["tag"] for i in range(400))
    assert set(tags) == {"complex", "position"} and 240 < tags["complex"] < 360
    assert not any(
        held_out(prompts[i]["prompt"]) for prompts in (some, PROMPTS) for i in range(400)
    )
    assert [some[i] for i in (3, 1, 3)] == [some[3], some[1], some[3]]
    assert some[3] != StrokesPrompts({"complex": 3.0, "position": 1.0}, 400, 3)[3]
    # The order of the tags decides which prompt a number is, and so it is part of the name.
    turned = StrokesPrompts({"position": 1.0, "complex": 3.0}, 400, 2)
    assert [turned[i] for i in range(9)] != [some[i] for i in range(9)]
    same = StrokesPrompts({"complex": 3.0, "position": 1.0}, 400, 2)
    assert turned.fingerprint != some.fingerprint == same.fingerprint
    with pytest.raises(DataError, match="no prompt 400"):
        some[400]
    bare = StrokesPrompts({"complex": 3.0, "position": 1.0}, 400, 2, uncolored=0.5)
    assert bare.fingerprint not in (some.fingerprint, turned.fingerprint)
    unnamed = [i for i in range(400) if any("color" not in g for g in bare[i]["include"])]
    assert any(bare[i]["tag"] == "complex" for i in unnamed)
    assert not any(held_out(bare[i]["prompt"]) for i in range(400))


def test_plans_draw_on_all_operations_and_end_in_what_is_asked_for():
    operations = collections.Counter()
    for index in range(60):
        prompt = PROMPTS[index]["prompt"]
        (steps,) = PLANNER.plan([PlanRequest(prompt, {}, index)])
        operations.update(step.operation for step in steps)
        previous, earlier = None, ()
        for step in steps:
            request = DrawRequest(step.instruction, step.description, previous, index)
            (previous,) = StrokesDrafter().draw([request])
            (verdict,) = OracleJudge().check(
                [CheckRequest(prompt, {}, earlier, step.plan, previous)]
            )
            assert verdict.ok, verdict
            earlier = (*earlier, Step(step.plan, previous, verdict.inspection))
        assert verdict.inspection.endswith("the picture is complete.")
    assert set(operations) == {"add", "modify", "swap", "remove"}
    assert PLANNER.plan([PlanRequest("a star", {}, 5)]) == PLANNER.plan(
        [PlanRequest("a star", {}, 5)]
    )


def test_held_out_and_foreign_prompts_are_refused():
    prompt = next(
        t.prompt
        for t in (trajectory_at(0, i, StrokesOptions(prompts="held_out")) for i in range(99))
        if held_out(t.prompt)
    )
    refused, foreign = PLANNER.plan([PlanRequest(p, {}, 0) for p in (prompt, "a dog")])
    assert refused == Failed("a prompt that is held out", prompt)
    assert foreign == Failed("a prompt that is not of the Strokes world", "a dog")
    (broken,) = StrokesDrafter().draw([DrawRequest("add a dog", "a dog", None, 0)])
    assert broken == Failed("a description that cannot be read", "a dog")


def test_what_a_picture_shows_already_stays_to_the_pixel():
    for index in range(40):
        painting = trajectory_at(3, index, StrokesOptions(misalignment=0.0, conflict=0.0))
        sketch = painting.steps[-1].sketch
        description = painting.steps[-1].plan.split("<des>")[1].removesuffix("</des>")
        (again,) = StrokesDrafter().draw([DrawRequest("", description, sketch, 99)])
        (fresh,) = StrokesDrafter().draw([DrawRequest("", description, None, 99)])
        assert np.array_equal(again, sketch)
        assert read(fresh).placed == read(sketch).placed and not np.array_equal(fresh, sketch)


def test_an_object_is_placed_only_where_it_is_shown():
    item = SceneObject("star", "red", 0, 2, dx=0.4, dy=-0.2, radius=4.0)
    drawn = render(Scene((item,)))
    middle = SceneObject("star", "red", 0, 2)
    assert placed(middle, drawn) == item
    for other in (SceneObject("star", "red", 1, 2), SceneObject("star", "blue", 0, 2)):
        assert placed(other, drawn) is None
    assert placed(middle, None) is None
    assert placed(middle, np.zeros((8, 8, 3), np.uint8)) is None


def test_a_careless_drafter_makes_one_fault():
    right = wrong = 0
    for index in range(60):
        prompt = PROMPTS[index]["prompt"]
        (steps,) = PLANNER.plan([PlanRequest(prompt, {}, index)])
        request = DrawRequest(steps[0].instruction, steps[0].description, None, index)
        for faults in (0.0, 1.0):
            (sketch,) = StrokesDrafter(faults).draw([request])
            (verdict,) = OracleJudge(1).check([CheckRequest(prompt, {}, (), steps[0].plan, sketch)])
            right, wrong = right + verdict.ok, wrong + (verdict.fault == "misalignment")
    assert right == wrong == 60
