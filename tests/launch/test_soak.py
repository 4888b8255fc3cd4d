"""Tests of the soak: its ledger, and comparisons that can fail."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from launch import common, soak, soak_faults, soak_runs
from launch.soak_runs import Run, SoakError, compare, end, read_lines, stop
from process_gen.core.trajectory import Sampled, Step, Trajectory, plan_text
from process_gen.sampling import records


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("soak")
    soak.make_data(folder / "data")
    return soak.prepare(folder / "run", folder / "data")


@pytest.mark.slow
def test_a_comparison_sees_a_step_that_is_missing_doubled_or_another(config, tmp_path):
    runs = []
    for name in ("a", "b"):
        run = Run(name, tmp_path / name, tmp_path, (config, "--config.train.steps=6"))
        end(run.start(), 0)
        runs.append(run)
    assert soak.same(compare(*runs))
    metrics = runs[0].workdir / "metrics.jsonl"
    lines = metrics.read_text().splitlines(keepends=True)
    changed = json.loads(lines[2])
    changed["loss"] = float(np.nextafter(changed["loss"], 10))
    metrics.write_text("".join([*lines[:2], json.dumps(changed) + "\n", lines[3], lines[3]]))
    found = compare(*runs)
    assert (found["steps_missing"], found["steps_doubled"], found["steps_that_differ"]) == (2, 1, 1)
    shutil.rmtree(runs[0].workdir / "checkpoints")
    other = Run("c", tmp_path / "c", tmp_path, (config, "--config.train.steps=6"))
    end(other.start("--config.train.seed=1"), 0)
    shutil.copytree(tmp_path / "c" / "checkpoints", runs[0].workdir / "checkpoints")
    assert compare(*runs)["arrays_that_differ"] > 0


@pytest.mark.slow
@pytest.mark.multidevice
def test_runs_of_four_devices_are_compared_on_one(config, tmp_path):
    runs = []
    for name in ("a", "b"):
        arguments = (config, "--config.train.steps=2")
        run = Run(name, tmp_path / name, tmp_path, arguments, devices=4)
        end(run.start(), 0)
        runs.append(run)
    found = compare(*runs)
    assert soak.same(found) and found["steps"] == 2


def test_half_a_line_is_none(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1, "split": "train"}\n{"step": 2, "sp')
    assert [entry["step"] for entry in read_lines(file)] == [1]
    assert read_lines(tmp_path / "nowhere") == []


def test_paintings_are_compared_without_clocks_and_with_their_pictures(tmp_path):
    def paint(name, seconds, pixel):
        with records.Recorder(tmp_path / name) as recorder:
            image = np.full((4, 4, 3), pixel, np.uint8)
            sampled = Sampled(index=0, sample=0, seed=0, nfe=1, seconds=seconds)
            steps = (Step(plan_text("a", "b"), image, "seen."),)
            recorder.add(Trajectory("a", steps=steps, final_image=image, sampled=sampled))
            half = soak_faults.painted(tmp_path / name)
        assert half == soak_faults.painted(tmp_path / name)  # finished or not
        return half

    assert paint("a", 1.0, 0) == paint("b", 2.0, 0) != paint("c", 1.0, 9)
    assert soak_faults.painted(tmp_path / "nowhere") == []


def test_runs_keep_the_smallest_programs(tmp_path, monkeypatch):
    monkeypatch.setattr(soak_runs.os, "dup2", lambda *_: None)
    for name in ("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "XLA_FLAGS"):
        monkeypatch.setenv(name, os.environ.get(name, ""))
    before = jax.config.jax_persistent_cache_min_compile_time_secs
    assert before > 0
    try:
        soak_runs._prepare(tmp_path / "log", 1)
        common.enable_compilation_cache()  # as the command does
        assert jax.config.jax_persistent_cache_min_compile_time_secs == 0
    finally:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", before)


def test_a_process_that_ends_otherwise_than_it_should_is_noticed():
    class Ended:
        exitcode = 0

        def join(self, seconds):
            pass

        def is_alive(self):
            return False

    assert end([Ended()], 0) == [0]
    for status in (75, None):
        with pytest.raises(SoakError, match="ended with"):
            end([Ended()], status)
    stop([Ended()])


def test_the_ledger_counts_by_kind(capsys):
    ledger = soak.Ledger()

    def harm():
        raise SoakError("it was not borne")

    assert ledger.attempt("a", lambda: None) and not ledger.attempt("a", harm)
    assert ledger.kinds() == {"a": {"injected": 2, "as_documented": 1}}
    assert "fault 2 (1 bad)  a: SoakError: it was not borne" in capsys.readouterr().out


def test_growth_is_measured_from_the_fifth_minute_on():
    gauge = soak.Gauge(0)
    gauge.samples = [(t, 1000 if t < 300 else 2000 + t // 10, 7) for t in range(0, 900, 5)]
    found = gauge.finish()
    assert found["samples"] == 120 and found["memory_kib_growth_percent"] == pytest.approx(
        2.3, abs=0.2
    )
    assert found["open_files_growth_percent"] == 0.0


def test_help_fits_a_screen():
    done = subprocess.run(
        [sys.executable, "-m", "launch.soak", "--help"], capture_output=True, text=True
    )
    assert "python -m launch.soak --minutes=30" in done.stdout
    assert len(done.stdout.splitlines()) <= 24
