"""Tests of damaged, foreign and old checkpoints, and of disks that are full."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from process_gen.checkpoint import integrity, manager
from process_gen.core import configs
from process_gen.core.errors import CheckpointError
from process_gen.train import start
from tests.checkpoint.test_manager import abstract, make_config, make_trees, save

OLD = Path(__file__).parent / "format_1"  # written by process_gen 0.1.0.dev0 of November 2026


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """A run with checkpoints 1, 2 and 3; the second is the best."""
    workdir = tmp_path_factory.mktemp("three")
    save(
        workdir,
        {1: {"loss": 0.5}, 2: {"loss": 0.1}, 3: {"loss": 0.7}},
        make_config(train={"keep": 9}),
    )
    return workdir


@pytest.fixture
def run(three, tmp_path):
    shutil.copytree(three, tmp_path / "run")
    return tmp_path / "run"


def restore(workdir, which="latest", wanted=None):
    with manager.CheckpointManager(workdir, make_config(train={"keep": 9})) as checkpoints:
        trees, data, meta = checkpoints.restore(wanted or abstract(make_trees()), which)
        left = checkpoints.latest_step
    np.testing.assert_array_equal(trees["params"]["b"], np.arange(3.0) * meta["step"])
    assert data["next_index"] == 3 * meta["step"]
    return meta["step"], left


def biggest(folder):
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def flip(file):
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 4
    file.write_bytes(data)


def truncate(file):
    file.write_bytes(file.read_bytes()[:-40])


def damage(step, how, tmp_path):
    """Returns words that the message must have."""
    if how == "bit flip":
        flip(biggest(step / "params" / "d"))
        return "params/d/.* has other contents than were written"
    if how == "flip in meta":
        file = step / "meta" / "data.json"
        file.write_text(file.read_text().replace('"step": 3', '"step": 8'))
        return "meta/data.json has other contents"
    if how == "truncated":
        truncate(biggest(step / "optimizer" / "d"))
        return r"optimizer/d/.* has \d+ bytes, \d+ were written"
    if how == "file missing":
        biggest(step / "ema" / "d").unlink()
        return "ema/d/.* is missing"
    if how == "no hashes that can be read":
        (step / integrity.HASHES).write_text('{"files"')
        return "hashes.json is unreadable"
    if how == "swapped shape":  # whole in itself, and with good sums
        other = tmp_path / "other"
        trees = make_trees(3)
        trees["params"]["layers"]["w"] = jnp.ones((3, 2))
        with manager.CheckpointManager(other, make_config()) as checkpoints:
            checkpoints.save(3, trees, {}, {})
        shutil.rmtree(step)
        shutil.copytree(other / "checkpoints" / "3", step)
        return r"params/layers/w is float32\[3,2\] there and float32\[2,3\] here"
    if how == "other type":
        other = tmp_path / "other"
        trees = make_trees(3)
        trees["params"]["b"] = trees["params"]["b"].astype(jnp.bfloat16)
        with manager.CheckpointManager(other, make_config()) as checkpoints:
            checkpoints.save(3, trees, {}, {})
        shutil.rmtree(step)
        shutil.copytree(other / "checkpoints" / "3", step)
        return r"params/b is bfloat16\[3\] there and float32\[3\] here"
    if how == "foreign":
        from orbax.checkpoint import v1 as ocp

        shutil.rmtree(step)
        ocp.save(step, {"w": jnp.ones(3)})
        return "no checkpoint of process_gen"
    if how == "an empty folder":
        shutil.rmtree(step)
        step.mkdir()
        return "no checkpoint of process_gen"
    raise ValueError(how)


KINDS = (
    "bit flip",
    "flip in meta",
    "truncated",
    "file missing",
    "no hashes that can be read",
    "swapped shape",
    "other type",
    "foreign",
    "an empty folder",
)


@pytest.mark.parametrize("how", KINDS)
def test_a_damaged_newest_is_set_aside_for_the_one_before(run, how, caplog, tmp_path):
    words = damage(run / "checkpoints" / "3", how, tmp_path)
    with pytest.raises(CheckpointError, match=words):  # asked for by name, it is refused
        restore(run, 3)
    assert (run / "checkpoints" / "3").exists()
    with caplog.at_level(logging.WARNING, "process_gen"):
        assert restore(run) == (2, 2)
    (line,) = [r.getMessage() for r in caplog.records if "set aside" in r.getMessage()]
    assert re.search(words, line) and "\n" not in line
    assert (run / "set_aside" / "3").is_dir() and not (run / "checkpoints" / "3").exists()


@pytest.mark.parametrize("how", ["foreign", "flip in meta"])
def test_settings_are_those_of_the_newest_that_has_some(run, how, tmp_path):
    """What a command asks before it restores (found by the soak: it ended there)."""
    config = make_config(train={"keep": 9})
    assert manager.settings_in(tmp_path / "nowhere") is None
    damage(run / "checkpoints" / "3", how, tmp_path)
    assert manager.settings_in(run) == config
    assert start.adopt(config, run) == config


def test_what_is_whole_is_taken(run, caplog):
    """Partner of the above; and nothing is set aside."""
    assert restore(run) == (3, 3)
    assert not (run / "set_aside").exists() and not caplog.records


def test_two_damaged_ones_and_then_all(run, tmp_path):
    truncate(biggest(run / "checkpoints" / "3" / "params" / "d"))
    flip(biggest(run / "checkpoints" / "2" / "params" / "d"))
    assert restore(run) == (1, 1)
    assert sorted(p.name for p in (run / "set_aside").iterdir()) == ["2", "3"]
    flip(biggest(run / "checkpoints" / "1" / "params" / "d"))
    with pytest.raises(CheckpointError, match=r"/1 is damaged: params/d/"):
        restore(run)
    assert (run / "checkpoints" / "1").exists()  # the last one stays where it is
    assert integrity.set_aside(epath.Path(run / "checkpoints" / "1"), epath.Path(run)).name == "1"
    (run / "checkpoints" / "1").mkdir()
    assert integrity.set_aside(epath.Path(run / "checkpoints" / "1"), epath.Path(run)).name == "1_2"


def test_sampling_refuses_what_it_would_read_and_reads_the_rest(run):
    flip(biggest(run / "checkpoints" / "3" / "params" / "d"))
    flip(biggest(run / "checkpoints" / "2" / "optimizer" / "d"))
    with pytest.raises(CheckpointError, match="params/d/.* other contents"):
        manager.load_for_sampling(run)
    assert manager.load_for_sampling(run, step=2)[2]["step"] == 2


def test_lost_averages_are_not_replaced_by_plain_weights(run):
    shutil.rmtree(run / "checkpoints" / "3" / "ema")
    with pytest.raises(CheckpointError, match="/3 is damaged: its part ema, .* is missing"):
        manager.load_for_sampling(run)
    assert manager.load_for_sampling(run, "params")[2]["weights"] == "params"
    assert manager.load_for_sampling(run, step=2)[2]["weights"] == "ema"


def test_averages_of_another_run_are_refused(run, tmp_path):
    save(tmp_path / "plain", {3: None}, ema=False)
    step = tmp_path / "plain" / "checkpoints" / "3"
    assert manager.load_for_sampling(tmp_path / "plain")[2]["weights"] == "params"
    shutil.copytree(run / "checkpoints" / "3" / "ema", step / "ema")
    with pytest.raises(CheckpointError, match="its part ema was not written with it"):
        manager.load_for_sampling(tmp_path / "plain")
    assert manager.load_for_sampling(tmp_path / "plain", "params")[2]["step"] == 3


def test_parts_of_a_checkpoint_without_sums_may_be_missing(tmp_path):
    """Format 1, of which nobody can say what it was written with."""
    shutil.copytree(OLD, tmp_path / "old")
    assert manager.load_for_sampling(tmp_path / "old")[2]["weights"] == "ema"
    shutil.rmtree(tmp_path / "old" / "checkpoints" / "3" / "ema")
    assert manager.load_for_sampling(tmp_path / "old")[2]["weights"] == "params"


def test_an_older_one_may_be_asked_for_and_the_question_is_remembered(run):
    config = make_config(train={"keep": 9})
    assert restore(run, 1) == (1, 1)
    assert sorted(p.name for p in (run / "set_aside").iterdir()) == ["2", "3"]
    for _ in range(2):  # the second time it is a restarted command: it goes on from 5
        with manager.CheckpointManager(run, config) as checkpoints:
            _, _, meta = checkpoints.restore(abstract(make_trees()), 1)
            checkpoints.save(5, make_trees(5), {"next_index": 15}, {})
    assert meta["step"] == 5
    with pytest.raises(CheckpointError, match="no checkpoint of step 7"):
        restore(run, 7)


def test_the_best_may_be_asked_for(run):
    assert restore(run, "best") == (2, 2)


def test_steps_may_be_kept_for_good(tmp_path):
    save(tmp_path, dict.fromkeys(range(1, 8)), make_config(train={"keep": 1, "keep_every": 3}))
    assert sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir()) == [3, 6, 7]


def test_a_checkpoint_of_format_1_is_read_and_the_run_goes_on(tmp_path):
    shutil.copytree(OLD, tmp_path / "old")
    meta = json.loads((OLD / "checkpoints" / "3" / "meta" / "data.json").read_text())
    assert meta["format_version"] == 1 and not (OLD / "checkpoints" / "3" / "hashes.json").exists()
    with manager.CheckpointManager(tmp_path / "old", make_config()) as checkpoints:
        trees, data, meta = checkpoints.restore(abstract(make_trees()))
        jax.tree.map(np.testing.assert_array_equal, trees, make_trees(3))
        assert data == {"next_index": 9, "plan_hash": "abc", "tokenizer": "def"}
        assert meta["format_version"] == manager.FORMAT_VERSION == 2 and meta["guard"] is None
        checkpoints.save(4, make_trees(4), data, {})
    _, params, meta = manager.load_for_sampling(tmp_path / "old", "params")
    assert meta["step"] == 4
    np.testing.assert_array_equal(params["b"], make_trees(4)["params"]["b"])
    assert (tmp_path / "old" / "checkpoints" / "4" / integrity.HASHES).exists()


def test_a_format_of_the_future_is_refused_and_not_fallen_back_from(run, monkeypatch):
    monkeypatch.setattr(manager, "FORMAT_VERSION", 3)
    with manager.CheckpointManager(run, make_config(train={"keep": 9})) as checkpoints:
        checkpoints.save(4, make_trees(4), {}, {})
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="has format 3, this version reads 1 to 2"):
        restore(run)
    assert not (run / "set_aside").exists()


class Full:
    """Stands for a disk without room: hashing, the last thing before a commit, fails."""

    def __init__(self, monkeypatch):
        self.on, real = False, integrity.record

        def record(folder):
            if self.on:
                raise OSError(28, "No space left on device")
            real(folder)

        monkeypatch.setattr(integrity, "record", record)


def test_a_save_that_fails_keeps_the_old_ones_and_the_run(tmp_path, monkeypatch, caplog):
    disk = Full(monkeypatch)
    with manager.CheckpointManager(tmp_path, make_config()) as checkpoints:
        checkpoints.save(1, make_trees(1), {"next_index": 3}, {})
        checkpoints.wait()
        disk.on = True
        checkpoints.save(2, make_trees(2), {}, {})
        checkpoints.wait()
        assert checkpoints.latest_step == 1 and checkpoints.counters() == {"failed_saves": 1.0}
        assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["1"]
        assert "step 2 could not be written ([Errno 28] No space left" in caplog.text
        disk.on = False
        checkpoints.save(3, make_trees(3), {"next_index": 9}, {})
    assert restore(tmp_path)[0] == 3


def test_a_save_that_fails_in_another_process_fails_here(tmp_path, monkeypatch, caplog):
    """`test_failed_save.py` does it with real processes."""
    with manager.CheckpointManager(tmp_path, make_config()) as checkpoints:
        monkeypatch.setattr(integrity, "gathered", lambda wrong: [wrong, "no room"])
        checkpoints.save(1, make_trees(1), {}, {})
        checkpoints.wait()
        assert checkpoints.counters() == {"failed_saves": 1.0}
        assert "of step 1 could not be written (process 1: no room)" in caplog.text
        monkeypatch.undo()
        checkpoints.save(2, make_trees(2), {}, {})


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="counts open files in /proc")
def test_saves_leave_no_open_files_and_no_threads(tmp_path):
    """Found by the soak: three files and a thread a save."""
    counts = []
    with manager.CheckpointManager(tmp_path, make_config()) as checkpoints:
        for step in range(1, 9):
            checkpoints.save(step, make_trees(step), {}, {})
            checkpoints.wait()
            counts.append((len(os.listdir("/proc/self/fd")), threading.active_count()))
    assert counts[-1][0] <= counts[1][0] + 2 and counts[-1][1] <= counts[1][1] + 2, counts


def test_a_run_whose_last_save_failed_says_so(tmp_path, monkeypatch):
    disk = Full(monkeypatch)
    disk.on = True
    with (
        pytest.raises(
            CheckpointError, match="step 1 could not be written .* newest is of step None"
        ),
        manager.CheckpointManager(tmp_path, make_config()) as checkpoints,
    ):
        checkpoints.save(1, make_trees(1), {}, {})
    with (
        pytest.raises(KeyboardInterrupt),  # what ends the run is not hidden by it
        manager.CheckpointManager(tmp_path, make_config()) as checkpoints,
    ):
        checkpoints.save(1, make_trees(1), {}, {})
        raise KeyboardInterrupt


def test_settings_of_the_committed_checkpoint_are_still_known():
    meta = json.loads((OLD / "checkpoints" / "3" / "meta" / "data.json").read_text())
    assert configs.from_mapping(meta["config"]) == make_config()
