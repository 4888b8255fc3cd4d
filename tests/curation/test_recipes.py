"""The recipes over the embedded world, and the choice of a recipe."""

from __future__ import annotations

import collections
import json

import numpy as np
import pytest

from process_gen.core.configs import from_mapping
from process_gen.core.errors import ConfigError, DataError
from process_gen.core.grammar import Kind, Part, to_segments
from process_gen.core.trajectory import Step, Trajectory, same
from process_gen.curation import alignment, multi_turn
from process_gen.curation.engine import Passed, Record, Skip
from process_gen.curation.makers import Makers, Workshop
from process_gen.curation.prompts import open_prompts
from process_gen.curation.protocols import Failed, Verdict
from process_gen.curation.recipes import Lengths, build_recipe, make_job
from process_gen.data.sources import build_source
from process_gen.strokes import oracle
from process_gen.strokes.phrases import parse_description
from process_gen.strokes.plans import StrokesOptions, trajectory_at
from process_gen.strokes.prompts import held_out


def data(*sources, seed=0):
    return from_mapping({"data": {"sources": list(sources), "seed": seed}})


def recipe(kind, size=40, seed=0, **options):
    return build_recipe(data({"kind": kind, "size": size, "options": options}, seed=seed).data)


def run(made):
    """(records, skips, tally) of what a recipe yields, with a check of what has passed."""
    records, skips, tally, passed = [], [], collections.Counter(), 0
    for one in made:
        if isinstance(one, Record):
            records.append(one)
        elif isinstance(one, Skip):
            skips.append(one)
        elif isinstance(one, Passed):
            passed += one.items
        else:
            tally.update(one)
    return records, skips, tally, passed


def texts(trajectory):
    return trajectory.prompt, [(s.plan, s.inspection, s.refined_plan) for s in trajectory.steps]


# ---- multi_turn ----------------------------------------------------------------------------------


def test_multi_turn_paints_every_prompt_in_steps():
    made = recipe("multi_turn", makers={"diversify": 1.0})
    assert made.supervise == "all" and len(made) == 40
    records, skips, tally, passed = run(made.make(0, 40))
    assert passed == 40 and not skips and [r.item for r in records] == list(range(40))
    for record in records:
        painting = record.trajectory
        assert oracle.exact(painting.final_image, painting.metadata)
        assert not held_out(painting.prompt)
        assert painting.steps[-1].inspection.endswith("the picture is complete.")
    operations = {key: n for key, n in tally.items() if key.startswith("operations/")}
    assert len(operations) == 4
    assert tally["pictures/drawn"] == sum(operations.values())


def test_items_do_not_depend_on_their_neighbours():
    made = recipe("multi_turn", chunk=7)
    together = [texts(r.trajectory) for r in run(made.make(0, 20))[0]]
    alone = [texts(r.trajectory) for i in range(20) for r in run(made.make(i, i + 1))[0]]
    assert together == alone
    other = [texts(r.trajectory) for r in run(recipe("multi_turn", seed=1).make(0, 20))[0]]
    assert other != together


def test_what_the_judge_rejects_is_drawn_again_and_then_dropped():
    once = run(recipe("multi_turn", faults=0.5).make(0, 40))
    assert 10 < len(once[1]) and {s.reason for s in once[1]} == {
        "a step that the judge did not accept"
    }
    assert len(once[0]) + len(once[1]) == once[3] == 40
    rejected = sum(n for key, n in once[2].items() if key.startswith("pictures/rejected"))
    assert rejected == len(once[1])
    again = run(recipe("multi_turn", faults=0.5, attempts=6).make(0, 40))
    assert len(again[1]) < 5 and again[2]["pictures/drawn"] > once[2]["pictures/drawn"]
    for record in again[0]:
        assert oracle.exact(record.trajectory.final_image, record.trajectory.metadata)


def test_other_planners_drafters_and_judges_take_part(monkeypatch, tmp_path):
    """A recipe knows its parties by their protocols alone."""
    picture = np.zeros((48, 64, 3), np.uint8)

    class Drafter:
        def draw(self, requests):
            return [
                Failed("no picture", "of a cow") if "cow" in r.description else picture
                for r in requests
            ]

    class Judge:
        def check(self, requests):
            return [
                Failed("no answer") if "sheep" in r.prompt
                else Verdict("two dogs.", "misalignment", "Remove one.", kind="count")
                if "dog" in r.prompt
                else Verdict("It is right. Nothing that is missing is a fault.")
                for r in requests
            ]  # fmt: skip

    monkeypatch.setattr(Workshop, "drafter", lambda self, faults=0.0: Drafter())
    monkeypatch.setattr(Workshop, "judge", Judge())
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red bench\na cow\na dog\na sheep\n")
    models = {"chat_model": "seer", "image_model": "painter"}
    makers = {"planner": "graph", "drafter": "remote", "judge": "remote", "diversify": 0.0}
    with pytest.raises(ConfigError, match="remote.image_model names no model"):
        recipe("multi_turn", prompts=str(prompts), makers=makers | {"remote": {"chat_model": "a"}})
    makers["remote"] = models
    made = recipe("multi_turn", size=5, prompts=str(prompts), makers=makers)
    records, skips, tally, passed = run(made.make(0, 5))
    assert passed == 5 and [r.item for r in records] == [0, 4]
    assert (
        records[0].trajectory.steps[0].plan == "<ins>Add a red bench.</ins><des>a red bench</des>"
    )
    assert [s.reason for s in skips] == [
        "no picture", "a step that the judge did not accept", "no answer",
    ]  # fmt: skip
    assert tally["pictures/rejected: count"] == 1 and not records[0].trajectory.steps[0].rejected


# ---- alignment -----------------------------------------------------------------------------------


def test_alignment_cuts_paintings_after_right_and_careless_drawings():
    made = recipe("alignment", size=120)
    assert made.supervise == "last_repair"
    records, skips, tally, passed = run(made.make(0, 120))
    assert passed == 120 and not skips
    faulty = [r for r in records if r.trajectory.steps[-1].rejected]
    assert 60 < len(faulty) < 100
    assert tally["sketches/right"] == 120 - len(faulty)
    for record in records:
        *earlier, last = record.trajectory.steps
        assert all(not step.rejected and step.refined is None for step in earlier)
        assert (last.refined is not None) == last.rejected and last.refined_plan is None
        if last.refined is not None:
            description = last.plan.split("<des>")[1].removesuffix("</des>")
            assert oracle.read(last.refined).placed == parse_description(description)
            assert not np.array_equal(last.refined, last.sketch)
    assert len({len(r.trajectory.steps) for r in records}) > 2


def test_a_rejected_sketch_is_no_target_and_its_repair_is():
    records, *_ = run(recipe("alignment", size=30, negatives=1.0).make(0, 30))
    settings = from_mapping({}).data.grammar
    for record in records:
        segments = to_segments(record.trajectory, settings, "last_repair")
        targets = [s for s in segments if s.kind is Kind.NOISED]
        assert [s.part for s in targets] == [Part.REFINED]
        assert [s.part for s in segments if s.loss and s.kind is Kind.TEXT] == [Part.FAULT]
        assert sum(s.part is Part.SKETCH for s in segments) >= 1


def test_alignment_without_faults_or_repairs():
    records, *_ = run(recipe("alignment", size=20, negatives=0.0).make(0, 20))
    assert not any(r.trajectory.steps[-1].rejected for r in records)
    records, *_ = run(recipe("alignment", size=20, negatives=1.0, repair=False).make(0, 20))
    assert all(r.trajectory.steps[-1].rejected for r in records)
    assert all(r.trajectory.steps[-1].refined is None for r in records)


def test_a_repair_of_a_remote_drafter_is_judged_again(monkeypatch):
    shown = []

    class Judge:
        def check(self, requests):
            shown.extend(requests)
            return [Verdict("wrong.", "misalignment", "Again.") for _ in requests]

    monkeypatch.setattr(Workshop, "judge", Judge())
    monkeypatch.setattr(Workshop, "exact", False)
    records, skips, *_ = run(recipe("alignment", size=6).make(0, 6))
    assert not records and len(shown) >= 6
    reasons = {s.reason for s in skips}
    assert "a repair that the judge did not accept" in reasons


# ---- mixtures, and the choice --------------------------------------------------------------------


def test_a_mixture_stores_what_its_sources_hold():
    sources = [{"kind": "strokes", "size": 6, "weight": 2.0}, {"kind": "strokes_plans", "size": 6}]
    config = data(*sources)
    records, *_ = run(build_recipe(config.data).make(0, 12))
    strokes = build_source(config.data.sources[0], 0)
    assert len(records) == 12
    held = [r.trajectory for r in records if r.trajectory.final_image is not None]
    assert len(held) == 8 and all(any(same(t, strokes[i]) for i in range(8)) for t in held)


def test_a_record_that_cannot_be_read_is_skipped(monkeypatch):
    made = recipe("strokes", size=4)

    class Broken:
        def __getitem__(self, index):
            if index == 2:
                raise DataError("half a record")
            return trajectory_at(0, index)

    monkeypatch.setattr(made, "_sources", [Broken()])
    records, skips, *_ = run(made.make(0, 4))
    assert len(records) == 3 and skips[0].detail == "half a record"


@pytest.mark.parametrize(
    ("sources", "error", "what"),
    [
        ([{"kind": "nothing"}], DataError, "unknown data source 'nothing'; known: multi_turn"),
        ([{"kind": "multi_turn"}, {"kind": "strokes"}], DataError, "beside others"),
        ([{"kind": "strokes"}, {"kind": "strokes_critique"}], DataError, "folder of its own"),
        ([{"kind": "multi_turn", "options": {"attemps": 1}}], ConfigError, "attempts"),
        ([{"kind": "multi_turn", "options": {"attempts": 0}}], ConfigError, "attempts"),
        ([{"kind": "multi_turn", "options": {"makers": {"planner": "graph"}}}], ConfigError,
         "file of prompts"),
        ([{"kind": "multi_turn", "options": {"makers": {"drafter": "remote"}}}], ConfigError,
         "cannot read the pictures"),
        ([{"kind": "alignment", "options": {"negatives": 2.0}}], ConfigError, "negatives"),
        ([{"kind": "multi_turn", "options": {"weights": {"dogs": 1.0}}}], ConfigError, "dogs"),
        ([{"kind": "multi_turn", "options": {"makers": {"max_steps": 1}}}], ConfigError, "max"),
    ],
)  # fmt: skip
def test_a_wrong_config_is_one_error(sources, error, what):
    with pytest.raises(error, match=what):
        build_recipe(data(*sources).data)


def test_prompts_of_a_file(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "a dog", "tag": "x"}\n{"prompt": "a red star"}\n')
    prompts = open_prompts(str(path), {}, 9, 0)
    assert [prompts[i]["prompt"] for i in range(3)] == ["a dog", "a red star", "a dog"]
    before = prompts.fingerprint
    path.write_text('{"prompt": "a cat"}\n')
    assert open_prompts(str(path), {}, 9, 0).fingerprint != before
    options = StrokesOptions(prompts="held_out")
    paintings = (trajectory_at(0, i, options) for i in range(99))
    path.write_text(json.dumps({"prompt": next(t.prompt for t in paintings if held_out(t.prompt))}))
    with pytest.raises(DataError, match="held out"):
        open_prompts(str(path), {}, 9, 0)


def test_lengths_are_those_of_the_pipeline():
    lengths = Lengths(data({"kind": "strokes"}))
    painting = trajectory_at(0, 3)
    text, und, gen = lengths(painting, "all")
    assert text > 20 and und == 16 * len(painting.images) and gen >= und
    assert lengths(painting, "last_inspection")[2] < gen
    odd = Trajectory("a star", steps=(Step(painting.steps[0].plan, np.zeros((30, 30, 3), np.uint8),
                                           "fine"),))  # fmt: skip
    with pytest.raises(DataError, match="multiple of 8"):
        lengths(odd, "all")


def test_the_identity_names_what_decides_the_bytes():
    def identity(**changes):
        source = {"kind": "multi_turn", "size": 5, "options": changes.pop("options", {})}
        config = data(source, seed=changes.pop("seed", 0))
        return json.dumps(dict(make_job(config, **changes).identity), sort_keys=True)

    assert identity() == identity()
    for changes in (
        {"seed": 1}, {"limit": 3}, {"shards": 2}, {"options": {"faults": 0.1}}, {"strict": True},
    ):  # fmt: skip
        assert identity(**changes) != identity()


def test_how_a_server_is_asked_may_change_while_a_build_goes_on(tmp_path):
    def identity(**remote):
        makers = {"judge": "remote", "remote": remote}
        return json.dumps(recipe("multi_turn", makers=makers).identity)

    elsewhere = {"base_url": "http://other:8000/v1", "concurrency": 1, "timeout": 3.0}
    assert identity(chat_model="a") == identity(chat_model="a", **elsewhere)
    assert identity(chat_model="a") != identity(chat_model="b")
    words = tmp_path / "judge.j2"
    words.write_text("{% block user %}Well?{% endblock %}")
    assert identity(chat_model="a") != identity(chat_model="a", templates=str(tmp_path))
    makers = {"judge": "remote", "remote": {"chat_model": "a"}}
    templates = recipe("multi_turn", makers=makers).identity["templates"]
    assert list(templates) == ["judge"] and recipe("multi_turn").identity["templates"] == {}


def test_the_recipes_take_the_makers_from_the_workshop():
    workshop = Workshop(Makers())
    assert workshop.planner is workshop.planner and workshop.reference is None
    assert workshop.exact and workshop.spent() == collections.Counter()
    assert Workshop(Makers(judge="model", checkpoint="x")).reference is not None
    assert multi_turn.MultiTurn.supervise == "all"
    assert alignment.Alignment.supervise == "last_repair"
