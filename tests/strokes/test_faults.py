"""Faults: each kind occurs where it can, says what is wrong, and can be decided."""

from __future__ import annotations

import collections

import numpy as np
import pytest

from process_gen.strokes import faults, prompts, script
from process_gen.strokes.layout import wanted


def story_of(prompt, rng, **changes):
    settings = {"diversify": 0.0, "split": 0.0, "shuffle": 0.0, "max_steps": 5} | changes
    return script.write(rng, wanted(prompts.parse(prompt)), **settings)


def draw(make, prompt, n=200, **changes):
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(n):
        story = story_of(prompt, rng, **changes)
        drawn.append((story, make(rng, story)))
    return drawn


@pytest.mark.parametrize(
    ("prompt", "kinds"),
    [
        ("a star", {"shape", "count"}),  # no colour is wrong
        ("a red star", {"color", "shape", "count"}),
        ("a circle left of a star", {"shape", "count", "relation"}),
        ("a red circle and a blue star", {"color", "shape", "count"}),
        ("two red circles above a blue star", {"color", "shape", "count", "relation"}),
    ],
)
def test_conflicts(prompt, kinds):
    drawn = draw(faults.conflict, prompt)
    assert {fault.kind for _, fault in drawn} == kinds
    for story, fault in drawn:
        beat = story.beats[fault.step]
        assert fault.instruction != beat.instruction
        assert fault.canvas != beat.after
        assert all(fault.canvas[n] == beat.before[n] for n in beat.before)  # the past stays


def test_a_wrong_colour_is_decidable():
    # Either circle could be meant while none is painted, so the colour is wrong only for the last.
    prompt = "a red circle left of a blue circle and a green star"
    found = collections.Counter(
        fault.step for _, fault in draw(faults.conflict, prompt) if fault.kind == "color"
    )
    assert found[0] == 0 and found[1] > 10 and found[2] > 10


def test_a_wrong_shape_is_decidable():
    drawn = draw(faults.conflict, "a circle and a square")
    assert {fault.step for _, fault in drawn if fault.kind == "shape"} == {1}
    assert {fault.why for _, fault in drawn if fault.step == 1} <= {"it should be a square"}


def test_relation_conflicts_name_the_relation():
    drawn = draw(faults.conflict, "a circle left of a red star", shuffle=1.0)
    said = {fault.why for _, fault in drawn if fault.kind == "relation"}
    assert said == {"it should be right of the circle", "it should be left of the red star"}


@pytest.mark.parametrize("prompt", ["a star", "a red circle and a blue star"])
def test_misalignments(prompt):
    drawn = draw(faults.misalignment, prompt)
    kinds = set(faults.MISALIGNMENTS) - ({"swap"} if prompt == "a star" else set())
    assert {fault.kind for _, fault in drawn} == kinds
    for story, fault in drawn:
        beat = story.beats[fault.step]
        assert fault.instruction is None
        changed = set(fault.canvas.items()) ^ set(beat.after.items())
        assert changed and len({number for number, _ in changed}) == 1 + (fault.kind == "swap")


def test_older_objects_change_too():
    older = 0
    for story, fault in draw(faults.misalignment, "a red circle and a blue star"):
        beat = story.beats[fault.step]
        older += any(fault.canvas.get(n) != beat.before[n] for n in beat.before)
    assert older > 10


def test_changes_may_stay_undone():
    undone = collections.Counter()
    for story, fault in draw(
        faults.misalignment, "a red circle left of a star", 600, diversify=1.0
    ):
        beat = story.beats[fault.step]
        drawn, before = ([o for o, _ in c.values()] for c in (fault.canvas, beat.before))
        undone[beat.op] += drawn == before and beat.op != "add"
    assert undone["change"] > 5 and undone["remove"] > 5 and undone["swap"] > 5
