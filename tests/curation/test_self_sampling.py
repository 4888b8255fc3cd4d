"""Critiques of a painter's own sketches. The painter is a stand-in whose faults are known."""

from __future__ import annotations

import collections
import dataclasses
import json

import numpy as np
import pytest

from process_gen.core.configs import from_mapping
from process_gen.core.errors import ConfigError
from process_gen.core.grammar import Kind, Part, to_segments
from process_gen.core.trajectory import Sampled, Step, Trajectory, parse_plan
from process_gen.curation import self_sampling
from process_gen.curation.engine import Passed, Record, Skip
from process_gen.curation.makers import Makers
from process_gen.curation.model_judge import ModelJudge, OwnJudge, own_verdict
from process_gen.curation.multi_turn import MultiTurn
from process_gen.curation.protocols import CheckRequest, Failed, Verdict
from process_gen.curation.recipes import build_recipe, make_job
from process_gen.curation.self_sampling import SelfSampling
from process_gen.curation.tallies import compare, verdict_report
from process_gen.strokes import oracle
from process_gen.strokes.phrases import parse_description
from process_gen.strokes.plans import StrokesOptions, build_trajectory
from process_gen.strokes.prompts import held_out

FINE = "the instruction fits the prompt. the sketch fits the instruction. the picture is complete."


class Painter:
    """Paints by the renderer, with faults that it does not notice, and some false alarms."""

    meta = {"step": 7, "weights": "ema", "path": "here"}
    fingerprint = "f00d"

    def __init__(self, conflict=0.15, misalignment=0.2, alarm=0.1):
        self.options = StrokesOptions(conflict=conflict, misalignment=misalignment)
        self.alarm, self.calls = alarm, []

    def stream(self, prompts, *, seed=0, **settings):
        self.calls.append((len(prompts), seed, settings))
        for index in reversed(range(len(prompts))):  # in no particular order
            rng = np.random.default_rng([seed, index])
            painting = build_trajectory(rng, prompts[index], self.options)
            steps = []
            for step in painting.steps:
                alarm = not step.rejected and rng.random() < self.alarm
                said = "no! <refine>again</refine>" if alarm else FINE
                refined = step.sketch if alarm else None
                steps.append(Step(step.plan, step.sketch, said, None, refined))
            yield dataclasses.replace(
                painting, steps=tuple(steps), final_image=steps[-1].image,
                finish_reason="finished", sampled=Sampled(index, 0, seed, 10, 0.1),
            )  # fmt: skip


@pytest.fixture
def painter(monkeypatch):
    stand_in = Painter()
    monkeypatch.setattr(self_sampling, "load_painter", lambda *_: stand_in)
    return stand_in


def run(recipe, start=0, stop=None):
    records, skips, tally, passed = [], [], collections.Counter(), 0
    for one in recipe.make(start, len(recipe) if stop is None else stop):
        if isinstance(one, Record):
            records.append(one)
        elif isinstance(one, Skip):
            skips.append(one)
        elif isinstance(one, Passed):
            passed += one.items
        else:
            tally.update(one)
    assert passed == (len(recipe) if stop is None else stop) - start
    return records, skips, tally


def recipe(subset="both", size=110, seed=0, **options):
    return SelfSampling(subset, {"checkpoint": "here", **options}, size, seed)


def fault(record):
    return record.trajectory.metadata["critique"]["fault"]


def test_faulty_and_right_sketches_are_balanced(painter):
    records, skips, tally = run(recipe())
    faults = collections.Counter(fault(r) for r in records)
    assert min(faults["conflict"], faults["misalignment"]) > 10
    assert faults[None] == faults["conflict"] + faults["misalignment"]
    assert not skips and [r.item for r in records] == sorted({r.item for r in records})
    assert tally["kept/right"] == tally["kept/faulty"] == faults[None]
    twice = collections.Counter(fault(r) for r in run(recipe(right_per_fault=0.5))[0])
    assert twice[None] == round(0.5 * (len(records) - faults[None]))
    objected = [r.trajectory.metadata["critique"]["painter_objected"] for r in records]
    assert sum(objected) == tally["kept/right, painter found fault"] > 5
    assert not any(o and fault(r) for o, r in zip(objected, records, strict=True))


@pytest.mark.parametrize("subset", ["conflict", "alignment"])
def test_each_subset_keeps_its_faults(painter, subset):
    records, _, tally = run(recipe(subset))
    kinds = {fault(r) for r in records}
    assert kinds == {None, "conflict" if subset == "conflict" else "misalignment"}
    assert 0 < tally["kept/faulty"] < sum(n for key, n in tally.items() if ", " in key)


def test_a_critique_says_what_the_oracle_sees_and_ends_in_the_repair(painter):
    settings = from_mapping({}).data.grammar
    for record in run(recipe())[0]:
        *earlier, last = record.trajectory.steps
        assert not held_out(record.trajectory.prompt)
        assert all(not step.rejected and step.inspection != FINE for step in earlier)
        listed = last.inspection.split(".")[0].removeprefix("seen: ").split(", ")
        seen = [f"{c} {s} {p}" for c, s, p in oracle.read(last.sketch).placed]
        assert sorted(listed) == (sorted(seen) or ["nothing"])
        assert last.rejected == (fault(record) is not None)
        assert (last.refined is not None) == last.rejected
        assert (last.refined_plan is not None) == (fault(record) == "conflict")
        segments = to_segments(record.trajectory, settings, "last_repair")
        targets = [s.part for s in segments if s.kind is Kind.NOISED]
        assert targets == ([Part.REFINED] if last.rejected else [])
        if last.rejected:
            _, description = parse_plan(last.refined_plan or last.plan)
            assert oracle.read(last.refined).placed == parse_description(description)


def test_faults_are_as_in_the_painting(painter):
    """Whatever the painter drew wrong and did not notice is found, and nothing else."""
    painter.alarm = 0.0
    _, _, tally = run(recipe())
    report = verdict_report(tally)["verdicts"]["painter"]
    assert report["recall"] == 0.0 and report["precision"] is None
    painter.options = StrokesOptions(conflict=0.0, misalignment=0.0)
    records, _, tally = run(recipe())
    assert not records and "misses" not in verdict_report(tally)["verdicts"]["painter"]
    painter.alarm = 1.0
    report = verdict_report(run(recipe())[2])["verdicts"]["painter"]
    assert report["precision"] == 0.0 and report["recall"] is None


def test_the_painters_own_words_can_be_believed_and_are_measured(painter):
    records, skips, tally = run(recipe(believe=True))
    report = verdict_report(tally)["verdicts"]
    assert report["judge"] == report["painter"]
    assert report["judge"]["precision"] == 0.0 and report["judge"]["misses"] > 20
    assert {fault(r) for r in records} == {None, "misalignment"}
    assert all("no!" in r.trajectory.steps[-1].inspection for r in records if fault(r))


def test_settings_are_taken_in_turn(painter):
    run(recipe(size=9, settings=({}, {"temperature": 1.0}, {"guidance": 1.0})))
    assert [(n, s) for n, _, s in painter.calls] == [
        (3, {}), (3, {"temperature": 1.0}), (3, {"guidance": 1.0}),
    ]  # fmt: skip
    assert len({seed for _, seed, _ in painter.calls}) == 3


def test_a_shard_is_the_same_however_often_it_is_made(painter):
    def told(made):
        return [json.dumps([s.inspection for s in r.trajectory.steps]) for r in made[0]]

    assert told(run(recipe(), 50, 100)) == told(run(recipe(), 50, 100))
    assert told(run(recipe(), 50, 100)) != told(run(recipe(seed=1), 50, 100))


def test_what_the_judge_cannot_say_is_counted_and_an_earlier_step_may_serve(painter, monkeypatch):
    class Judge:
        def check(self, requests):
            return [
                Failed("no words", "of it", "conflict") if r.earlier else Verdict("right.")
                for r in requests
            ]

    painter.alarm = 0.0
    monkeypatch.setattr(self_sampling.Workshop, "judge", Judge())
    records, skips, tally = run(recipe())
    assert not records, "there is no faulty sketch to balance"
    assert {s.reason for s in skips} == {"no words"} and len(skips) > 50
    assert tally["sketches/not said: no words"] == len(skips)
    assert verdict_report(tally)["verdicts"]["painter"]["misses"] == len(skips)


def test_paintings_that_came_to_no_end_are_judged_as_far_as_they_go(painter, monkeypatch):
    whole = painter.stream

    def cut(prompts, **settings):
        for painting in whole(prompts, **settings):
            steps = (*painting.steps, Step("<ins>a</ins><des>b", None))
            yield dataclasses.replace(painting, steps=steps, finish_reason="malformed")

    monkeypatch.setattr(painter, "stream", cut)
    records, _, tally = run(recipe(size=40))
    assert records and tally["paintings/malformed"] == tally["paintings"] == 40


def test_names_and_options(painter):
    def built(kind, **options):
        sources = [{"kind": kind, "size": 4, "options": {"checkpoint": "here", **options}}]
        return build_recipe(from_mapping({"data": {"sources": sources}}).data)

    kinds = [built(kind).identity["kind"] for kind in ("conflict", "alignment", "own_sketches")]
    assert kinds == ["self_sampling:conflict", "self_sampling:alignment", "self_sampling:both"]
    assert built("conflict").identity["painted_by"] == {
        "step": 7, "weights": "ema", "fingerprint": "f00d",
    }  # fmt: skip
    wrongs = ({"settings": ()}, {"right_per_fault": -1.0}, {"wieghts": "ema"}, {"uncolored": 1.5})
    for wrong in (*wrongs, {"uncolored": 0.4, "prompts": "some.jsonl"}):
        with pytest.raises(ConfigError):
            built("conflict", **wrong)
    sources = [{"kind": "conflict", "size": 1000, "options": {}}]
    assert make_job(from_mapping({"data": {"sources": sources}})).shards == 5


def test_the_painter_that_comes_along_is_the_default(monkeypatch):
    asked = []
    monkeypatch.setattr(self_sampling, "load_painter", lambda *a: asked.append(a) or Painter())
    identity = SelfSampling("conflict", {}, 4, 0).identity
    assert asked == [("", "latest", "ema")] and identity["options"]["checkpoint"] == ""
    other = SelfSampling("conflict", {"checkpoint": "here"}, 4, 0).identity
    assert asked[1:] == [("here", "latest", "ema")] and other != identity


def test_other_weights_in_the_same_place_are_another_build(painter):
    def of(judge, fingerprint):
        painter.fingerprint = fingerprint
        makers = Makers(judge=judge, checkpoint="here")
        built = [
            SelfSampling("conflict", {"checkpoint": "here"}, 4, 0).identity,
            MultiTurn({"makers": makers}, 4, 0).identity,
        ]
        return [json.dumps(identity, sort_keys=True) for identity in built]

    assert of("model", "a") == of("model", "a")
    assert all(x != y for x, y in zip(of("model", "a"), of("model", "b"), strict=True))
    # Partner: where the checkpoint does nothing, its weights say nothing.
    assert of("oracle", "a")[1] == of("oracle", "b")[1]


# ---- judges of the model's own -------------------------------------------------------------------


def test_own_words():
    assert own_verdict("all fine.", None) == Verdict("all fine.")
    drawn = own_verdict("seen: x. bad. <refine>change it</refine>", None)
    assert drawn == Verdict("seen: x. bad.", "misalignment", "change it")
    planned = own_verdict("bad. <refine>change it</refine>", "<ins>a</ins><des>b</des>")
    assert (planned.fault, planned.corrected_plan) == ("conflict", "<ins>a</ins><des>b</des>")
    assert isinstance(own_verdict("<refine>half", None), Failed)
    request = CheckRequest("a star", {}, (), "", None)
    assert isinstance(OwnJudge().check([request])[0], Failed)


def test_a_checkpoint_inspects_what_it_did_not_paint(monkeypatch):
    calls = []
    plan = "<ins>a</ins><des>b</des>"

    class GoesOn:
        def paint(self, starts, **settings):
            calls.append((len(starts), settings["max_images"], settings["temperature"]))
            return [
                dataclasses.replace(
                    start,
                    steps=(
                        *start.steps[:-1],
                        dataclasses.replace(
                            start.steps[-1],
                            inspection=f"{start.prompt}. <refine>x</refine>",
                            refined_plan=plan if start.prompt == "b" else None,
                        ),
                    ),
                    finish_reason="max_images",
                )
                for start in starts
            ]  # fmt: skip

    monkeypatch.setattr(self_sampling, "load_painter", lambda *_: GoesOn())
    image = np.zeros((32, 32, 3), np.uint8)
    earlier = (Step("p", image, "fine"),)
    requests = [
        CheckRequest("a", {}, (), "p", image, 1),
        CheckRequest("b", {}, earlier, "p", image, 2),
        CheckRequest("c", {}, (), "p", None, 3),
        CheckRequest("d", {}, (), "p", image, 4),
    ]
    a, b, c, d = ModelJudge("here").check(requests)
    assert (a.analysis, a.fault, d.analysis) == ("a.", "misalignment", "d.")
    assert (b.analysis, b.fault) == ("b.", "conflict")
    assert isinstance(c, Failed)
    assert calls == [(2, 1, 0.0), (1, 2, 0.0)]


def test_what_a_judge_did_not_say_to_the_end_is_no_approval(monkeypatch):
    image = np.zeros((32, 32, 3), np.uint8)
    plan, fault = "<ins>a</ins><des>b</des>", "bad. <refine>x</refine>"
    done = Step("p", image, "fine")

    class Ends:
        """Closes each painting in the way that its prompt names."""

        def paint(self, starts, **settings):
            return [self.closed(start) for start in starts]

        def closed(self, start):
            end = {
                "cut": ((Step("p", image, "bad. <ref"),), "max_text"),
                "no room": ((Step("p", image),), "max_text"),
                "no room after it": ((Step("p", image, fault),), "max_text"),
                "wrongly drawn": ((Step("p", image, fault),), "max_images"),
                "unread": ((), "refused"),
                "plan cut": ((Step("p", image, fault, "<ins>a</ins><des>"),), "max_text"),
                "plan broken": ((Step("p", image, fault, "a, b"),), "malformed"),
                "no room for the repair": ((Step("p", image, fault, plan),), "max_text"),
                "the next is cut": ((done, Step("<ins>a")), "max_text"),
                "the next is broken": ((done, Step("a")), "malformed"),
            }
            steps, reason = end[start.prompt]
            return dataclasses.replace(start, steps=steps, finish_reason=reason)

    monkeypatch.setattr(self_sampling, "load_painter", lambda *_: Ends())

    def check(prompt):
        (answer,) = ModelJudge("here").check([CheckRequest(prompt, {}, (), "p", image)])
        return answer

    for prompt in ("cut", "no room"):
        assert check(prompt) == Failed("an inspection that came to no end")
    assert check("unread").reason == "a step that the judge could not read"
    for prompt in ("plan cut", "plan broken"):
        answer = check(prompt)
        assert (answer.reason, answer.fault) == (
            "a re-emitted plan that cannot be read",
            "conflict",
        )
    assert check("no room after it").reason == "a fault that there was no room to say more of"
    # Partners: what was said to the end counts, whatever became of the painting.
    assert check("wrongly drawn") == Verdict("bad.", "misalignment", "x")
    assert check("no room for the repair") == Verdict("bad.", "conflict", "x", plan)
    assert check("the next is cut") == check("the next is broken") == Verdict("fine")


def test_a_painter_that_was_cut_did_not_approve_of_its_sketch():
    image = np.zeros((32, 32, 3), np.uint8)
    plan = "<ins>a</ins><des>b</des>"

    def judged(reason):
        steps = (Step(plan, image, "fine"), Step(plan, image, "bad. <ref"))
        painting = Trajectory("a", steps=steps, finish_reason=reason)
        return OwnJudge().check(self_sampling._requests(0, painting))

    first, second = judged("max_text")
    assert first == Verdict("fine") and isinstance(second, Failed)
    assert judged("max_images") == [Verdict("fine"), Verdict("bad. <ref")]  # partner: its own words


def test_verdicts_are_counted_against_the_truth():
    right, drawn = Verdict("a"), Verdict("a", "misalignment", "b")
    planned, unknown = Verdict("a", "conflict", "b"), Failed("no answer")
    known = Failed("no words", fault="conflict")
    tally = collections.Counter()
    for said, true in [
        (drawn, drawn), (planned, drawn), (right, drawn), (drawn, right), (right, right),
        (right, right), (unknown, drawn), (right, unknown), (right, known), (planned, known),
    ]:  # fmt: skip
        tally.update(compare("judge", said, true))
    assert verdict_report(tally) == {
        "verdicts": {
            "judge": {
                "precision": 0.75, "recall": 0.6, "true alarms": 3, "false alarms": 1, "misses": 2,
                "true approvals": 2, "not compared": 2, "of the right kind": 2,
            }
        }
    }  # fmt: skip
    assert verdict_report({"other/thing": 3}) == {}
