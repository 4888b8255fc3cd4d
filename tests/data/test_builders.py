from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from process_gen.core.configs import from_mapping
from process_gen.core.errors import DataError
from process_gen.core.trajectory import Step, Trajectory, encode_png, same
from process_gen.data.builders import (
    TrajectoryFolder,
    folder_fingerprint,
    length_summary,
    read_manifest,
    write_folder,
)
from process_gen.data.pipeline import train_dataset


def trajectories(n=5):
    rng = np.random.default_rng(0)
    made = []
    for i in range(n):
        picture = rng.integers(0, 256, (32, 32, 3)).astype(np.uint8)
        step = Step("<ins>a \N{SNOWMAN}</ins><des>a star</des>", picture, "seen: a star.")
        made.append(Trajectory(f"prompt {i}", steps=(step,), metadata={"tag": "colors", "n": i}))
    return made


@pytest.mark.parametrize("shards", [1, 3, 7])
def test_a_folder_gives_back_what_was_written_in_order(tmp_path, shards):
    folder = str(tmp_path / "data")
    manifest = write_folder(folder, trajectories(), shards, extra={"made_by": "a test"})
    assert manifest == read_manifest(folder)
    assert manifest["count"] == 5 and manifest["made_by"] == "a test"
    stored = TrajectoryFolder(folder)
    assert len(stored) == 5
    for index, wanted in enumerate(trajectories()):
        assert same(stored[index], wanted)
    with pytest.raises(DataError, match="no record 5"):
        stored[5]


def test_the_fingerprint_follows_the_records(tmp_path):
    a = write_folder(str(tmp_path / "a"), trajectories())
    b = write_folder(str(tmp_path / "b"), trajectories(), extra={"note": 1})
    c = write_folder(str(tmp_path / "c"), trajectories(4))
    assert folder_fingerprint(a) == folder_fingerprint(b) != folder_fingerprint(c)


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "something").write_text("dear")
    with pytest.raises(DataError, match="not empty"):
        write_folder(str(tmp_path), trajectories())
    assert [path.name for path in tmp_path.iterdir()] == ["something"]
    with pytest.raises(DataError, match="at least 1"):
        write_folder(str(tmp_path / "new"), trajectories(), shards=0)


def damage_shard(folder, manifest):
    shard = folder / manifest["shards"][0]["file"]
    shard.write_bytes(shard.read_bytes()[:-1])


def damage_manifest(folder, manifest):
    (folder / "manifest.json").write_text("{")


def remove_manifest(folder, manifest):
    (folder / "manifest.json").unlink()


def remove_shard(folder, manifest):
    (folder / manifest["shards"][0]["file"]).unlink()


def newer_format(folder, manifest):
    (folder / "manifest.json").write_text(json.dumps(manifest | {"format": 99}))


def wrong_count(folder, manifest):
    (folder / "manifest.json").write_text(json.dumps(manifest | {"count": 9}))


@pytest.mark.parametrize(
    "damage",
    [damage_shard, damage_manifest, remove_manifest, remove_shard, newer_format, wrong_count],
)
def test_a_damaged_folder_is_refused(tmp_path, damage):
    manifest = write_folder(str(tmp_path / "data"), trajectories())
    damage(tmp_path / "data", manifest)
    with pytest.raises(DataError, match="data"):
        TrajectoryFolder(str(tmp_path / "data"))


def test_a_broken_record_names_its_place(tmp_path):
    from array_record.python.array_record_module import ArrayRecordWriter

    folder = tmp_path / "data"
    manifest = write_folder(str(folder), trajectories(2))
    shard = folder / manifest["shards"][0]["file"]
    writer = ArrayRecordWriter(str(shard), "group_size:1")
    writer.write(b'{"version": 1}')
    writer.write(b"\xff")
    writer.close()
    manifest["shards"][0]["bytes"] = shard.stat().st_size
    (folder / "manifest.json").write_text(json.dumps(manifest))
    stored = TrajectoryFolder(str(folder))
    for index in range(2):
        with pytest.raises(DataError, match=f"record {index}: "):
            stored[index]


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"file": "../other/x.array_record"}, "no plain file name"),
        ({"file": "/etc/passwd"}, "no plain file name"),
        ({"file": ".."}, "no plain file name"),
        ({"file": ["x"]}, "no plain file name"),
        ({"count": "3"}, "must be whole numbers"),
        ({"count": -1}, "must be whole numbers"),
        ({"count": 10**15}, "records in"),
        ({"sha256": None}, "no 'sha256'"),
    ],
)
def test_a_manifest_that_a_stranger_wrote(tmp_path, change, what):
    manifest = write_folder(str(tmp_path / "data"), trajectories(3))
    manifest["shards"][0] |= change
    (tmp_path / "data" / "manifest.json").write_text(json.dumps(manifest))
    for strict in (True, False):
        with pytest.raises(DataError, match=what):
            TrajectoryFolder(str(tmp_path / "data"), strict=strict)


def test_length_summary():
    summary = length_summary(np.array([[10, 0, 4], [20, 0, 8]], np.int32))
    assert summary["text"]["mean"] == 15 and summary["gen"]["max"] == 8
    assert sum(summary["und"]["histogram"]) == 2


def test_the_ten_lines_of_the_documentation_run(tmp_path, monkeypatch):
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
    code = re.search(r"in ten lines\n\n```python\n(.*?)```", page, re.DOTALL).group(1)
    assert sum(bool(line.strip()) for line in code.splitlines()) <= 10
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    picture = trajectories(1)[0].steps[0].sketch
    said = {"prompt": "a star", "instruction": "add a star", "scene": "a star", "inspection": "ok."}
    exec(code, {"my_records": [{"png": encode_png(picture), **said}] * 9})
    stored = TrajectoryFolder("my_paintings")
    assert len(stored) == 9 and np.array_equal(stored[8].final_image, picture)
    source = {"kind": "folder", "path": "my_paintings"}
    batch = next(train_dataset(from_mapping({"data": {"sources": [source], "rows": 1}})))
    assert (batch.label_BxT >= 0).any()
