"""The hard world: its prompts, pictures and paintings, and that the oracle reads them back."""

from __future__ import annotations

import functools
import itertools
import pickle

import numpy as np
import pytest

from process_gen.core.configs import SourceConfig
from process_gen.core.errors import ConfigError, DataError
from process_gen.core.trajectory import same, validate
from process_gen.data.sources import build_source
from process_gen.evaluation.stepwise import painting_rates
from process_gen.evaluation.strokes import score
from process_gen.strokes import oracle
from process_gen.strokes.measure import measure
from process_gen.strokes.phrases import parse_inspection
from process_gen.strokes.plans import StrokesOptions, trajectory_at
from process_gen.strokes.prompts import (
    HELD_OUT_TAGS,
    TAGS,
    canonical,
    check,
    held_out,
    held_out_requirements,
    parse,
    sample_requirement,
)
from process_gen.strokes.render import render
from process_gen.strokes.scene import COLORS, DEPTHS, HARD, Scene, SceneObject, fits, world_named

FAULTY = {"world": "hard", "conflict": 0.4, "misalignment": 0.4}


@pytest.fixture(scope="module")
def paintings():
    options = StrokesOptions.from_mapping(FAULTY)
    return [trajectory_at(5, i, options) for i in range(35)]


def test_prompts_are_parsed_back_and_their_metadata_is_checked():
    rng = np.random.default_rng(0)
    relations = set()
    for tag in TAGS:
        for _ in range(40):
            drawn = sample_requirement(rng, tag, world=HARD)
            assert parse(drawn["prompt"], HARD) == drawn == check(drawn, world=HARD)
            counts = [item["count"] for item in drawn["include"]]
            assert tag not in ("complex", "counting") or 4 <= sum(counts) <= 7
            relations |= {item["position"][0] for item in drawn["include"] if "position" in item}
    assert relations == set(HARD.relations) and set(DEPTHS) < relations


def test_the_worlds_do_not_read_each_others_prompts():
    assert parse("a small star") is None and parse("a star", HARD) is None
    easy = {"tag": "single_object", "include": [{"class": "star"}], "prompt": "a star"}
    assert check(easy)
    with pytest.raises(DataError, match="small star"):
        check(easy, world=HARD)


def test_only_what_is_small_lies_in_front():
    assert parse("a red small star in front of a blue large bar", HARD)
    assert parse("a red large bar behind a blue small star", HARD)
    assert parse("a red large bar in front of a blue small star", HARD) is None
    assert parse("a red small star in front of a red large bar", HARD) is None


def test_held_out_prompts_stay_apart():
    a, b = (
        "a red large bar behind a blue small star",
        "a blue small star in front of a red large bar",
    )
    assert canonical(a, HARD) == canonical(b, HARD)
    last = ["a green large bar", "two red small stars"]
    a, b = (
        " and ".join(["a red large bar above a blue small star", *rest])
        for rest in (last, last[::-1])
    )
    assert parse(a, HARD) and parse(b, HARD)
    assert canonical(a, HARD) != canonical(b, HARD)  # the docs say so; sets hang on it
    rng = np.random.default_rng(1)
    for tag in HELD_OUT_TAGS:
        asked = held_out_requirements(tag, 20, 0, HARD)
        assert len({r["prompt"] for r in asked}) == 20
        assert all(held_out(r["prompt"], HARD) for r in asked)
        drawn = [sample_requirement(rng, tag, world=HARD)["prompt"] for _ in range(60)]
        assert not any(held_out(prompt, HARD) for prompt in drawn)


def test_a_painting_ends_with_what_was_asked_for(paintings):
    for painting in paintings:
        validate(painting)
        image = painting.steps[-1].image
        assert image.shape == (48, 48, 3) and image.dtype == np.uint8
        assert oracle.judge(image, painting.metadata, HARD).exact
        more = [{**item, "count": item["count"] + 1} for item in painting.metadata["include"]]
        assert not oracle.judge(image, {**painting.metadata, "include": more}, HARD).exact
    assert any(step.rejected for painting in paintings for step in painting.steps)


def test_paintings_are_scored(paintings):
    judge = functools.partial(oracle.judge, world=HARD)
    scores = score(paintings, judge, world=HARD)
    assert scores["overall"]["exact"]["rate"] == 1.0
    rates = painting_rates(paintings, HARD)
    assert rates["unjudged"] == 0 and rates["plan_correct"]["rate"] == 1.0
    assert rates["sketch_aligned"]["rate"] < 1.0 and rates["plan_consistent"]["rate"] < 1.0
    with pytest.raises(DataError, match="must be an object whose 'class'"):
        score(paintings, judge)


def test_inspections_list_what_the_oracle_sees(paintings):
    for step in itertools.chain.from_iterable(p.steps for p in paintings):
        said = parse_inspection(step.inspection, HARD)
        assert said is not None and said.seen == oracle.read(step.sketch, HARD).placed


def test_every_kind_is_read_before_and_behind_another():
    colors = itertools.cycle(itertools.permutations(COLORS, 2))
    small, large = ([k.name for k in HARD.kinds if k.layer == layer] for layer in (1, 0))
    for shift in range(len(small)):
        objects = []
        for i, front in enumerate(small):
            above, below = next(colors)
            row, col = divmod(2 * i % 16, 4)
            back = large[(i + shift) % len(large)]
            objects += [
                SceneObject(back, below, row, col, 0.3, -0.45, 4.5, HARD),
                SceneObject(front, above, row, col, -0.3, 0.15, 2.6, HARD),
            ]
        assert fits(objects)
        scene = Scene(tuple(objects), HARD)
        there = tuple(sorted((o.color, o.shape, o.place) for o in objects))
        assert oracle.read(render(scene), HARD).placed == there


def test_objects_that_hide_each_other_do_not_fit():
    a = SceneObject("small star", "red", 0, 0, world=HARD)
    for other in ("small bar", "large bar"):
        b = SceneObject(other, "red", 0, 0, world=HARD)
        assert not fits([a, b])


def test_small_run_of_the_measurement():
    figures = measure(14, seed=1, world=HARD)
    assert figures.clean == figures.clean_read == 1.0
    assert figures.found_in_noise == figures.mismatched == 0.0


@pytest.mark.parametrize(
    "kind", ["strokes", "strokes_one_shot", "strokes_plans", "strokes_critique"]
)
def test_every_generated_source_takes_the_world(kind):
    source = build_source(SourceConfig(kind, options={"world": "hard"}), 0)
    easy = build_source(SourceConfig(kind), 0)
    assert source.fingerprint != easy.fingerprint
    for i in range(8):
        painting, outline = source[i], source.outline(i)
        validate(painting)
        assert parse(painting.prompt, HARD) and not held_out(painting.prompt, HARD)
        assert [x.shape for x in painting.images] == [x.shape for x in outline.images]
        assert all(x.shape == (48, 48, 3) for x in painting.all_images)
    assert same(source[3], build_source(SourceConfig(kind, options={"world": "hard"}), 0)[3])


def test_worlds_are_named():
    assert pickle.loads(pickle.dumps(HARD)) is HARD
    with pytest.raises(ConfigError, match="unknown world 'harder'; one of easy, hard"):
        world_named("harder")
    with pytest.raises(ConfigError, match="unknown world"):
        build_source(SourceConfig("strokes", options={"world": "harder"}), 0)
