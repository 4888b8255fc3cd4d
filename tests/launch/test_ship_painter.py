"""Handing a painter on: what is written paints, with the settings that were given."""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest

import process_gen
from launch import common, ship_painter, suites
from process_gen.checkpoint import shipped
from process_gen.core.configs import SourceConfig


def call(*arguments):
    common.run(
        ship_painter.main, ship_painter.define_flags, ship_painter.__doc__, ["ship", *arguments]
    )


@pytest.fixture
def scores(tmp_path):
    file = tmp_path / "scores.json"
    file.write_text(json.dumps({"suite": "strokes", "mode": "process", "overall": {"exact": 0.5}}))
    return file


def test_what_is_written_paints(untrained, tmp_path, scores, capsys):
    out = tmp_path / "painter"
    call(f"--checkpoint={untrained}", f"--scores={scores}", "--set=guidance=2.5", f"--out={out}")
    assert "30,880 parameters, 0.1 MB" in capsys.readouterr().out
    painter = process_gen.load(str(out))
    assert painter.config.sampler.guidance == 2.5
    assert painter.meta["scores"]["strokes, process"]["overall"]["exact"] == 0.5
    assert painter.meta["path"] == str(out)
    rounded, whole = painter, process_gen.load(str(untrained))
    ours = rounded.paint(["a red circle"], mode="one_shot")[0].final_image
    theirs = whole.paint(["a red circle"], mode="one_shot")[0].final_image
    difference = np.abs(ours.astype(int) - theirs)
    assert 0 < difference.mean() < 8, "rounding to bfloat16 moves pictures a little"


def test_the_default_painter(untrained, tmp_path, monkeypatch):
    out = tmp_path / "painter"
    call(f"--checkpoint={untrained}", f"--out={out}")
    monkeypatch.setattr(shipped, "DEFAULT", out)
    assert process_gen.load().meta["path"] == str(out)


def test_a_recipe_that_is_not_there_is_one_line(untrained, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        call(f"--checkpoint={untrained}", "--recipe=nowhere.txt", f"--out={tmp_path / 'p'}")
    assert stopped.value.code == 2 and "--recipe=nowhere.txt" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["{}", "[]"])
def test_scores_of_something_else_are_refused(untrained, tmp_path, capsys, text):
    file = tmp_path / "x.json"
    file.write_text(text)
    with pytest.raises(SystemExit):
        call(f"--checkpoint={untrained}", f"--scores={file}", f"--out={tmp_path / 'p'}")
    assert "not what launch.evaluate writes" in capsys.readouterr().err
    assert not (tmp_path / "p").exists()


@pytest.fixture
def trained_on(untrained, monkeypatch):
    """Has the command find the untrained painter with other settings of its data."""
    found = process_gen.load(str(untrained))

    def replace(**data):
        config = dataclasses.replace(
            found.config, data=dataclasses.replace(found.config.data, **data)
        )
        other = SimpleNamespace(
            config=config, tokenizer=found.tokenizer, meta=found.meta, weights=found.weights
        )
        monkeypatch.setattr(ship_painter.painting, "load_painter", lambda values: other)

    return replace


def test_a_tokenizer_that_stays_behind_is_refused(trained_on, tmp_path, capsys):
    out = tmp_path / "painter"
    trained_on(tokenizer="/home/me/tok.json")
    with pytest.raises(SystemExit) as stopped:
        call("--checkpoint=x", f"--out={out}")
    assert stopped.value.code == 2 and not out.exists()
    assert "data.tokenizer=/home/me/tok.json is a file of this" in capsys.readouterr().err
    trained_on(tokenizer="strokes_hard")
    call("--checkpoint=x", f"--out={out}")
    assert shipped.read(out)[0].data.tokenizer == "strokes_hard"


def test_folders_alone_say_nothing_of_a_world(trained_on, tmp_path):
    folder = SourceConfig("folder", path="/home/me/data")
    easy, hard = SourceConfig("strokes"), SourceConfig("strokes", options={"world": "hard"})
    worlds = {}
    for name, sources in {"a": (folder,), "b": (folder, hard), "c": (easy, folder)}.items():
        trained_on(sources=sources, eval_sources=(folder,))
        call("--checkpoint=x", f"--out={tmp_path / name}")
        config, _, card = shipped.read(tmp_path / name)
        assert "/home/me" not in str((config, card))
        worlds[name] = [dict(options) for options in suites._learned(config)]
    assert worlds == {"a": [], "b": [{"world": "hard"}], "c": [{}]}
