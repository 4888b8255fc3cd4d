from __future__ import annotations

import dataclasses
import functools

import numpy as np
import pytest

from process_gen.core.trajectory import Sampled, Step, Trajectory, parse_plan
from process_gen.evaluation import choosing, stepwise
from process_gen.evaluation.strokes import best_of
from process_gen.strokes import oracle, phrases
from process_gen.strokes.layout import draw_objects, wanted
from process_gen.strokes.prompts import TAGS, held_out_requirements
from process_gen.strokes.render import render
from process_gen.strokes.scene import EASY, HARD, Scene


def objects(rng, requirement, world):
    groups = draw_objects(rng, wanted(requirement), world)
    return tuple(item for group in groups for item in group)


def candidates(world):
    """Four pictures of each prompt: another colour, the right one, one object short, empty."""
    rng = np.random.default_rng(3)
    painted = []
    for tag in TAGS:
        for requirement in held_out_requirements(tag, 2, 0, world):
            found = objects(rng, requirement, world)
            color = "white" if found[0].color != "white" else "red"
            other = dataclasses.replace(found[0], color=color)
            for sample, scene in enumerate([(other, *found[1:]), found, found[:-1], ()]):
                painted.append(
                    Trajectory(
                        requirement["prompt"],
                        "one_shot",
                        final_image=render(Scene(scene, world)),
                        metadata=requirement,
                        sampled=Sampled(len(painted) // 4, sample, 0, 16, 0.1),
                    )
                )
    return painted


def perfect(world, asked, metadata):
    """An inspector with the oracle's eyes; `metadata` has the prompts' requirements."""

    def inspect(starts):
        asked.append(starts)
        said = []
        for start in starts:
            requirement = metadata[start.prompt]
            (step,) = start.steps
            seen = oracle.read(step.sketch, world).placed
            words = ", ".join(" ".join(placed) for placed in seen) or "nothing"
            state = phrases.parse_state(parse_plan(step.plan)[1], world)
            fits = f"{phrases.FITS_PROMPT} {phrases.FITS_INSTRUCTION}"
            if state is None or stepwise.complete(state, requirement, world):
                end = f"{fits} {phrases.COMPLETE}"
            elif stepwise.consistent(state, requirement, world):
                end = f"{fits} {phrases.NOT_PAINTED} a star."
            else:
                end = f"{phrases.NO_FIT_PROMPT} no. <refine>repaint</refine>"
            said.append(f"seen: {words}. {end}")
        return said

    return inspect


@pytest.mark.parametrize("world", [EASY, HARD], ids=lambda w: w.name)
def test_one_who_sees_all_chooses_as_the_oracle(world):
    painted = candidates(world)
    judge = functools.partial(oracle.judge, world=world)
    asked = []
    requirements = {t.prompt: t.metadata for t in painted}
    opinions = choosing.opinions(painted, perfect(world, asked, requirements), world)
    chosen = best_of(painted, judge, world, [choosing.WORTH[opinion] for opinion in opinions])
    assert chosen == best_of(painted, judge, world)
    assert chosen["overall"]["exact"]["rate"] == 1.0 and chosen["nfe"] == 64
    # The first of each four, which the blind take, is right only where colours are free.
    blind = best_of(painted, judge, world, [0] * len(painted))
    assert blind["overall"]["exact"]["rate"] < 0.6
    first, second = asked
    assert len(first) == len(painted) and len(second) < len(first)  # nothing is seen in empty ones
    assert set(opinions) == set(choosing.WORTH) - {"no_image", "unreadable"}


def test_what_cannot_be_read_is_worth_more_than_what_is_called_wrong():
    painted = candidates(EASY)[:4]
    for said in (None, "seen: a fog. who knows.", f"{phrases.FITS_PROMPT} no seeing"):
        found = choosing.opinions(painted, lambda starts, said=said: [said] * len(starts))
        assert found == ["unreadable"] * 4
    worth = choosing.WORTH
    assert worth["complete"] > worth["unreadable"] > worth["unfinished"] == worth["faulty"]
    assert worth["faulty"] > worth["no_image"]


def test_a_bare_verdict_is_taken_at_its_word():
    painted = candidates(EASY)[:1]
    fits = f"{phrases.FITS_PROMPT} {phrases.FITS_INSTRUCTION}"
    for said, found in (
        (f"{fits} {phrases.COMPLETE}", "complete"),
        (f"{fits} {phrases.NOT_PAINTED} a star.", "unfinished"),
        (f"{phrases.NO_FIT_PROMPT} no. <refine>repaint</refine>", "faulty"),
    ):
        assert choosing.opinions(painted, lambda starts, said=said: [said] * len(starts)) == [found]


def test_a_list_that_no_plan_can_say_is_unreadable():
    """Nine of a kind have no number, and one thing is not twice at a place."""
    fits = f"{phrases.FITS_PROMPT} {phrases.FITS_INSTRUCTION} {phrases.COMPLETE}"
    painted = candidates(EASY)[:1]
    circles = [f"red circle {place}" for place in EASY.places]
    for seen, found in (
        (circles, "unreadable"),
        (circles[:1] * 2, "unreadable"),
        (circles[:8], "complete"),
        ([*circles[:8], f"blue circle {EASY.places[8]}"], "complete"),
    ):
        said = f"seen: {', '.join(seen)}. {fits}"
        assert phrases.parse_inspection(said).seen is not None
        assert choosing.opinions(painted, lambda starts, said=said: [said] * len(starts)) == [found]


def test_what_the_inspector_refuses_is_unreadable():
    class Refusing:
        def paint(self, starts, **settings):
            assert settings == {"temperature": 0.0, "max_images": 1}
            said = dataclasses.replace(starts[1].steps[0], inspection="fine")
            return [
                dataclasses.replace(starts[0], steps=()),
                dataclasses.replace(starts[1], steps=(said,)),
            ]

    starts = [Trajectory("a dot", steps=(Step("p"),))] * 2
    assert choosing.inspections_of(Refusing())(starts) == [None, "fine"]


def test_where_there_is_no_picture_nobody_is_asked():
    blank = [dataclasses.replace(candidates(EASY)[0], final_image=None)]
    asked = []
    assert choosing.opinions(blank, perfect(EASY, asked, {})) == ["no_image"]
    assert [len(starts) for starts in asked] == [0, 0]
