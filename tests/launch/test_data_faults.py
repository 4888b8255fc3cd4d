"""Faults of stored data inside a real training run of `launch.train`."""

from __future__ import annotations

import dataclasses
import json
import os
import threading

import jax.numpy as jnp
import pytest

from launch import common, train
from process_gen.core.configs import SourceConfig
from process_gen.core.errors import DataError
from process_gen.data import sources
from process_gen.data.builders import open_shard, shard_entry
from process_gen.data.sources import Stored, build_source
from process_gen.train.step import make_train_step
from tests.data.damage import BAD_RECORDS, record

CONFIG = """
import ml_collections
from process_gen.core import configs

def get_config(arg):
    kind, path = arg.split(",")
    config = ml_collections.ConfigDict(configs.to_mapping(configs.Config()))
    config.model.update(dict(
        width=16, mlp_width=16, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=4,
        und_encoder="none"))
    source = dict(kind=kind, path=path, size=12)
    config.data.update(dict(sources=(source,), rows=1, und_len=0, prefetch=2))
    config.data.grammar.context_images = "vae"
    config.train.update(dict(steps=3, log_every=1, eval_every=0, save_every=2))
    config.optimizer.name = "adamw"
    return config
"""


def counting_step(*_):
    """A step that compiles in no time: all but the model is the run's own."""

    def train_step(state, batch, key):
        one = jnp.float32(1.0)
        return dataclasses.replace(state, step=state.step + 1), {"loss": (one, one)}

    return train_step


@pytest.fixture
def call(tmp_path, monkeypatch):
    monkeypatch.setattr(train.step, "make_train_step", counting_step)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(common, "enable_compilation_cache", lambda: None)  # that of the tests
    file = tmp_path / "config.py"
    file.write_text(CONFIG)

    def run(kind, path, *more):
        arguments = ["x", f"--config={file}:{kind},{path}", f"--workdir={tmp_path / 'run'}", *more]
        common.run(train.main, train.define_flags, "", arguments)
        lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    return run


ENDLESS = ("--config.train.steps=99", "--config.train.save_every=0")


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    """Good records, one of each bad kind, a shard that is cut and one that is missing."""
    folder = tmp_path_factory.mktemp("damaged")
    good = record(lambda made: None)
    bad = [data for data, _ in BAD_RECORDS.values()]
    shards = []
    for number, records in enumerate(([good, *bad, good], [good] * 4, [good] * 5, [good] * 6)):
        path = folder / f"{number}.array_record"
        writer = open_shard(path)
        for data in records:
            writer.write(data)
        writer.close()
        shards.append(shard_entry(path, len(records)))
    (folder / "1.array_record").write_bytes((folder / "1.array_record").read_bytes()[:1000])
    (folder / "2.array_record").unlink()
    count = sum(shard["count"] for shard in shards)
    manifest = {"format": 2, "count": count, "shards": shards}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder, len(bad) + 4 + 5


def check_the_run_goes_on(call, damaged):
    folder, unusable = damaged
    logged = [line for line in call("folder", folder) if line.get("split") == "train"]
    assert [line["step"] for line in logged] == [1, 2, 3]
    counted = [line["skipped_unreadable"] for line in logged]  # once in every epoch
    assert counted[0] == unusable and all(n % unusable == 0 for n in counted)
    assert "skipped_failed" not in logged[-1] and all(line["loss"] > 0 for line in logged)


def test_what_cannot_be_used_is_counted_and_the_run_goes_on(call, damaged):
    check_the_run_goes_on(call, damaged)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_and_so_does_the_run_of_a_real_model(call, damaged, monkeypatch):
    monkeypatch.setattr(train.step, "make_train_step", make_train_step)
    check_the_run_goes_on(call, damaged)


def test_strictness_ends_it_before_the_first_step(call, damaged, tmp_path, capsys):
    folder, unusable = damaged
    with pytest.raises(SystemExit) as stopped:
        call("folder", folder, "--config.data.strict=True")
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error:")]
    assert stopped.value.code == 2
    assert f"{unusable} records cannot be used; the first: folder (source 0), record 1: " in line


def test_a_source_that_stalls_in_the_middle_ends_it_by_name(call, monkeypatch, capsys):
    released, reads = threading.Event(), []
    strokes = build_source(SourceConfig("strokes"), 0)

    class Stuck(Stored):
        def outline(self, index):
            return strokes.outline(index)

        def __getitem__(self, index):
            reads.append(index)
            if len(reads) > 6:
                released.wait()
            return strokes[index]

    def end(status):  # a process would be gone here
        raise SystemExit(status)

    monkeypatch.setitem(
        sources.KINDS, "stuck", lambda c, *_: Stuck([0] * c.size, c.path, "s", "all")
    )
    monkeypatch.setattr(os, "_exit", end)
    with pytest.raises(SystemExit) as stopped:
        call("stuck", "gs://bucket/data", "--config.data.timeout=0.5", *ENDLESS)
    released.set()
    error = capsys.readouterr().err
    assert stopped.value.code == 1
    assert "error: stuck (source 0) gs://bucket/data, record " in error and "no answer for" in error


def test_data_that_is_gone_ends_it_so_that_it_may_be_started_again(call, monkeypatch, capsys):
    reads = []
    strokes = build_source(SourceConfig("strokes"), 0)

    class Bucket(Stored):
        def outline(self, index):
            return strokes.outline(index)

        def __getitem__(self, index):
            reads.append(index)
            if len(reads) > 6:
                raise DataError("the credentials have expired")
            return strokes[index]

    monkeypatch.setitem(
        sources.KINDS, "bucket", lambda c, *_: Bucket([0] * c.size, c.path, "s", "all")
    )
    with pytest.raises(SystemExit) as stopped:
        call("bucket", "gs://bucket/data", *ENDLESS)
    assert stopped.value.code == 1
    error = capsys.readouterr().err
    assert "error: none of the last" in error and "the credentials have expired" in error
