"""Handing a painter on: what is written paints, with the settings that were given."""

from __future__ import annotations

import json

import numpy as np
import pytest

import process_gen
from launch import common, ship_painter
from process_gen.checkpoint import shipped


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
