"""Any number of processes, killed at any moment: the same bytes."""

from __future__ import annotations

import dataclasses
import functools
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from process_gen.core.configs import from_mapping
from process_gen.core.errors import DataError
from process_gen.curation.recipes import make_job
from process_gen.curation.workers import build

ROOT = Path(__file__).resolve().parents[2]


def job(size, shards, kind="strokes"):
    data = {"sources": [{"kind": kind, "size": size}]}
    return make_job(from_mapping({"data": data}), shards=shards)


def content(folder):
    return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


def test_the_number_of_workers_changes_no_byte(tmp_path):
    for workers in (1, 2, 3):
        build(job(120, 7), str(tmp_path / str(workers)), workers=workers)
    one, two, three = (content(tmp_path / str(workers)) for workers in (1, 2, 3))
    assert len(one) == 8 and one == two == three


def test_a_worker_that_dies_is_reported_and_its_work_is_done_later(tmp_path):
    whole = job(40, 4)
    fatal = dataclasses.replace(whole, recipe=functools.partial(os._exit, 7))
    with pytest.raises(DataError, match="status 7.*fewer --workers"):
        build(fatal, str(tmp_path / "a"), workers=2)
    build(whole, str(tmp_path / "a"), workers=2)
    build(whole, str(tmp_path / "b"))
    assert content(tmp_path / "a") == content(tmp_path / "b")


def test_what_a_worker_objects_to_is_told(tmp_path):
    broken = dataclasses.replace(job(40, 4), recipe=functools.partial(int, "no number"))
    with pytest.raises(RuntimeError, match="no number"):
        build(broken, str(tmp_path / "a"), workers=2)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_recipe_that_has_become_another_is_refused(tmp_path, workers):
    """As where a run has saved a newer checkpoint since the build was begun."""
    moved = dataclasses.replace(job(40, 4), recipe=job(41, 4).recipe)
    with pytest.raises(
        DataError, match="not the one that this build was begun with.*name its step"
    ):
        build(moved, str(tmp_path / "a"), workers=workers)
    build(job(40, 4), str(tmp_path / "b"), workers=workers)


def test_an_interruption_ends_the_workers(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        build(job(4000, 8), str(tmp_path / "a"), workers=2, stop=KeyboardInterrupt)
    assert not list((tmp_path / "a").glob(".unfinished*"))


CONFIG = """
from ml_collections import ConfigDict
def get_config(arg=""):
    config = ConfigDict()
    config.data = ConfigDict()
    config.data.sources = ({{"kind": {kind!r}, "size": {size}}},)
    return config
"""


def kill_and_go_on(tmp_path, kind, size, shards, kills, workers):
    """Runs the command, killing it at random moments, half of them in the middle of the work.

    Those are told by shards and not by seconds, of which a fast machine needs few.

    Returns how many shards were done before the last run.
    """
    config = tmp_path / "config.py"
    config.write_text(CONFIG.format(kind=kind, size=size))
    command = [sys.executable, "-m", "launch.make_data", f"--config={config}"]
    command += [f"--out={tmp_path / 'killed'}", f"--shards={shards}", f"--workers={workers}"]
    rng = random.Random(0)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    folder = tmp_path / "killed"

    def finished():
        return len(list(folder.glob("*.array_record")))

    for kill in range(kills):
        enough = finished() + rng.randint(1, max(1, (shards - finished()) // (2 * kills)))
        with (tmp_path / "said.txt").open("w") as said:
            process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=said, stderr=said)
        while kill % 2 == 0 and finished() < enough and process.poll() is None:
            time.sleep(0.005)
        if kill % 2:
            time.sleep(rng.uniform(0.0, 1.5))
        assert process.poll() is None, (tmp_path / "said.txt").read_text()
        process.send_signal(signal.SIGKILL)
        process.wait()
    done = finished()
    subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL)
    return done


def test_killed_and_gone_on(tmp_path):
    build(job(900, 45), str(tmp_path / "whole"))
    done = kill_and_go_on(tmp_path, "strokes", 900, 45, kills=1, workers=2)
    assert 0 < done < 45
    assert content(tmp_path / "killed") == content(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("workers", [1, 3])
def test_killed_at_ten_random_moments(tmp_path, workers):
    build(job(4000, 80, "multi_turn"), str(tmp_path / "whole"), workers=2)
    done = kill_and_go_on(tmp_path, "multi_turn", 4000, 80, kills=10, workers=workers)
    assert 0 < done < 80
    assert content(tmp_path / "killed") == content(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", ["strokes", "multi_turn"])
def test_twenty_thousand_trajectories_in_five_minutes_of_two_cores(tmp_path, kind):
    """Of CPU time, for the clock of a machine with other work tells nothing."""
    before = cpu_seconds()
    manifest = build(job(20_000, 20, kind), str(tmp_path / "a"), workers=2)
    assert manifest["count"] == 20_000
    assert cpu_seconds() - before < 2 * 300


def cpu_seconds():
    """Used by this process and by those that it started and saw end."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


BEAM = "--runner=DirectRunner --direct_running_mode=multi_processing --direct_num_workers=2"


@pytest.mark.slow
def test_beam_makes_the_same_bytes(tmp_path):
    pytest.importorskip("apache_beam", reason="needs the extra [beam]")
    from process_gen.curation.beam_runner import build_with_beam

    build_with_beam(job(120, 7), str(tmp_path / "beam"), BEAM.split())
    build(job(120, 7), str(tmp_path / "here"))
    assert content(tmp_path / "beam") == content(tmp_path / "here")
