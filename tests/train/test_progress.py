"""Tests of rates, remaining time and the time budget, on a clock of our own."""

from __future__ import annotations

import pytest

from process_gen.train import progress


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def test_rate_and_time_left():
    clock = Clock()
    meter = progress.Progress(100, clock)
    clock.now = 5.0
    got = meter.mark(110, 130)
    assert got == {"steps_per_second": 2.0, "eta_seconds": 10.0, "total_steps": 130.0}
    meter.restart(112)
    clock.now = 6.0
    assert meter.mark(113, 130)["steps_per_second"] == 1.0
    meter.restart(110)
    clock.now = 7.0  # since the last mark only
    assert meter.mark(120, 130)["steps_per_second"] == 10.0


def simulate(minutes, seconds_per_step, compile_seconds=30.0, total=1000):
    clock = Clock()
    budget = progress.TimeBudget(minutes, 0.0, clock=clock)
    clock.now = compile_seconds
    step = 0
    while step < total:
        step += 1
        total = budget.update(step, total)
        clock.now += seconds_per_step(step)
    return clock.now / 60.0, total, budget


def test_budget_fills_the_time():
    minutes, total, budget = simulate(10.0, lambda step: 0.5)
    assert minutes == pytest.approx(10.0, abs=0.05) and total == pytest.approx(1140, abs=5)
    assert budget.estimated and budget.settled


def test_budget_follows_a_machine_that_slows_down_early():
    minutes, _, _ = simulate(10.0, lambda step: 0.25 if step < 40 else 0.5)
    assert minutes == pytest.approx(10.0, rel=0.05)


def test_total_stays_in_the_second_half():
    clock = Clock()
    budget = progress.TimeBudget(1.0, 0.0, clock=clock)
    totals, total, step = [], 1000, 0
    while step < total:
        step += 1
        total = budget.update(step, total)
        totals.append(total)
        clock.now += 0.2 + 0.001 * step
    assert len(set(totals[len(totals) * 6 // 10 :])) == 1 < len(set(totals))


def test_without_budget_nothing_changes():
    assert progress.TimeBudget(0.0, 0.0).update(5, 10) == 10
    resumed = progress.TimeBudget(3.0, 0.0, settled=True)
    assert resumed.update(5, 10) == 10 and resumed.estimated


def test_line():
    values = {
        "total_steps": 900.0,
        "steps_per_second": 3.21,
        "eta_seconds": 265.0,
        "sketch_mse": 0.5,
        "loss": 1.23456,
        "learning_rate": 0.001,
        "plan_ce": 2.0,
    }
    assert progress.line(50, "train", values) == (
        "train 50/900  3.21 steps/s  ETA 4m25s  loss 1.235  plan_ce 2  sketch_mse 0.5  "
        "learning_rate 0.001"
    )
    assert progress.line(50, "eval", {"loss": 2.0}) == "eval  50  loss 2"


@pytest.mark.parametrize(("seconds", "text"), [(42, "42s"), (185, "3m05s"), (3725, "1h02m")])
def test_duration(seconds, text):
    assert progress.duration(seconds) == text
