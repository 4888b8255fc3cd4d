"""Scripts without faults: splits, order, and every kind of detour."""

from __future__ import annotations

import collections

import numpy as np
import pytest

from process_gen.strokes import prompts, script
from process_gen.strokes.layout import wanted


def write(prompt, seed, **changes):
    settings = {"diversify": 0.0, "split": 0.0, "shuffle": 0.0, "max_steps": 5} | changes
    groups = wanted(prompts.parse(prompt))
    return script.write(np.random.default_rng(seed), groups, **settings)


def ops(story):
    return [beat.op for beat in story.beats]


def test_one_step_a_group_in_the_order_of_the_prompt():
    story = write("two red circles above an orange star and a red square", 0)
    said = [beat.instruction.split(" at ")[0] for beat in story.beats]
    assert said == ["add two red circles", "add an orange star", "add a red square"]
    assert story.remaining(story.beats[0].after) == [1, 0, 1]  # the star is included first
    assert story.remaining(story.beats[-1].after) == [0, 0, 0]


def test_split():
    sizes = {tuple(len(b.ids) for b in write("four stars", s, split=1.0).beats) for s in range(30)}
    assert sizes == {(1, 3), (2, 2), (3, 1)}
    assert [len(b.ids) for b in write("two stars", 0, split=1.0).beats] == [2]


def test_shuffle():
    first = collections.Counter(
        write("a circle and a star", s, shuffle=1.0).beats[0].instruction.split()[-4]
        for s in range(200)
    )
    assert 60 < first["circle"] < 140


@pytest.mark.parametrize(
    "prompt",
    [
        "four stars",
        "a circle and a star",
        "a red circle left of a star",
        "two red circles above an orange star and a red square",
    ],
)
def test_detours_end_where_the_prompt_wants(prompt):
    seen = set()
    for seed in range(150):
        story = write(prompt, seed, diversify=1.0, split=0.3)
        seen |= set(ops(story))
        assert len(story.beats) <= 5
        assert story.remaining(story.beats[-1].after) == [0] * len(story.groups)
        assert not any(held for _, held in story.beats[-1].after.values())
        for one, other in zip(story.beats, story.beats[1:], strict=False):
            assert one.after == other.before
        # Before the last step something is missing or too much: it never looks complete.
        before = story.beats[-1].before
        assert any(story.remaining(before)) or any(held for _, held in before.values())
    assert {"add", "remove"} <= seen
    assert ("swap" in seen) == (prompt != "four stars")


def test_max_steps_forbids_detours():
    prompt = "two red circles above an orange star and a red square"
    assert all(ops(write(prompt, s, diversify=1.0, max_steps=3)) == ["add"] * 3 for s in range(30))


def test_a_single_object_has_no_detour():
    assert all(ops(write("a red star", s, diversify=1.0)) == ["add"] for s in range(30))
