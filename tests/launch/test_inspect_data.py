from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from configs import strokes_tiny
from launch import common
from launch.inspect_data import __doc__ as usage
from launch.inspect_data import define_flags, main
from process_gen.core.configs import SourceConfig
from process_gen.data.builders import write_folder
from process_gen.data.sources import build_source

ROOT = Path(__file__).parents[2]
CONFIG = f"--config={ROOT}/configs/strokes_tiny.py"
SMALL = (
    "--config.data.sources=({'kind': 'strokes', 'size': 60}, {'kind': 'strokes_one_shot', "
    "'size': 20, 'weight': 0.5})"
)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path):
    strokes = build_source(SourceConfig("strokes"), 0)
    manifest = write_folder(str(tmp_path / "data"), [strokes[i] for i in range(40)], shards=4)
    return tmp_path / "data", manifest


def command(*arguments):
    common.run(main, define_flags, usage, ["inspect_data", *arguments])


def test_a_config_is_described(capsys):
    command(CONFIG, SMALL, "--json", "--speed=4", "--sample=30")
    printed = capsys.readouterr().out.splitlines()
    found = json.loads(printed[-1])
    assert [x["drawn"] for x in found["sources"]] == [53, 27]
    contents = found["contents"]
    assert contents["sampled"] == 30 and set(contents["modes"]) == {"process", "one_shot"}
    assert {"approved", "conflict", "misalignment"} >= set(contents["verdicts"])
    assert contents["picture_sizes"] == {"32x32": sum(
        int(n) * count for n, count in contents["images"]["histogram"].items()
    )}  # fmt: skip
    assert contents["tokens"]["sketch"]["supervised"] > contents["tokens"]["one_shot"]["supervised"]
    assert contents["tokens"]["plan"]["supervised"] > 10
    packs = found["packs"]
    data = strokes_tiny.get_config().data
    assert packs["limits"] == {"text": data.text_len, "und": data.und_len, "gen": data.gen_len}
    assert 0 < packs["fill"]["gen"] <= 1
    for column in ("text_len", "und_len", "gen_len"):
        assert found["proposal"][column] > 0
    assert found["speed"]["batches_per_second"] > 0
    text = "\n".join(printed[:-1])
    for words in (
        "steps:",
        "verdicts: approved",
        "und stream",
        "Proposed: data.text_len=",
        "speed",
    ):
        assert words in text


def test_a_folder_is_described_and_shown(folder, tmp_path, capsys):
    path, _ = folder
    command(f"--data={path}", f"--out={tmp_path}/page.html", "--packs=2", "--show=3", "--json")
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["trajectories"] == found["contents"]["sampled"] == 40
    assert found["sources"][0]["path"] == str(path)
    page = (tmp_path / "page.html").read_text()
    assert "pack 0: " in page and "pack 1: " in page and "pack 2: " not in page
    assert page.count("<article") == 3 and "verdict" in page
    assert re.search(r"T \d+/448, V \d+/112, G \d+/224", page)
    assert "<script" in page and "http" not in page.split("</style>")[1].split("<script")[0]


def test_damage_is_counted_and_strictness_stops(folder, capsys):
    path, manifest = folder
    shard = path / manifest["shards"][1]["file"]
    shard.write_bytes(shard.read_bytes()[:-9])
    command(f"--data={path}", "--json")
    printed = capsys.readouterr().out
    found = json.loads(printed.splitlines()[-1])
    assert found["skipped"]["counts"] == {"unreadable": 10}
    assert "left out: 10 unreadable" in printed and shard.name in printed
    with pytest.raises(SystemExit) as stopped:
        command(f"--data={path}", "--strict")
    assert stopped.value.code == 2 and "10 records" in capsys.readouterr().err


def test_what_fits_no_pack_still_gets_a_proposal(folder, tmp_path, capsys):
    path, _ = folder
    limits = [f"--config.data.{name}={n}" for name, n in (("text_len", 8), ("gen_len", 16))]
    command(CONFIG, *limits, f"--data={path}", f"--out={tmp_path}/p.html", "--json")
    printed = capsys.readouterr().out
    found = json.loads(printed.splitlines()[-1])
    assert found["packs"] is None and "nothing fits a pack" in printed
    assert found["proposal"]["left_out"] <= 0.05 and found["proposal"]["gen_fill"] > 0.7


def test_the_held_out_split(capsys):
    held_out = "--config.data.eval_sources=({'kind': 'strokes', 'size': 12},)"
    command(CONFIG, held_out, "--split=eval", "--json")
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [x["drawn"] for x in found["sources"]] == [12]


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ([], "--config"),
        (["--data=/nowhere"], "not a trajectory folder"),
        ([CONFIG, "--split=both"], "split"),
        ([CONFIG, "--split=eval", "--speed=4"], "--speed times data.sources; leave out --split"),
        ([CONFIG, "--split=eval", "--steps=1"], "--steps times data.sources; leave out --split"),
        ([CONFIG, "--config.data.sources=({'kind': 'strokse'},)"], "unknown data source"),
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
    assert len(lines) <= 24 and any("python -m launch.inspect_data" in line for line in lines)
