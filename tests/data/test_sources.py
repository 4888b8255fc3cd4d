from __future__ import annotations

import dataclasses

import pytest

from process_gen.core.configs import SourceConfig
from process_gen.core.errors import ConfigError, DataError
from process_gen.core.trajectory import same
from process_gen.data.builders import write_folder
from process_gen.data.sources import KINDS, build_source
from process_gen.strokes.prompts import HELD_OUT_TAGS, held_out

GENERATED = [kind for kind in KINDS if kind.startswith("strokes")]


def texts(trajectory):
    return [trajectory.prompt, trajectory.mode] + [
        (step.plan, step.inspection, step.refined_plan, step.sketch is None, step.refined is None)
        for step in trajectory.steps
    ]


@pytest.mark.parametrize("kind", GENERATED)
def test_a_generated_source_is_a_pure_function_of_the_index(kind):
    source = build_source(SourceConfig(kind, size=5), seed=3)
    again = build_source(SourceConfig(kind, size=5), seed=3)
    assert len(source) == 5 and source.fresh
    assert source.fingerprint == again.fingerprint
    assert all(same(source[i], again[i]) for i in (0, 4, 1000))
    assert not same(source[0], source[1])


@pytest.mark.parametrize("kind", GENERATED)
def test_an_outline_has_the_texts_and_picture_sizes(kind):
    source = build_source(SourceConfig(kind), seed=0)
    for index in range(40):
        full, outline = source[index], source.outline(index)
        assert texts(full) == texts(outline)
        assert [x.shape for x in full.images] == [x.shape for x in outline.images]


def test_seed_kind_options_and_split_change_the_fingerprint():
    base = SourceConfig("strokes")
    prints = [
        build_source(base, 0).fingerprint,
        build_source(base, 1).fingerprint,
        build_source(base, 0, "eval").fingerprint,
        build_source(SourceConfig("strokes_plans"), 0).fingerprint,
        build_source(SourceConfig("strokes", options={"conflict": 0.5}), 0).fingerprint,
    ]
    assert len(set(prints)) == len(prints)
    assert build_source(base, 1, "eval").fingerprint == prints[2]


def test_what_each_kind_shows():
    one_shot = build_source(SourceConfig("strokes_one_shot"), 0)[0]
    assert one_shot.mode == "one_shot" and one_shot.final_image is not None and not one_shot.steps
    plans = build_source(SourceConfig("strokes_plans"), 0)
    assert not any(plans[i].images for i in range(20))
    critique = build_source(SourceConfig("strokes_critique"), 0)
    assert critique.supervise == "last_inspection"
    lasts = [critique[i].steps[-1] for i in range(60)]
    assert all(step.inspection and step.refined is None for step in lasts)
    assert 0 < sum(step.rejected for step in lasts) < 60


def test_held_out_prompts_stay_out_unless_asked_for():
    train = build_source(SourceConfig("strokes"), 0)
    asked = build_source(SourceConfig("strokes", options={"prompts": "held_out"}), 0, "eval")
    assert not any(held_out(train[i].prompt) for i in range(200))
    tagged = [t for t in map(asked.__getitem__, range(100)) if t.metadata["tag"] in HELD_OUT_TAGS]
    assert tagged and all(held_out(t.prompt) for t in tagged)


def test_a_folder_is_a_source(tmp_path):
    strokes = build_source(SourceConfig("strokes"), 0)
    manifest = write_folder(str(tmp_path / "data"), [strokes[i] for i in range(4)])
    config = SourceConfig("folder", path=str(tmp_path / "data"))
    folder = build_source(config, seed=9)
    assert len(folder) == manifest["count"] and not folder.fresh
    assert same(folder[2], strokes[2]) and same(folder.outline(2), strokes[2])
    assert folder.fingerprint == build_source(config, seed=1).fingerprint
    assert folder.supervise == "all"
    critique = dataclasses.replace(config, options={"supervise": "last_inspection"})
    assert build_source(critique, 0).supervise == "last_inspection"
    with pytest.raises(DataError, match="supervise is 'none'"):
        build_source(dataclasses.replace(config, options={"supervise": "none"}), 0)


@pytest.mark.parametrize(
    ("config", "error", "what"),
    [
        (SourceConfig("strokse"), DataError, "unknown data source 'strokse'; known: strokes, "),
        (SourceConfig("strokes", options={"confilct": 1.0}), ConfigError, "confilct"),
        (SourceConfig("strokes", options={"conflict": 7.0}), ConfigError, "conflict"),
        (SourceConfig("folder"), DataError, "path"),
        (SourceConfig("folder", path="/nowhere"), DataError, "/nowhere"),
        (SourceConfig("folder", path="x", options={"speed": 1}), DataError, "speed"),
    ],
)
def test_mistakes_are_named(config, error, what):
    with pytest.raises(error, match=what):
        build_source(config, seed=0)


def test_an_empty_folder_is_refused(tmp_path):
    write_folder(str(tmp_path / "data"), [])
    with pytest.raises(DataError, match="no trajectories"):
        build_source(SourceConfig("folder", path=str(tmp_path / "data")), 0)
