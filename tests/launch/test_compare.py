"""The compare command: folders in, tables, JSON and page out."""

from __future__ import annotations

import dataclasses
import json
import re

import numpy as np
import pytest

from launch import common, compare
from process_gen.core.trajectory import Sampled, Trajectory
from process_gen.evaluation import judged
from process_gen.report.runs import read_run
from process_gen.sampling import records

TAGS = ("colors", "position")


def call(*arguments):
    argv = compare.words(["launch.compare", *arguments])
    common.run(compare.main, compare.define_flags, compare.__doc__, argv)


def a_run(folder, right, *, prompts=12, seed=0, scored=True, suite="strokes", values=None):
    """A run whose painting `i` is right where `right(i)`."""
    image = np.full((8, 8, 3), 50 + seed, np.uint8)
    lines = []
    with records.Recorder(folder) as recorder:
        for i in range(prompts):
            trajectory = Trajectory(
                f"prompt <b>{i}</b>",
                "one_shot",
                final_image=image,
                finish_reason="finished",
                metadata={"tag": TAGS[i % 2]},
                sampled=Sampled(i, 0, seed, 10 + seed, 0.5),
            )
            record = recorder.add(trajectory)
            lines.append(judged.of_record(record, values(i) if values else {"exact": right(i)}))
    judged.write(folder, lines)
    made_by = {"checkpoint": f"{folder}/none/1", "checkpoint_hash": f"hash{seed}", "seed": seed}
    made_by |= {"settings": {"guidance": 1.5, "denoise_steps": 10 + seed}}
    (folder / "run.json").write_text(json.dumps(made_by))
    if scored:
        rate = sum(map(right, range(prompts))) / prompts
        row = {"exact": rate, "exact_low": max(rate - 0.2, 0), "exact_high": min(rate + 0.2, 1)}
        scores = {"suite": suite, "tags": dict.fromkeys(TAGS, row), "overall": row, **made_by}
        (folder / "scores.json").write_text(json.dumps(scores))
    return folder


@pytest.fixture
def pair(tmp_path):
    a = a_run(tmp_path / "runs" / "a" / "eval", lambda i: i < 3)
    b = a_run(tmp_path / "runs" / "b" / "eval", lambda i: i < 10, seed=1)
    return a, b


def test_two_runs(pair, tmp_path, capsys):
    out = tmp_path / "out"
    call("--runs", *map(str, pair), f"--out={out}", "--json")
    printed = capsys.readouterr().out
    told = json.loads(printed.splitlines()[-1])
    assert told == json.loads((out / "compare.json").read_text())
    assert [run["name"] for run in told["runs"]] == ["a", "b"] and told["baseline"] == "a"
    assert told["runs"][1]["pairs"] == 12
    (measure,) = told["measures"]
    overall, *tags = measure["rows"]
    assert (overall["tag"], measure["name"]) == ("overall", "exact")
    assert [row["tag"] for row in tags] == list(TAGS)
    moved = overall["differences"]["b"]
    assert moved["difference"] == pytest.approx(7 / 12) and moved["clear"]
    assert (moved["pairs"], moved["better"], moved["worse"]) == (12, 7, 0)
    assert {name for name in told["settings"]} >= {"checkpoint_hash", "seed", "denoise_steps"}
    assert "guidance" not in told["settings"]
    nfe = next(row for row in told["costs"] if row["name"] == "nfe")
    assert nfe["differences"]["b"]["difference"] == 1 and not nfe["differences"]["b"]["clear"]
    assert "+58.3*" in printed and "settings that differ" in printed and "7, 0" in printed
    assert "--runs=" in told["command"] and told["commit"]

    page = (out / "compare.html").read_text("utf-8")
    assert page.count("<article") == 12 and page.count('<section class="side"') == 24
    assert page.count('data-outcome="exact: only b"') == 7 and "prompt &lt;b&gt;0" in page
    assert page.count('data-outcome="exact: all"') == 3 and "<b>0</b>" not in page


def test_names_are_no_markup(pair, tmp_path, capsys):
    call("--runs", f"run[v2]={pair[0]}", f"[/x]={pair[1]}", f"--out={tmp_path / 'out'}")
    printed = capsys.readouterr().out
    assert printed.count("run[v2]") > 3 and printed.count("[/x]") > 3


def test_the_same_run_twice_differs_in_nothing(pair, tmp_path, capsys):
    call("--runs", f"x={pair[0]}", f"y={pair[0]}", f"--out={tmp_path / 'out'}", "--json")
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    (moved,) = told["measures"][0]["rows"][0]["differences"].values()
    assert moved["difference"] == 0 and not moved["clear"] and told["settings"] == {}


def test_a_run_without_its_counterpart_is_compared_by_rates(pair, tmp_path, capsys):
    short = a_run(tmp_path / "runs" / "short", lambda i: True, prompts=6, seed=2)
    three = ["a=" + str(pair[0].parent), "b=" + str(pair[1]), "short=" + str(short)]
    call("--runs", *three, f"--out={tmp_path / 'out'}", "--show=4", "--json")
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    moved = told["measures"][0]["rows"][0]["differences"]
    assert (moved["b"]["pairs"], moved["short"]["pairs"]) == (12, 0)
    assert moved["short"]["difference"] == pytest.approx(0.75)
    page = (tmp_path / "out" / "compare.html").read_text("utf-8")
    assert page.count("<article") == 4 and "4 of 12 prompts" in page
    assert "compared pair by pair: b 12." in page


def test_scores_alone_and_paintings_alone(pair, tmp_path, capsys):
    trial = tmp_path / "trial.json"
    scores = json.loads((pair[1] / "scores.json").read_text())
    trial.write_text(json.dumps({"trial": "x", "scores": scores}))
    bare = a_run(tmp_path / "bare", lambda i: i % 2 == 0, scored=False)
    call("--runs", f"a={pair[0]}", f"t={trial}", f"n={bare}", f"--out={tmp_path / 'o'}", "--json")
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    rates = told["measures"][0]["rows"][0]["runs"]
    assert rates["t"]["rate"] == pytest.approx(10 / 12) and rates["n"]["rate"] == pytest.approx(0.5)


def test_scores_and_paintings_of_a_run_come_from_one_folder(pair, tmp_path, capsys):
    demo = a_run(tmp_path / "demo", bool, prompts=3, seed=7, scored=False)  # nearer, not scored
    a_run(demo / "evaluation", lambda i: i < 5, seed=2)
    call("--runs", f"a={pair[0]}", f"demo={demo}", f"--out={tmp_path / 'out'}", "--json")
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [run["pairs"] for run in told["runs"]] == [12, 12]
    assert read_run(demo, "demo").records == demo / "evaluation" / records.FINISHED
    assert (tmp_path / "out" / "compare.html").read_text("utf-8").count("<article") == 12
    (demo / "evaluation" / records.FINISHED).unlink()
    assert read_run(demo, "demo").records is None  # rather than others
    (demo / "evaluation" / "scores.json").unlink()
    assert read_run(demo, "demo").records == demo / records.FINISHED


def test_a_judged_painting_without_its_record(pair, tmp_path, capsys):
    lines = pair[1] / records.FINISHED
    lines.write_text("".join(lines.read_text().splitlines(keepends=True)[:9]))
    with pytest.raises(SystemExit) as stopped:
        call("--runs", *map(str, pair), f"--out={tmp_path / 'out'}")
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and "holds no painting 9, sample 0" in error
    assert str(lines) in error and not (tmp_path / "out").exists()


def test_scores_between_0_and_1(tmp_path, capsys):
    for name, up in (("a", 0.0), ("b", 0.25)):
        a_run(tmp_path / name, bool, scored=False, values=lambda i, up=up: {"wiscore": 0.5 + up})
    call("--runs", str(tmp_path / "a"), str(tmp_path / "b"), f"--out={tmp_path / 'o'}", "--json")
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    moved = told["measures"][0]["rows"][0]["differences"]["b"]
    assert moved["difference"] == pytest.approx(0.25) and moved["better"] == 12
    assert "wiscore 0.75" in (tmp_path / "o" / "compare.html").read_text("utf-8")


def test_curves_of_several_runs(tmp_path, capsys):
    for name, end in (("a", 0.5), ("b", 0.25)):
        run = tmp_path / name / "run"
        run.mkdir(parents=True)
        rows = [{"step": s, "split": "train", "loss": end + 1 / s} for s in (1, 2, 3)]
        (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    call("--runs", str(tmp_path / "a"), str(tmp_path / "b"), f"--out={tmp_path / 'o'}")
    page = (tmp_path / "o" / "compare.html").read_text("utf-8")
    assert re.findall('class="line (run-[01])"', page) == ["run-0", "run-1"]
    assert "<title>a</title>" in page and "a ends at 0.833, b ends at 0.583" in page


def test_names():
    assert [n for n, _ in compare.named(["runs/a/eval", "runs/b/eval"])] == ["a", "b"]
    assert [n for n, _ in compare.named(["x/s", "y/s", "mine=z"])] == ["x", "y", "mine"]
    assert compare.words(["c", "--runs", "a", "b", "--json", "--runs", "c"]) == [
        "c",
        "--runs=a",
        "--runs=b",
        "--json",
        "--runs=c",
    ]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda a, b: ["--runs", a], "at least two runs"),
        (lambda a, b: ["--runs", a, a], "two runs are called"),
        (lambda a, b: ["--runs", a, "nowhere"], "no such folder"),
        (lambda a, b: ["--runs", a, f"x={b.parent.parent}"], "several scores.json"),
        (lambda a, b: ["--runs", a, f"x={b / 'pictures'}"], "holds none of"),
        (lambda a, b: ["--runs", a, f"x={b / 'run.json'}"], "no scores in it"),
    ],
)
def test_mistakes_are_one_line_and_status_2(pair, tmp_path, capsys, change, words):
    with pytest.raises(SystemExit) as stopped:
        call(*map(str, change(*pair)), f"--out={tmp_path / 'out'}")
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and error.count("\n") == 1 and words in error
    assert not (tmp_path / "out").exists()


def test_other_suites_and_damaged_files(pair, tmp_path, capsys):
    other = a_run(tmp_path / "other", lambda i: True, suite="geneval")
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "scores.json").write_text("{")
    for run, words in ((other, "different suites: geneval, strokes"), (damaged, "cannot be read")):
        with pytest.raises(SystemExit):
            call("--runs", str(pair[0]), f"x={run}", f"--out={tmp_path / 'out'}")
        assert words in capsys.readouterr().err


def test_an_earlier_comparison_is_replaced_only_on_request(pair, tmp_path, capsys):
    words = ["--runs", *map(str, pair), f"--out={tmp_path / 'out'}"]
    call(*words)
    with pytest.raises(SystemExit):
        call(*words)
    assert "--overwrite" in capsys.readouterr().err
    call(*words, "--overwrite")


def test_help_fits_a_screen_and_shows_an_example(capsys):
    call("--help")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 24 and max(map(len, lines)) <= 100
    assert any("python -m launch.compare --runs" in line for line in lines)


def test_a_judged_painting_survives_the_file(tmp_path):
    one = judged.Judged(1, 0, "p", "t", "finished", 2, 3, 20, 0.5, {"exact": True, "score": 0.5})
    judged.write(tmp_path, [one, dataclasses.replace(one, index=2)])
    assert list(judged.read(tmp_path / judged.FILE)) == [one, dataclasses.replace(one, index=2)]
