from __future__ import annotations

import json
from pathlib import Path

import pytest

from launch import common
from launch.make_data import __doc__ as usage
from launch.make_data import define_flags, main, make_data
from process_gen.core.configs import SourceConfig, from_mapping
from process_gen.core.errors import DataError
from process_gen.core.trajectory import same
from process_gen.data.builders import TrajectoryFolder, read_manifest
from process_gen.data.pipeline import train_dataset
from process_gen.data.sources import build_source


def config(*kinds, size=12):
    return from_mapping({"data": {"sources": [{"kind": kind, "size": size} for kind in kinds]}})


def test_a_folder_can_be_trained_on(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    out = tmp_path / "data"
    made = config("strokes")
    manifest = make_data(made, str(out), show=2, shards=3)
    assert manifest == read_manifest(str(out)) == json.loads((out / "manifest.json").read_text())
    assert manifest["count"] == 12 and manifest["lengths"]["text"]["mean"] > 10
    assert "circle" in (out / "samples.html").read_text()
    stored, source = TrajectoryFolder(str(out)), build_source(made.data.sources[0], 0)
    assert all(any(same(stored[i], source[j]) for j in range(12)) for i in range(12))

    data = {"sources": [{"kind": "folder", "path": str(out)}], "rows": 2, "prefetch": 0}
    batch = next(train_dataset(from_mapping({"data": data})))
    assert batch.token_BxT.any()


def test_the_way_of_supervising_is_stored(tmp_path):
    make_data(config("strokes_critique"), str(tmp_path / "data"), limit=3)
    source = build_source(SourceConfig("folder", path=str(tmp_path / "data")), 0)
    assert len(source) == 3 and source.supervise == "last_inspection"


def test_sources_of_two_kinds_of_supervision_do_not_mix(tmp_path):
    make_data(config("strokes", "strokes_plans"), str(tmp_path / "fine"), limit=4)
    with pytest.raises(DataError, match="folder of its own"):
        make_data(config("strokes", "strokes_critique"), str(tmp_path / "bad"))
    assert not (tmp_path / "bad").exists()
    with pytest.raises(DataError, match="not empty"):
        make_data(config("strokes"), str(tmp_path / "fine"))


ROOT = Path(__file__).parents[2]
CONFIG = f"--config={ROOT}/configs/data/strokes.py"


def command(*arguments):
    common.run(main, define_flags, usage, ["make_data", *arguments])


def test_the_command_says_what_it_wrote(tmp_path, capsys):
    command(CONFIG, f"--out={tmp_path / 'data'}", "--limit=5", "--show=1", "--json")
    printed = capsys.readouterr().out.splitlines()
    assert json.loads(printed[-1])["count"] == read_manifest(str(tmp_path / "data"))["count"] == 5
    assert (tmp_path / "data" / "samples.html").exists()


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ([CONFIG], "--out"),
        (["--out=x"], "--config"),
        ([CONFIG + ":nothing", "--out=x"], "unknown data source 'nothing'"),
        ([CONFIG, "--out=x", "--shards=0"], "shards"),
        ([CONFIG, "--out=x", "--limit=-1"], "limit"),
        ([CONFIG, f"--out={ROOT}/tests", "--limit=1"], "not empty"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(arguments, what, capsys):
    with pytest.raises(SystemExit) as stopped:
        command(*arguments)
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert what in line


def test_help_fits_a_screen(capsys):
    command("--help")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 24 and any("python -m launch.make_data" in line for line in lines)
