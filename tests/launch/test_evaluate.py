"""The evaluate command: scores, files and mistakes, with a stand-in for the painter."""

from __future__ import annotations

import dataclasses
import json
import os
import signal

import numpy as np
import pytest

import process_gen
from launch import common, evaluate
from process_gen.checkpoint import shipped
from process_gen.core.configs import Config, SourceConfig
from process_gen.core.errors import CheckpointError
from process_gen.core.trajectory import Sampled, Trajectory
from process_gen.evaluation import choosing
from process_gen.sampling import records
from process_gen.strokes.layout import draw_objects, wanted
from process_gen.strokes.phrases import COMPLETE, FITS_INSTRUCTION, FITS_PROMPT
from process_gen.strokes.plans import StrokesOptions, build_trajectory
from process_gen.strokes.prompts import HELD_OUT_TAGS, TAGS, held_out
from process_gen.strokes.render import render
from process_gen.strokes.scene import EASY, HARD, Scene

APPROVED = f"{FITS_PROMPT} {FITS_INSTRUCTION} {COMPLETE}"
FINE = f"seen: nothing. {APPROVED}"


def draw(rng, requirement, world=EASY):
    """A picture that is right."""
    groups = draw_objects(rng, wanted(requirement), world)
    return render(Scene(tuple(item for group in groups for item in group), world))


def config_of(**options):
    """Settings of a painter that has learned from such paintings."""
    data = dataclasses.replace(Config().data, sources=(SourceConfig("strokes", options=options),))
    return dataclasses.replace(Config(), data=data)


def call(*arguments):
    common.run(evaluate.main, evaluate.define_flags, evaluate.__doc__, ["evaluate", *arguments])


class PerfectPainter:
    """Draws what is asked for, except that every `wrong`-th picture is empty."""

    config = Config()
    meta = {"path": "nowhere/checkpoints/3", "step": 3, "weights": "ema"}
    fingerprint = "f00d"

    def __init__(self, world=EASY):
        self.wrong, self.interrupt_after, self.asked, self.world = 0, None, [], world

    def stream(self, prompts, *, mode, seed, num, size, images, stop, usage, **settings):
        self.asked.append((mode, seed, num, size, settings))
        rng = np.random.default_rng(seed)
        for i, requirement in enumerate(prompts):
            if i == self.interrupt_after:
                os.kill(os.getpid(), signal.SIGINT)
            if stop():
                return
            for sample in range(num):
                image = np.full((*size, 3), 26, np.uint8)
                if not self.wrong or (i + sample) % self.wrong:
                    image = draw(rng, requirement, self.world)
                yield Trajectory(
                    requirement["prompt"],
                    "one_shot",
                    final_image=image,
                    finish_reason="finished",
                    metadata=requirement,
                    sampled=Sampled(i, sample, seed, 16, 0.5),
                )


@pytest.fixture
def painter(monkeypatch):
    made = PerfectPainter()
    monkeypatch.setattr(process_gen, "load", lambda path, **_: made, raising=False)
    monkeypatch.setattr(common, "enable_compilation_cache", lambda: None)
    return made


def test_scores_and_files(painter, tmp_path, capsys):
    painter.wrong = 4  # the first of every four: numbers 0, 4, 8, ... of 7 tags of 4
    out = tmp_path / "eval"
    call("--checkpoint=x", "--suite=strokes", "--num_per_tag=4", f"--out={out}", "--json")
    assert painter.asked == [("process", 0, 1, (32, 32), {})]
    printed = capsys.readouterr().out
    told = json.loads(printed.splitlines()[-1])
    assert told == json.loads((out / "scores.json").read_text())
    assert told["suite"] == "strokes" and told["mode"] == "process" and told["n"] == 28
    assert (told["checkpoint"], told["step"]) == ("nowhere/checkpoints/3", 3)
    assert (told["weights"], told["seed"], told["settings"]["guidance"]) == ("ema", 0, 1.5)
    overall = told["overall"]
    assert overall["exact"] == overall["geneval"] == 0.75
    assert 0.5 < overall["exact_low"] < 0.75 < overall["exact_high"] < 0.95
    assert list(told["tags"]) == list(TAGS)
    assert told["tags"]["complex"]["exact"] == 0.75 and told["tags"]["complex"]["n"] == 4
    assert told["process"]["finish_reasons"] == {"finished": 28}
    assert "overall" in printed and "75.0" in printed and "complex" in printed

    painted = list(records.read(out))
    assert len(painted) == 28
    assert all(held_out(t.prompt) for t in painted if t.metadata["tag"] in HELD_OUT_TAGS)
    page = (out / "report.html").read_text("utf-8")
    assert all(tag in page for tag in TAGS) and page.count("exact wrong") >= 1


def test_all_right_is_one(painter, tmp_path, capsys):
    call(
        "--checkpoint=x",
        "--suite=strokes",
        "--num_per_tag=2",
        "--one_shot",
        "--seed=5",
        "--set=one_shot_guidance=1",
        f"--out={tmp_path / 'eval'}",
        "--json",
    )
    assert painter.asked == [("one_shot", 5, 1, (32, 32), {"one_shot_guidance": 1})]
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["overall"]["exact"] == 1.0 and told["mode"] == "one_shot"


def test_the_best_of_several_is_scored_too(painter, tmp_path, capsys):
    painter.wrong = 2  # one of the two paintings of each prompt
    flags = ["--suite=strokes", "--num_per_tag=2", "--one_shot", "--num=2", "--json"]
    call("--checkpoint=x", *flags, f"--out={tmp_path / 'eval'}")
    printed = capsys.readouterr().out
    told = json.loads(printed.splitlines()[-1])
    assert told["n"] == 28 and told["overall"]["exact"] == 0.5
    best = told["best"]
    assert (best["num"], best["nfe"], best["overall"]["exact"]) == (2, 32, 1.0)
    assert best["tags"]["complex"]["n"] == 2 and best["overall"]["exact_low"] < 0.9
    assert "best of 2, exact" in printed and "32 NFE a prompt" in printed


def test_an_inspector_chooses_too(painter, tmp_path, capsys, monkeypatch):
    painter.wrong = 2  # the first of the two paintings of every other prompt
    flags = ["--checkpoint=x", "--suite=strokes", "--num_per_tag=2", "--one_shot", "--json"]

    def see(starts):
        """A plan is judged right at once; what is not empty shows a star."""
        shown = [s.steps[0].sketch.std() > 0 for s in starts]
        return [f"seen: {'red star top left' if star else 'nothing'}. {APPROVED}" for star in shown]

    monkeypatch.setattr(choosing, "inspections_of", lambda who: see)
    call(*flags, "--num=2", "--inspector=", f"--out={tmp_path / 'eval'}")
    printed = capsys.readouterr().out
    told = json.loads(printed.splitlines()[-1])
    chosen = told["chosen"]
    assert chosen["overall"]["exact"] == 1.0 and told["overall"]["exact"] == 0.5
    assert set(chosen["found"]) == set(choosing.WORTH)
    assert {k: n for k, n in chosen["found"].items() if n} == {"unfinished": 14, "complete": 14}
    assert chosen["inspector"] == painter.meta["path"] and chosen["nfe"] == 32
    assert "chosen of 2, exact" in printed and "chosen by the inspector" in printed

    monkeypatch.setattr(choosing, "inspections_of", lambda who: lambda starts: [None] * len(starts))
    call(*flags, "--num=2", "--inspector=", f"--out={tmp_path / 'blind'}")
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["chosen"]["overall"]["exact"] == 0.5  # the first of each two


def test_an_inspector_that_is_not_there_costs_no_paintings(painter, tmp_path, capsys, monkeypatch):
    def load(path, **_):
        if path == "gone":
            raise CheckpointError("nothing in gone")
        return painter

    monkeypatch.setattr(process_gen, "load", load)
    flags = ["--checkpoint=x", "--suite=strokes", "--num_per_tag=2", "--one_shot", "--num=2"]
    with pytest.raises(SystemExit):
        call(*flags, "--inspector=gone", f"--out={tmp_path / 'eval'}")
    assert "nothing in gone" in capsys.readouterr().err
    assert not painter.asked


def test_an_inspector_of_another_world_costs_no_paintings(painter, tmp_path, capsys, monkeypatch):
    other = PerfectPainter(HARD)
    other.config = config_of(world="hard")
    monkeypatch.setattr(process_gen, "load", lambda path, **_: other if path == "hard" else painter)
    flags = ["--checkpoint=x", "--suite=strokes", "--num_per_tag=2", "--one_shot", "--num=2"]
    with pytest.raises(SystemExit):
        call(*flags, "--inspector=hard", f"--out={tmp_path / 'eval'}")
    assert "learned from the hard one only" in capsys.readouterr().err
    assert not painter.asked


@pytest.mark.parametrize("more", [["--suite=strokes"], ["--suite=inspection"]])
def test_nobody_chooses_from_one(painter, tmp_path, capsys, more):
    with pytest.raises(SystemExit):
        call("--checkpoint=x", *more, "--inspector=", f"--out={tmp_path / 'eval'}")
    assert "--num=K paintings" in capsys.readouterr().err
    assert not painter.asked


def test_the_hard_world(monkeypatch, tmp_path, capsys):
    painter = PerfectPainter(HARD)
    painter.wrong, painter.config = 7, config_of(world="hard")  # the first of its seven prompts
    monkeypatch.setattr(process_gen, "load", lambda *args, **kwargs: painter)
    call("--checkpoint=x", "--suite=strokes_hard", "--num_per_tag=1", f"--out={tmp_path}", "--json")
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert painter.asked == [("process", 0, 1, (48, 48), {})]
    assert told["suite"] == "strokes_hard" and told["overall"]["exact"] == pytest.approx(6 / 7)
    judged = [json.loads(row)["values"] for row in (tmp_path / "verdicts.jsonl").open()]
    assert [v["exact"] for v in judged] == [False, *[True] * 6]


@pytest.mark.parametrize(
    ("learned", "arguments", "words"),
    [
        ("easy", ["--suite=strokes_hard"], "has learned from the easy one only"),
        ("hard", ["--suite=strokes"], "has learned from the hard one only"),
        ("hard", ["--suite=context"], "--suite=context is about the easy Strokes world"),
        ("hard", ["--suite=strokes_hard", "--size=32x32"], "judged at 48x48 px, not at 32x32"),
        ("hard", ["--suite=inspection_hard", "--num=2"], "paints each of its prompts once"),
        ("hard", ["--suite=strokes_hard", "--prompts=p.jsonl"], "line 1: 'include'[0]"),
    ],
)
def test_worlds_are_not_mixed(monkeypatch, tmp_path, capsys, learned, arguments, words):
    monkeypatch.chdir(tmp_path)
    line = {"tag": "single_object", "include": [{"class": "star"}], "prompt": "a star"}
    (tmp_path / "p.jsonl").write_text(json.dumps(line))
    painter = PerfectPainter()
    painter.config = config_of(world=learned)
    monkeypatch.setattr(process_gen, "load", lambda *args, **kwargs: painter)
    with pytest.raises(SystemExit) as stopped:
        call("--checkpoint=x", *arguments, "--out=new")
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and error.count("\n") == 1 and words in error
    assert not painter.asked and not (tmp_path / "new").exists()


def test_prompts_of_a_file(painter, tmp_path, capsys):
    file = tmp_path / "prompts.jsonl"
    line = (
        '{"tag": "colors", "include": [{"class": "star", "color": "red"}], "prompt": "a red star"}'
    )
    file.write_text(f"\n{line}\n{line}\n")
    out = tmp_path / "eval"
    call("--checkpoint=x", "--suite=strokes", f"--prompts={file}", f"--out={out}", "--json")
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (
        list(told["tags"]) == ["colors"] and told["n"] == 2 and "position" in told["missing_tags"]
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a red star\n", "line 1: plain text cannot be scored"),
        ('{"prompt": "a red star"}\n', "line 1: 'tag' is None"),
        (
            '\n{"prompt": "a", "tag": "colors", "include": [{"class": "dog"}]}',
            "line 2: 'include'[0]",
        ),
        (b"\xff", "line 1: not valid UTF-8"),
    ],
)
def test_a_file_that_cannot_be_scored(painter, tmp_path, capsys, text, words):
    file = tmp_path / "prompts.jsonl"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(SystemExit) as stopped:
        call("--checkpoint=x", "--suite=strokes", f"--prompts={file}", f"--out={tmp_path / 'eval'}")
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and error.count("\n") == 1 and words in error
    assert not painter.asked and not (tmp_path / "eval").exists()


class Apprentice(PerfectPainter):
    """Paints step by step like the training data, and inspects what it is given."""

    def stream(self, prompts, *, mode, seed, num, size, images, stop, usage, **settings):
        self.asked += prompts
        options = StrokesOptions(
            prompts="held_out", conflict=0.3, misalignment=0.3, world=self.world.name
        )
        for i, given in enumerate(prompts):
            if isinstance(given, Trajectory) and not given.steps:
                given = given.metadata
            if isinstance(given, Trajectory):
                last = dataclasses.replace(given.steps[-1], inspection=FINE)
                trajectory = dataclasses.replace(given, steps=(*given.steps[:-1], last))
            else:
                trajectory = build_trajectory(np.random.default_rng(i), given, options)
            sampled = Sampled(i, 0, seed, 16, 0.5)
            yield dataclasses.replace(trajectory, finish_reason="finished", sampled=sampled)


def test_process_paintings_are_judged_step_by_step(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(process_gen, "load", lambda *args, **kwargs: Apprentice())
    call("--checkpoint=x", "--suite=strokes", "--num_per_tag=4", f"--out={tmp_path}", "--json")
    printed = capsys.readouterr().out
    told = json.loads(printed.splitlines()[-1])
    assert told["steps"]["plan_correct"] == 1.0
    assert told["steps"]["inspection"]["recall"] == 1.0
    assert 0 < told["steps"]["inspection"]["recall_low"] < 1
    assert "plan correct" in printed and "false alarms" in printed


def test_the_inspection_suite(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(process_gen, "load", lambda *args, **kwargs: Apprentice())
    call("--checkpoint=x", "--suite=inspection", "--num_per_tag=1", f"--out={tmp_path}", "--json")
    printed = capsys.readouterr().out
    told = json.loads(printed.splitlines()[-1])
    assert (told["n"], told["recall"], told["false_alarms"], told["damaged"]) == (21, 0, 0, 0)
    assert "recall conflict" in printed


def test_probes_are_inspected_as_the_painter_has_learned(monkeypatch, tmp_path):
    for way, seen in (("verdict", False), ("see_then_judge", True)):
        painter = Apprentice(HARD)
        painter.config = config_of(world="hard", inspection=way)
        monkeypatch.setattr(process_gen, "load", lambda *_, made=painter, **__: made)
        flags = ["--suite=inspection_hard", "--num_per_tag=1", f"--out={tmp_path / way}"]
        call("--checkpoint=x", *flags)
        before = [step.inspection for start in painter.asked for step in start.steps[:-1]]
        assert before and all(("seen:" in text) is seen for text in before)


def test_the_context_suite(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(process_gen, "load", lambda *args, **kwargs: Apprentice())
    call("--checkpoint=x", "--suite=context", "--num_per_tag=2", f"--out={tmp_path}", "--json")
    printed = capsys.readouterr().out
    told = json.loads(printed.splitlines()[-1])
    assert told["suite"] == "context" and told["n"] == 8 and told["paintings"] == 16
    assert told["own"]["judged"] > 4 and 0 < told["own"]["plan_consistent_low"] < 1
    assert told["true"]["ended"] == 8 and told["true_minus_own"]["pairs"] == 0  # goes on with none
    assert "own: plan consistent" in printed and "true: 0 steps judged, 8 had ended" in printed


def test_an_interrupted_suite_is_not_scored(painter, tmp_path, capsys):
    painter.interrupt_after = 3
    out = tmp_path / "eval"
    with pytest.raises(SystemExit) as stopped:
        call("--checkpoint=x", "--suite=strokes", f"--out={out}")
    assert stopped.value.code == 130 and "not scored" in capsys.readouterr().out
    assert len(list(records.read(out))) == 3
    assert (out / "report.html").exists() and not (out / "scores.json").exists()
    painter.interrupt_after = None
    with pytest.raises(SystemExit) as stopped:
        call("--checkpoint=x", "--suite=strokes", "--num_per_tag=1", f"--out={out}")
    assert stopped.value.code == 2
    call("--checkpoint=x", "--suite=strokes", "--num_per_tag=1", f"--out={out}", "--overwrite")
    assert len(list(records.read(out))) == 7 and (out / "scores.json").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--suite=strokes", "--out=x"], "python -m launch.train"),
        (["--checkpoint=x", "--out=x"], "--suite is missing"),
        (["--checkpoint=x", "--suite=geneva", "--out=x"], "--suite=geneva is unknown"),
        (["--checkpoint=x", "--suite=strokes", "--out=x", "--judge=a=b"], "--judge belongs to gen"),
        (["--checkpoint=x", "--suite=strokes"], "--out is missing"),
        (["--checkpoint=x", "--suite=strokes", "--out=x", "--num_per_tag=0"], "num_per_tag"),
        (["--checkpoint=x", "--suite=strokes", "--out=x", "--set=batch=0"], "batch must be"),
    ],
)
def test_mistakes_are_one_line_and_status_2(
    painter, tmp_path, monkeypatch, capsys, arguments, words
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(shipped, "DEFAULT", tmp_path / "no painter")
    with pytest.raises(SystemExit) as stopped:
        call(*arguments)
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and error.count("\n") == 1 and words in error
    assert not list(tmp_path.iterdir())


def test_help_fits_a_screen_and_shows_an_example(capsys):
    call("--help")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 24 and max(map(len, lines)) <= 100
    assert any("python -m launch.evaluate --checkpoint=" in line for line in lines)


def test_a_painter_that_never_learned_scores_nothing(untrained, tmp_path, capsys):
    flags = [
        "--suite=strokes",
        "--num_per_tag=1",
        "--one_shot",
        f"--out={tmp_path / 'e'}",
        "--json",
    ]
    call(f"--checkpoint={untrained}", *flags)
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["overall"]["exact"] == 0.0 and told["process"]["finish_reasons"] == {"finished": 7}
    assert told["step"] == 3 and told["pictures"] == 7
    assert '<h2 id="curves">' in (tmp_path / "e" / "report.html").read_text("utf-8")
