"""The benchmarks of launch.evaluate, from prompts to tables, with a stand-in for the painter."""

from __future__ import annotations

import json
import os
import signal

import numpy as np
import pytest

import process_gen
from launch import common, compare, evaluate
from process_gen.core.configs import Config
from process_gen.core.trajectory import Sampled, Trajectory
from process_gen.sampling import records
from tests.curation.fake_server import FakeServer


def call(*arguments):
    common.run(evaluate.main, evaluate.define_flags, evaluate.__doc__, ["evaluate", *arguments])


class Painter:
    """Paints greys; may be interrupted."""

    config = Config()
    meta = {"path": "nowhere/checkpoints/3", "step": 3, "weights": "ema"}
    fingerprint = "f00d"

    def __init__(self):
        self.interrupt_after, self.painted = None, 0

    def stream(self, prompts, *, mode, seed, num, size, images, stop, usage, skip=(), **settings):
        assert size is None or size == (16, 16)
        for i, item in enumerate(prompts):
            for sample in range(num):
                if (i, sample) in skip:
                    continue
                if self.painted == self.interrupt_after:
                    os.kill(os.getpid(), signal.SIGINT)
                if stop():
                    return
                self.painted += 1
                yield Trajectory(
                    item["prompt"],
                    mode,
                    final_image=np.full((16, 16, 3), i, np.uint8),
                    finish_reason="finished",
                    metadata=item,
                    sampled=Sampled(i, sample, seed, 16, 0.5),
                )


@pytest.fixture
def painter(monkeypatch):
    made = Painter()
    monkeypatch.setattr(process_gen, "load", lambda path, **_: made, raising=False)
    monkeypatch.setattr(common, "enable_compilation_cache", lambda: None)
    return made


def files(folder):
    return sorted(str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file())


def official_scorer(folder, results, right):
    """What evaluate_images.py does with a folder, with `right` in place of a detector."""
    lines = []
    for sub in os.listdir(folder):
        metadata = json.loads((folder / sub / "metadata.jsonl").read_text())
        for name in os.listdir(folder / sub / "samples"):
            path = os.path.join(folder, sub, "samples", name)
            row = {"filename": path, "tag": metadata["tag"], "prompt": metadata["prompt"]}
            row |= {"correct": right(int(sub), int(name[:-4])), "reason": ""}
            lines.append(json.dumps({**row, "metadata": json.dumps(metadata), "details": "{}"}))
    results.write_text("\n".join(lines))


def test_geneval_from_prompts_to_tables(painter, tmp_path, capsys):
    out = tmp_path / "out"
    words = ["--checkpoint=x", "--suite=geneval", "--one_shot", "--num_per_tag=2", "--num=3"]
    words += [f"--out={out}", "--seed=4"]
    painter.interrupt_after = 20
    with pytest.raises(SystemExit) as stopped:
        call(*words)
    assert stopped.value.code == 130 and "--resume goes on" in capsys.readouterr().out
    assert len([f for f in files(out / "geneval") if f.endswith(".png")]) == 20
    painter.interrupt_after = None
    call(*words, "--resume")
    assert painter.painted == 36  # none twice
    expected = [f"{i:05d}/metadata.jsonl" for i in range(12)]
    expected += [f"{i:05d}/samples/{s:04d}.png" for i in range(12) for s in range(3)]
    assert files(out / "geneval") == sorted(expected)
    told = capsys.readouterr().out
    assert "evaluate_images.py" in told and not (out / "scores.json").exists()
    assert (out / "report.html").read_text("utf-8").count("<article") == 36

    # The first prompt of each tag is right twice of three times, the others never.
    results = tmp_path / "results.jsonl"
    official_scorer(out / "geneval", results, lambda i, s: i % 2 == 0 and s < 2)
    call(*words, f"--results={results}", "--json")
    printed = capsys.readouterr().out
    scores = json.loads(printed.splitlines()[-1])
    assert scores == json.loads((out / "scores.json").read_text())
    assert scores["overall"]["geneval_correct"] == pytest.approx(1 / 3)
    assert scores["prompts_right"] == 0.5 and scores["n"] == 36 and scores["unjudged"] == 0
    assert scores["tags"]["position"]["n"] == 6
    for name in ("checkpoint_hash", "seed", "dtype", "command", "commit", "num", "settings"):
        assert name in scores, name
    assert (scores["seed"], scores["num"], scores["checkpoint_hash"]) == (4, 3, "f00d")
    assert "33.3" in printed and "overall" in printed
    page = (out / "report.html").read_text("utf-8")
    assert "geneval_correct wrong" in page and "checkpoint hash <b>f00d</b>" in page
    with pytest.raises(SystemExit):
        call(*words, "--num=2", f"--results={results}")
    assert "other --prompts, --num_per_tag or --num" in capsys.readouterr().err

    other = tmp_path / "other"
    call(*words[:-2], f"--out={other}", "--seed=4")
    official_scorer(other / "geneval", results, lambda i, s: i % 2 == 0)
    call(*words[:-2], f"--out={other}", f"--results={results}")
    found = compare.compare([("a", out), ("b", other)], tmp_path / "cmp")
    moved = found["measures"][0]["rows"][0]["differences"]["b"]
    assert moved["difference"] == pytest.approx(1 / 6) and moved["pairs"] == 36
    assert (moved["better"], moved["worse"]) == (6, 0)


def test_other_layouts(painter, tmp_path, capsys):
    call("--checkpoint=x", "--suite=genevalpp", "--num_per_tag=1", f"--out={tmp_path / 'p'}")
    assert files(tmp_path / "p" / "genevalpp")[1:] == [f"image/{i}.jpg" for i in range(1, 8)]
    words = ["--checkpoint=x", "--suite=t2i_compbench", "--num_per_tag=1", "--num=2"]
    call(*words, f"--out={tmp_path / 't'}", "--size=16x16")
    found = files(tmp_path / "t" / "t2i_compbench")
    assert len(found) == 16 and "color/samples/a green bench and a blue bowl_000001.png" in found
    call(*words, f"--out={tmp_path / 't'}", "--num_per_tag=1", "--num=1", "--overwrite")
    assert len(files(tmp_path / "t" / "t2i_compbench")) == 8  # of the earlier run, nothing is left
    assert len(list(records.read(tmp_path / "t"))) == 8


def wise_file(tmp_path):
    rows = [
        {"Prompt": f"prompt {n}", "Explanation": "e", "Subcategory": "s", "prompt_id": n}
        for n in (1, 2, 450, 700, 990)
    ]
    (tmp_path / "some.json").write_text(json.dumps(rows))
    return str(tmp_path / "some.json")


@pytest.mark.parametrize(
    ("suite", "measure", "answer", "value"),
    [
        ("wise_verified", "wise_verified_score", "Score: 1", 1.0),
        (
            "wise_legacy",
            "wise_legacy_wiscore",
            "Consistency: 2\nRealism: 1\nAesthetic Quality: 0",
            0.8,
        ),
    ],
)
def test_wise_with_a_judge(painter, tmp_path, capsys, suite, measure, answer, value):
    out = tmp_path / "out"
    with FakeServer() as server:
        server.answers["judge"] = lambda text: answer
        judge = [
            f"--judge=base_url={server.url}",
            "--judge=api_key_env=",
            "--judge=chat_model=tiny",
        ]
        judge.append(f"--judge=cache={tmp_path / 'cache'}")
        words = ["--checkpoint=x", f"--suite={suite}", "--one_shot", f"--out={out}"]
        call(*words, f"--prompts={wise_file(tmp_path)}", *judge, "--json")
    printed = capsys.readouterr().out
    scores = json.loads(printed.splitlines()[-1])
    assert scores["suite"] == suite and scores["tags"]["culture"][measure] == pytest.approx(value)
    assert scores["overall"][measure] is None  # 5 of 1000 prompts
    assert f"{suite}, judge tiny" in scores["about"] and "in our words" in scores["about"]
    assert (
        "not comparable" in scores["about"] and "of all 1000 prompts only" in scores["overall_is"]
    )
    assert files(out / suite) == ["1.png", "2.png", "450.png", "700.png", "990.png"]
    page = (out / "report.html").read_text("utf-8")
    assert measure in page and "judge tiny" in page
    rows = [json.loads(r) for r in (out / "wise_scores_results.jsonl").read_text().splitlines()]
    assert [r["prompt_id"] for r in rows] == [1, 2, 450, 700, 990]
    again = [*words, f"--prompts={wise_file(tmp_path)}"]
    call(*again, f"--results={out / 'wise_scores_results.jsonl'}", "--json")
    back = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert back["tags"] == scores["tags"] and "own scorer" in back["about"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--suite=wise_legacy"], "clone github.com/PKU-YuanGroup/WISE"),
        (["--suite=geneval", "--judge=chat_model=x"], "has its own scorer"),
        (["--suite=geneval", "--results=r.jsonl"], "no painted geneval"),
        (["--suite=genevalpp", "--num=2"], "takes 1 painting a prompt"),
        (["--suite=geneval", "--prompts=nowhere"], "cannot read nowhere"),
        (["--suite=geneval", "--size=big"], "--size is HxW"),
        (["--suite=geneval", "--inspector="], "chooses among paintings of strokes"),
        (["--suite=strokes", "--judge=chat_model=x"], "--judge belongs to geneval"),
    ],
)
def test_mistakes_are_one_line_and_status_2(painter, tmp_path, capsys, arguments, words):
    with pytest.raises(SystemExit) as stopped:
        call("--checkpoint=x", *arguments, f"--out={tmp_path / 'out'}")
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and error.count("\n") == 1 and words in error
    assert not painter.painted and not (tmp_path / "out").exists()
