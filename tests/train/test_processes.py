"""The train command in two real processes: the same run as in one, whatever joins or leaves it."""

from __future__ import annotations

import json
import signal
import time

import numpy as np
import pytest

from launch import common

pytestmark = [pytest.mark.multidevice, pytest.mark.timeout(900)]

TOLERANCE = 1e-5


def same(runs, name, wanted="one"):
    np.testing.assert_allclose(runs.losses(name), runs.losses(wanted), rtol=TOLERANCE)
    assert runs.batches(name) == runs.batches(wanted)


def test_a_run_goes_on_with_other_processes_and_another_mesh(runs):
    runs.branch("one", "moved", step=3)
    printed = runs.together("moved", "--config.train.steps=6", "--config.mesh.fsdp=2")
    assert "from step 3 of 6" in printed[0][0] and "2 cpu device(s) of 2 processes" in printed[0][0]
    for words, stream in (("train 4/6", 0), ("left out", 1)):  # one speaks for all
        assert words in printed[0][stream] and words not in printed[1][stream]
    mesh = ("--config.mesh.tensor=2", "--config.mesh.context=2")
    runs.alone([runs.arguments("moved", *mesh)], devices=4)
    same(runs, "moved")
    # Both processes brought rows, and neither all of them.
    for part in ("rows_0.jsonl", "rows_1.jsonl"):
        lines = (runs.root / "moved" / part).read_text().splitlines()
        steps = dict(map(json.loads, lines))
        assert all(len(steps[step]) == 2 for step in (3, 4, 5))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("two fsdp and tensor", {"fsdp": 2, "tensor": 2}),
        # Processes that hold the same rows: each half of their tokens, or of their heads.
        ("two context", {"context": 2, "data": 1, "tensor": 2}),
    ],
)
def test_two_processes_of_two_devices(runs, name, sizes):
    mesh = [f"--config.mesh.{axis}={size}" for axis, size in sizes.items()]
    runs.together(name, *mesh, "--config.train.eval_every=5", devices=2)
    same(runs, name)
    if not (runs.root / "one eval").exists():
        runs.alone([runs.arguments("one eval", "--config.train.eval_every=5")], devices=1)
    wanted = runs.losses("one eval", "eval")
    assert len(wanted) == 2
    np.testing.assert_allclose(runs.losses(name, "eval"), wanted, rtol=TOLERANCE)


@pytest.mark.slow
def test_sigterm_to_one_process_stops_both_at_one_step(runs):
    """Both save the same step and exit with the status that launch scripts start again on."""
    processes = runs.start_together(
        "taken",
        "--config.mesh.fsdp=2",
        "--config.train.steps=100000",
        "--config.train.save_every=0",
    )
    metrics = runs.root / "taken" / "metrics.jsonl"
    deadline = time.monotonic() + 400
    while not (metrics.exists() and '"step": 2,' in metrics.read_text()):
        assert time.monotonic() < deadline and all(p.poll() is None for p in processes)
        time.sleep(0.1)
    processes[1].send_signal(signal.SIGTERM)
    runs.finish(processes, common.PREEMPTED)
    (saved,) = (runs.root / "taken" / "checkpoints").iterdir()
    step = int(saved.name)
    # The run goes on, and ends as one that nobody disturbed.
    runs.alone([runs.arguments("taken", f"--config.train.steps={step + 2}")], devices=1)
    runs.alone([runs.arguments("quiet", f"--config.train.steps={step + 2}")], devices=1)
    same(runs, "taken", "quiet")


@pytest.mark.slow
def test_an_error_in_one_process_ends_both(runs):
    """The process that fails says why at once; the other ends when its partner is missed."""
    processes = runs.start_together("broken", "--config.mesh.fsdp=2", break_last_at="4")
    printed = [process.communicate(timeout=250) for process in processes]
    assert processes[1].returncode == 1 and processes[0].returncode not in (0, common.PREEMPTED)
    assert "process 1: Traceback" in printed[1][1] and "planted" in printed[1][1]
