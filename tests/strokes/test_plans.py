"""Paintings: texts and pictures agree, faults are faults, and nothing held out is met."""

from __future__ import annotations

import collections
import functools
import itertools
import re

import numpy as np
import pytest

from process_gen.core.errors import ConfigError, DataError
from process_gen.core.trajectory import parse_plan, refine_command, same, validate
from process_gen.evaluation.stepwise import check_steps
from process_gen.strokes import oracle, phrases, plans, prompts
from process_gen.strokes.layout import wanted
from process_gen.strokes.plans import StrokesOptions, outline_at, trajectory_at
from process_gen.strokes.scene import PLACES, cells_related

# Much of everything, so that a few hundred paintings show all of it.
RICH = StrokesOptions(diversify=0.5, conflict=0.3, misalignment=0.4)
N = 300


@functools.cache
def paintings():
    return [trajectory_at(11, i, RICH) for i in range(N)]


def steps():
    return [(t, i, step) for t in paintings() for i, step in enumerate(t.steps)]


def described(plan):
    return phrases.parse_description(parse_plan(plan)[1])


def possible(plan, requirement):
    """Whether what a plan describes, placeholders aside, can still become what is asked for."""
    items = parse_plan(plan)[1].split(", ")
    kept = ", ".join(item for item in items if not item.endswith(phrases.PLACEHOLDER))
    objects = phrases.parse_description(kept) if kept else ()
    groups = wanted(requirement)
    for owners in itertools.product(range(len(groups)), repeat=len(objects)):
        cells = [
            [PLACES.index(o[2]) for o, own in zip(objects, owners, strict=True) if own == g]
            for g in range(len(groups))
        ]
        if all(
            groups[own].matches(color, shape)
            for (color, shape, _), own in zip(objects, owners, strict=True)
        ) and all(
            len(cells[g]) <= group.count
            and all(
                cells_related(a, group.relation, b)
                for a in cells[g]
                for b in (cells[group.target] if group.relation else ())
            )
            for g, group in enumerate(groups)
        ):
            return True
    return False


def test_every_painting_is_valid_and_ends_exactly():
    for painting in paintings():
        validate(painting)
        assert prompts.parse(painting.prompt) == painting.metadata
        assert oracle.exact(painting.final_image, painting.metadata)
        assert 1 <= len(painting.steps) <= RICH.max_steps
        if painting.metadata["tag"] in ("single_object", "colors"):
            assert len(painting.steps) == 1


def test_pictures_show_what_the_texts_say():
    for _, _, step in steps():
        inspection = phrases.parse_inspection(step.inspection)
        drawn = oracle.read(step.sketch).placed
        assert inspection.seen == drawn
        right = described(step.refined_plan or step.plan)
        assert right is not None
        assert oracle.read(step.image).placed == right
        if inspection.fits_instruction is False:
            assert drawn != described(step.plan)
        else:
            assert drawn == described(step.plan)


def test_plans_contradict_the_prompt_only_in_conflicts():
    for painting, _, step in steps():
        conflict = step.refined_plan is not None
        assert phrases.parse_inspection(step.inspection).fits_prompt is not conflict
        assert possible(step.plan, painting.metadata) is not conflict
        assert possible(step.refined_plan or step.plan, painting.metadata)


def test_placeholders_are_nothing_that_the_prompt_asks_for():
    found = 0
    for painting, _, step in steps():
        for item in parse_plan(step.plan)[1].split(", "):
            if item.endswith(phrases.PLACEHOLDER):
                ((color, shape, _),) = phrases.parse_description(item)
                assert not any(g.matches(color, shape) for g in wanted(painting.metadata))
                found += 1
    assert found > 20


def test_complete_is_said_at_the_end_only():
    for painting, i, step in steps():
        inspection = phrases.parse_inspection(step.inspection)
        last = i == len(painting.steps) - 1
        assert inspection.complete == (last and not step.rejected)
        if not last:
            assert not oracle.exact(step.image, painting.metadata)
        if not step.rejected and not last:
            assert ("not yet painted" in step.inspection) != ("not yet removed" in step.inspection)


def test_untouched_objects_keep_their_pixels():
    compared = 0
    for painting in paintings():
        for one, other in itertools.pairwise(painting.steps):
            before, after = (described(s.refined_plan or s.plan) for s in (one, other))
            for kept in set(before) & set(after):
                row, col = divmod(PLACES.index(kept[2]), 3)
                cell = np.s_[10 * row + 2 : 10 * row + 10, 10 * col + 2 : 10 * col + 10]
                assert (one.image[cell] == other.image[cell]).all()
                compared += 1
    assert compared > 200


def test_every_operation_and_fault_appears():
    seen = collections.Counter()
    for _, _, step in steps():
        instruction = parse_plan(step.refined_plan or step.plan)[0]
        seen[instruction.split()[0]] += 1
        if step.rejected:
            kind = "conflict" if step.refined_plan else "misalignment"
            seen[kind, refine_command(step.inspection).split()[0]] += 1
    for word in ("add", "change", "swap", "remove"):
        assert seen[word] >= 5
    for word in ("change", "move", "remove"):
        assert seen["conflict", word] >= 3
    for word in ("change", "move", "remove", "add", "swap"):
        assert seen["misalignment", word] >= 3


def test_a_rejected_step_is_repaired_as_ordered():
    for _, _, step in steps():
        if not step.rejected:
            continue
        command = refine_command(step.inspection)
        drawn, right = (set(oracle.read(p).placed) for p in (step.sketch, step.refined))
        gone, new = drawn - right, right - drawn
        word = command.split()[0]
        assert (not gone) == (word == "add") and (not new) == (word == "remove")
        for _, _, place in gone:
            assert place in command
        if word in ("add", "move", "swap"):
            assert all(place in command for _, _, place in new)
        if word == "change":
            assert {place for *_, place in gone} == {place for *_, place in new}


def test_shares_of_faults():
    outlines = [outline_at(5, i) for i in range(3000)]
    conflicts = sum(any(s.refined_plan for s in t.steps) for t in outlines) / 3000
    faulty = sum(any(s.rejected for s in t.steps) for t in outlines) / 3000
    assert 0.10 < conflicts < 0.14 and 0.13 < faulty - conflicts < 0.17
    tags = collections.Counter(t.metadata["tag"] for t in outlines)
    assert min(tags.values()) > 350 and set(tags) == set(prompts.TAGS)
    assert all(sum(s.rejected for s in t.steps) <= 1 for t in outlines)
    plain = StrokesOptions(diversify=0, conflict=0, misalignment=0)
    for i in range(300):
        for step in outline_at(5, i, plain).steps:
            assert not step.rejected and step.plan.startswith("<ins>add ")
            assert "placeholder" not in step.plan


def test_pure_function_of_seed_and_index():
    assert same(trajectory_at(3, 7, RICH), trajectory_at(3, 7, RICH))
    assert not same(trajectory_at(3, 7, RICH), trajectory_at(3, 8, RICH))
    assert not same(trajectory_at(3, 7, RICH), trajectory_at(4, 7, RICH))


def test_outlines_have_the_same_texts():
    blank = outline_at(0, 0).final_image
    for i in range(40):
        whole, outline = paintings()[i], outline_at(11, i, RICH)
        validate(outline)
        assert outline.metadata == whole.metadata
        for a, b in zip(whole.steps, outline.steps, strict=True):
            assert (a.plan, a.inspection, a.refined_plan) == (b.plan, b.inspection, b.refined_plan)
            assert (a.refined is None) == (b.refined is None)
            assert b.sketch is blank
    with pytest.raises(ValueError):
        blank[0, 0, 0] = 1


def test_no_held_out_prompt_is_trained_on():
    for i in range(5000):
        assert not prompts.held_out(outline_at(0, i).prompt)


def test_held_out_paintings_are_for_evaluation():
    options = StrokesOptions(prompts="held_out")
    for i in range(60):
        painting = outline_at(0, i, options)
        held = painting.metadata["tag"] in prompts.HELD_OUT_TAGS
        assert prompts.held_out(painting.prompt) is held


def test_held_out_requirements_are_refused_for_training():
    rng = np.random.default_rng(0)
    (asked,) = prompts.held_out_requirements("complex", 1, 0)
    with pytest.raises(DataError, match="held out"):
        plans.build_trajectory(rng, asked)
    painting = plans.build_trajectory(rng, asked, StrokesOptions(prompts="held_out"))
    assert painting.prompt == asked["prompt"]


def test_one_shot():
    for painting in paintings()[:20]:
        bare = plans.one_shot(painting)
        validate(bare)
        assert bare.mode == "one_shot" and bare.prompt == painting.prompt and not bare.steps
        assert bare.final_image is painting.final_image


def test_text_only_skips_faults():
    for painting in paintings():
        text = plans.text_only(painting)
        validate(text)
        assert text.final_image is None and not text.images
        assert [s.plan for s in text.steps] == [s.refined_plan or s.plan for s in painting.steps]
        assert not any(s.inspection or s.refined_plan for s in text.steps)


def test_critique_only_ends_in_an_inspection():
    rng = np.random.default_rng(0)
    lengths = set()
    for painting in paintings():
        cut = plans.critique_only(rng, painting)
        validate(cut)
        own = painting.steps[len(cut.steps) - 1]
        assert cut.steps[-1].inspection == own.inspection and cut.steps[-1].sketch is own.sketch
        assert cut.steps[-1].refined is None and cut.steps[-1].refined_plan is None
        assert cut.finish_reason is None and cut.final_image is None
        lengths.add(len(cut.steps))
    assert len(lengths) >= 3


def test_verdict_style_leaves_out_what_is_seen():
    options = StrokesOptions(inspection="verdict", conflict=0.3, misalignment=0.4, diversify=0.5)
    for i in range(50):
        for short, long in zip(outline_at(11, i, options).steps, paintings()[i].steps, strict=True):
            assert not short.inspection.startswith("seen:")
            assert long.inspection.endswith(short.inspection)


def test_paintings_of_prompts_without_some_colours_are_right():
    mapping = {"uncolored": 0.5, "same_color": 0.5, "weights": {"complex": 3.0, "position": 1.0}}
    faulty = {"conflict": 0.4, "misalignment": 0.4, "diversify": 0.5}
    options = StrokesOptions.from_mapping(mapping | faulty)
    rejected = 0
    for i in range(150):
        painting = trajectory_at(2, i, options)
        assert not prompts.held_out(painting.prompt)
        for check in check_steps(painting):
            assert check.faulty == check.rejected and check.right_end
            rejected += check.rejected
    assert rejected > 60


def test_options_that_do_nothing_do_not_rename_data():
    assert not {"world", "same_color", "uncolored"} & set(
        re.findall(r"\w+(?==)", repr(StrokesOptions()))
    )
    assert "same_color=0.5" in repr(StrokesOptions(same_color=0.5))
    assert "uncolored=0.5" in repr(StrokesOptions(uncolored=0.5))


def test_weights_choose_the_tags():
    options = StrokesOptions(weights={"counting": 1.0, "colors": 3.0})
    tags = collections.Counter(outline_at(0, i, options).metadata["tag"] for i in range(400))
    assert set(tags) == {"counting", "colors"} and 250 < tags["colors"] < 350


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"diversity": 0.5}, "unknown.*'strokes.diversity'"),
        ({"conflict": 1.5}, "strokes.conflict"),
        ({"conflict": 0.6, "misalignment": 0.6}, "exceed 1"),
        ({"inspection": "long"}, "strokes.inspection"),
        ({"uncolored": -0.1}, "strokes.uncolored"),
        ({"same_color": 2}, "strokes.same_color"),
        ({"max_steps": 2}, "max_steps must be at least 3, got 2"),
        ({"max_steps": 3, "world": "hard"}, "max_steps must be at least 4, got 3"),
        ({"weights": {"shapes": 1.0}}, "unknown tag 'shapes'"),
        ({"weights": {"colors": -1.0}}, "weights.colors"),
        ({"weights": {"colors": "much"}}, "weights.colors"),
        ({"weights": {}}, "all weights are 0"),
        ({"prompts": "test"}, "strokes.prompts"),
    ],
)
def test_bad_options(mapping, message):
    with pytest.raises(ConfigError, match=message):
        StrokesOptions.from_mapping(mapping)


def test_good_options():
    assert StrokesOptions.from_mapping({}) == StrokesOptions()
    assert StrokesOptions.from_mapping({"split": 0}).split == 0.0
