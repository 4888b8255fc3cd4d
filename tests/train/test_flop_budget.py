"""A budget of FLOPs: the number of steps it pays for."""

import dataclasses
import json

import pytest

from process_gen.core.configs import Config, DataConfig, SourceConfig, TrainConfig
from process_gen.core.errors import ConfigError
from process_gen.data import pipeline
from process_gen.models import flops
from process_gen.train import flop_budget


def _config(budget: float) -> Config:
    data = DataConfig(sources=(SourceConfig("strokes", size=40),), rows=2)
    return Config(data=data, train=TrainConfig(flops=budget, steps=7))


def test_steps_are_what_the_budget_pays_for(tmp_path):
    config = _config(1e11)
    settled, budget = flop_budget.settle(config, lambda: pipeline.train_dataset(config))
    assert budget is not None and settled.train.steps == budget.steps > 1
    assert abs(budget.flops - 1e11) <= budget.flops_per_step / 2
    assert dataclasses.replace(settled.train, steps=7) == config.train
    one = flops.train(config.model, flops.of_batch(next(pipeline.train_dataset(config))))
    assert 0.5 < budget.flops_per_step / one < 2.0
    again = flop_budget.settle(config, lambda: pipeline.train_dataset(config))
    assert again == (settled, budget)
    double = _config(2e11)
    other = flop_budget.settle(double, lambda: pipeline.train_dataset(double))[1]
    assert other is not None and abs(other.steps - 2 * budget.steps) <= 1
    flop_budget.write(tmp_path / "run", budget)
    found = json.loads((tmp_path / "run" / "flops.json").read_text())
    assert found["steps"] == budget.steps


def test_without_a_budget_no_data_is_read():
    config = _config(0.0)
    assert flop_budget.settle(config, lambda: pytest.fail("opened")) == (config, None)


def test_two_budgets_are_one_too_many():
    with pytest.raises(ConfigError, match=r"train\.flops .* train\.minutes"):
        TrainConfig(flops=1e12, minutes=1.0)
