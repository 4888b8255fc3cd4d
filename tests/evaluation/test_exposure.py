"""Steps after own and after true ones, on paintings whose mistakes are known."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from process_gen.core.trajectory import validate
from process_gen.evaluation import exposure
from process_gen.strokes.plans import StrokesOptions, build_trajectory
from process_gen.strokes.prompts import held_out
from process_gen.strokes.render import render
from process_gen.strokes.scene import Scene

HELD_OUT = StrokesOptions(prompts="held_out", conflict=0.0, misalignment=0.0, diversify=0.0)


@pytest.fixture(scope="module")
def starts():
    return exposure.make_starts(3, seed=1)


def finished(start):
    """A right painting of the prompt, as many steps as it takes."""
    return build_trajectory(np.random.default_rng(0), start.start.metadata, HELD_OUT)


def test_each_prompt_begins_twice(starts):
    assert len(starts) == 2 * 3 * len(exposure.TAGS)
    for own, true in zip(starts[0::2], starts[1::2], strict=True):
        assert own.start.prompt == true.start.prompt and own.at == true.at >= 1
        assert own.start.steps == () and len(true.start.steps) == true.at
        assert not any(step.rejected for step in true.start.steps)
        tag = own.start.metadata["tag"]
        assert tag == "two_object" or held_out(own.start.prompt)
        validate(true.start)
    again = exposure.make_starts(3, seed=1)
    assert [s.at for s in again] == [s.at for s in starts]
    other = exposure.make_starts(3, seed=2)
    assert [s.start.prompt for s in other] != [s.start.prompt for s in starts]


def test_right_steps_have_no_difference(starts):
    starts = [dataclasses.replace(s, at=1) for s in starts]
    scores = exposure.score(starts, [finished(s) for s in starts])
    assert scores["n"] == len(starts) // 2 == scores["true_minus_own"]["pairs"]
    for kind in ("own", "true"):
        found = scores[kind]
        assert found["judged"] == scores["n"] and found["ended"] == found["unjudged"] == 0
        assert found["plan_consistent"]["rate"] == found["sketch_aligned"]["rate"] == 1.0
    assert scores["true_minus_own"]["sketch_aligned"]["rate"] == 0.0
    assert scores["true_minus_own"]["sketch_aligned"]["low"] < 0


def test_what_own_context_spoils_is_the_difference(starts):
    starts = [dataclasses.replace(s, at=1) for s in starts]
    painted = [finished(s) for s in starts]
    blank = render(Scene())
    for i in range(0, len(painted), 2):  # those of the prompt alone
        first, second, *rest = painted[i].steps
        second = dataclasses.replace(second, sketch=blank)
        painted[i] = dataclasses.replace(painted[i], steps=(first, second, *rest))
    found = exposure.score(starts, painted)["true_minus_own"]
    assert found["sketch_aligned"]["rate"] == 1.0 and found["sketch_aligned"]["low"] > 0
    assert found["sketch_aligned"]["better"] == found["pairs"] == found["sketch_aligned"]["n"]
    assert found["plan_consistent"]["rate"] == 0.0


def test_paintings_without_the_step_are_counted(starts):
    scores = exposure.score(starts, [s.start for s in starts])
    for kind in ("own", "true"):
        assert scores[kind]["ended"] == scores["n"] and scores[kind]["judged"] == 0
        assert scores[kind]["sketch_aligned"]["rate"] is None
    assert scores["true_minus_own"]["pairs"] == 0
    assert scores["true_minus_own"]["plan_consistent"]["rate"] is None
