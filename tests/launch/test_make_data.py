from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import launch
from launch import common
from launch.make_data import __doc__ as usage
from launch.make_data import define_flags, main, make_data, summary
from process_gen.core.configs import SourceConfig, from_mapping
from process_gen.core.errors import DataError
from process_gen.core.settings import build
from process_gen.core.trajectory import same
from process_gen.curation.alignment import AlignmentOptions
from process_gen.curation.multi_turn import MultiTurnOptions
from process_gen.curation.recipes import RECIPES
from process_gen.curation.remote_options import RemoteOptions
from process_gen.curation.self_sampling import SelfSamplingOptions
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


def test_encoding_keeps_its_programs(tmp_path, monkeypatch, capsys):
    def loaded(name):  # in place of the module, with which JAX is loaded
        raise DataError(f"{name} keeps in {os.environ.get('JAX_COMPILATION_CACHE_DIR')}")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name in common.compilation_cache():
        monkeypatch.setenv(name, "")  # so that it is given back
        monkeypatch.delenv(name)
    monkeypatch.delattr(launch, "encode_latents", raising=False)
    monkeypatch.setattr(launch, "__getattr__", loaded, raising=False)
    flags = ["--config=configs/data/strokes.py", f"--out={tmp_path}/d", "--encode_latents=x"]
    with pytest.raises(SystemExit):
        common.run(main, define_flags, "", ["x", *flags])
    kept = tmp_path / "process_gen" / "jax"
    assert f"error: encode_latents keeps in {kept}\n" in capsys.readouterr().err


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


def test_the_same_command_again_makes_nothing_twice(tmp_path, capsys):
    run = [CONFIG, f"--out={tmp_path / 'data'}", "--limit=6", "--shards=3", "--workers=2"]
    command(*run)
    first = capsys.readouterr()
    assert "made 6/6 items, 3/3 shards" in first.err and "6 trajectories of 6 items" in first.out
    before = [path.stat().st_mtime_ns for path in sorted((tmp_path / "data").iterdir())]
    command(*run)
    assert capsys.readouterr().out == first.out
    assert before == [path.stat().st_mtime_ns for path in sorted((tmp_path / "data").iterdir())]


@pytest.mark.parametrize("name", ["multi_turn", "alignment"])
def test_recipes_of_the_embedded_world_can_be_trained_on(name, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    out = str(tmp_path / "data")
    command(f"--config={ROOT}/configs/data/{name}.py", f"--out={out}", "--limit=40")
    assert "pictures: drawn" in capsys.readouterr().out
    data = {"sources": [{"kind": "folder", "path": out}], "rows": 2, "prefetch": 0}
    batch = next(train_dataset(from_mapping({"data": data})))
    assert batch.token_BxT.any()


@pytest.mark.slow
def test_a_painter_that_learned_nothing_gives_no_data(untrained, tmp_path, capsys):
    config = f"--config={ROOT}/configs/data/conflict.py:{untrained}"
    with pytest.raises(SystemExit) as stopped:
        command(config, f"--out={tmp_path / 'data'}", "--limit=4")
    assert stopped.value.code == 2
    assert "no item gave a trajectory" in capsys.readouterr().err
    assert (tmp_path / "data" / "build.json").exists()


def test_verdicts_are_printed_with_intervals():
    counts = {"true alarms": 3, "false alarms": 1, "misses": 2, "true approvals": 4}
    lines = summary(
        {"count": 1, "items": 10, "shards": [{}], "lengths": {"text": {"mean": 2.5}},
         "skipped": {"no luck": 3}, "verdicts": {"painter": counts, "judge": {"misses": 1}},
         "tally": {"paintings": 10, "paintings/pictures": 20, "verdicts/x/y": 1}}, "out",
    )  # fmt: skip
    assert lines == [
        "1 trajectories of 10 items in 1 shard(s): out",
        "mean tokens: text 2.5",
        "left out: 3 x no luck",
        "verdicts of the painter on 10 steps: precision 3/4 = 75.0 % [30.1, 95.4], recall 3/5 = "
        "60.0 % [23.1, 88.2]",
        "verdicts of the judge on 1 steps: precision undefined, recall 0/1 = 0.0 % [0.0, 79.3]",
        "paintings: all 10; pictures 20",
    ]


def test_workers_load_no_jax():
    """What a worker imports: this command again, and the recipe."""
    code = "import sys, launch.make_data; print('jax' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("name", ["strokes", "multi_turn", "alignment", "conflict",
                                  "strokes_own_sketches", "strokes_warm_sketches"])  # fmt: skip
def test_data_configs_resolve_and_show_their_command(name):
    path = ROOT / "configs" / "data" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"data_{name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert f"python -m launch.make_data --config=configs/data/{name}.py" in module.__doc__
    for argument in ("", "something"):
        found = from_mapping(module.get_config(argument).to_dict())
        (source,) = found.data.sources
        assert source.size > 0
        if source.kind in RECIPES:
            options = {
                "multi_turn": MultiTurnOptions,
                "alignment": SelfSamplingOptions if argument else AlignmentOptions,
            }.get(source.kind, SelfSamplingOptions)
            settings = build(options, source.options, name)
            if settings.makers.drafter == "remote":
                RemoteOptions.from_mapping(settings.makers.remote)


def test_help_fits_a_screen(capsys):
    command("--help")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 24 and any("python -m launch.make_data" in line for line in lines)
