from __future__ import annotations

import json
import subprocess
import sys

import pytest
import tensorflow_datasets as tfds

from process_gen.core.configs import SourceConfig
from process_gen.core.errors import DataError
from process_gen.core.trajectory import from_json, same
from process_gen.data.builders import write_folder
from process_gen.data.sources import build_source
from process_gen.data.tfds_builders import FolderConfig, Prepared, StrokesConfig, Trajectories

STROKES = StrokesConfig(train=12, held_out=3)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    builder = Trajectories(config=STROKES, data_dir=tmp_path_factory.mktemp("tfds"))
    builder.download_and_prepare()
    return builder


def test_trajectories_come_back_as_they_were(prepared):
    records = tfds.data_source(f"trajectories/{STROKES.name}", data_dir=prepared._data_dir_root)
    for split, seed in (("train", 0), ("eval", 5)):  # any seed has the same held-out split
        originals = build_source(SourceConfig("strokes", size=12), seed, split)
        assert len(records[split]) == {"train": 12, "eval": 3}[split]
        for index, record in enumerate(records[split]):
            original = originals[index]
            assert same(from_json(json.loads(record["trajectory"])), original)
            assert record["prompt"].decode() == original.prompt
            assert record["tag"].decode() == original.metadata["tag"]
            assert record["steps"] == len(original.steps)
    other = build_source(SourceConfig("strokes"), seed=1)  # partner
    assert not same(from_json(json.loads(records["train"][0]["trajectory"])), other[0])


def test_it_is_a_source(prepared):
    config = SourceConfig("tfds", path=str(prepared.data_path))
    train, held_out = build_source(config, 0), build_source(config, 0, "eval")
    assert (len(train), len(held_out), train.fresh) == (12, 3, False)
    strokes = build_source(SourceConfig("strokes"), 0)
    assert same(train[7], strokes[7]) and same(train.outline(7), strokes[7])
    named = SourceConfig("tfds", path=config.path, options={"split": "eval"})
    assert build_source(named, 0).fingerprint == held_out.fingerprint != train.fingerprint


def test_a_folder_keeps_its_order_and_its_supervision(tmp_path):
    strokes = build_source(SourceConfig("strokes_critique"), 0)
    folder = str(tmp_path / "folder")
    write_folder(folder, (strokes[i] for i in range(4)), 2, {"supervise": strokes.supervise})
    builder = Trajectories(config=FolderConfig(folder=folder), data_dir=tmp_path / "tfds")
    builder.download_and_prepare()
    stored = build_source(SourceConfig("tfds", path=str(builder.data_path)), 0)
    assert all(same(stored[i], strokes[i]) for i in range(4))
    assert stored.supervise == "last_inspection"


def test_each_choice_has_its_own_name():
    # Prepared data are found by name: two choices of one name would give the first one's data.
    names = [StrokesConfig(seed=s, train=n).name for s in (0, 1) for n in (1, 2)]
    assert len(set(names)) == 4 and StrokesConfig(seed=1, train=2).name == names[-1]
    assert StrokesConfig(name="mine").name == "mine"


def test_what_cannot_be_read_is_one_clear_error(prepared, tmp_path):
    with pytest.raises(DataError, match="nowhere"):
        Prepared("/nowhere", "train")
    with pytest.raises(DataError, match="split test"):
        Prepared(str(prepared.data_path), "test")
    with pytest.raises(DataError, match="record 12"):
        Prepared(str(prepared.data_path), "train")[12]
    with pytest.raises(DataError, match="'tfds' needs a path"):
        build_source(SourceConfig("tfds"), 0)


def test_no_tensorflow(prepared, tmp_path):
    code = f"""
import sys
from process_gen.core.configs import SourceConfig
from process_gen.data.sources import build_source
from process_gen.data.tfds_builders import StrokesConfig, Trajectories
builder = Trajectories(config=StrokesConfig(train=2, held_out=0), data_dir={str(tmp_path)!r})
builder.download_and_prepare()
for path in (str(builder.data_path), {str(prepared.data_path)!r}):
    print(build_source(SourceConfig("tfds", path=path), 0)[1].prompt)
print(sorted({{"tensorflow", "jax", "tensorflow_datasets"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    prompt = build_source(SourceConfig("strokes"), 0)[1].prompt
    assert done.stdout.splitlines()[-3:] == [prompt, prompt, "['tensorflow_datasets']"]
