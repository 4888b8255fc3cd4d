"""Processes that would read different packs stop before the first of them is trained on."""

from __future__ import annotations

import types

import pytest

from process_gen.core.errors import LostDataError
from process_gen.train import agreement
from tests.train import test_loop


@pytest.fixture
def two(monkeypatch):
    """Two processes, as far as the comparison knows; `two.other` is what the second one has."""
    found = types.SimpleNamespace(other=lambda words: words, asked=[])

    def gathered(words):
        found.asked.append(words)
        return [words, found.other(words)]

    monkeypatch.setattr(agreement, "jax", types.SimpleNamespace(process_count=lambda: 2))
    monkeypatch.setattr(agreement, "integrity", types.SimpleNamespace(gathered=gathered))
    return found


class Planned(test_loop.Numbers):
    """Epochs of three batches."""

    @property
    def plan_facts(self):
        return f"plan {self.next_batch // 3}"


def train(workdir):
    """The batches that a run of eight steps came to train on."""
    seen = []
    error = None
    try:
        test_loop.run(workdir, test_loop.make_config(), Planned(), check_batch=seen.append)
    except LostDataError as raised:
        error = str(raised)
    return len(seen), error


def test_plans_are_compared_once_an_epoch(two, tmp_path):
    assert train(tmp_path) == (8, None)
    assert two.asked == ["plan 0", "plan 1", "plan 2"]


def test_other_packs_are_an_error_before_they_are_used(two, tmp_path):
    two.other = lambda words: words.replace("1", "9")
    steps, error = train(tmp_path / "later")
    # The third batch is the last of its epoch; it may reach into the next one.
    assert steps == 2
    assert "process 0 has plan 1; process 1 has plan 9" in error and "start again" in error
    two.other = lambda words: words.replace("0", "9")
    steps, error = train(tmp_path / "at once")
    assert steps == 0 and "process 1 has plan 9" in error


def test_a_process_alone_and_data_without_plans_ask_nobody(two, monkeypatch):
    assert agreement.same_plan(object(), "") == "" and two.asked == []
    monkeypatch.setattr(agreement, "jax", types.SimpleNamespace(process_count=lambda: 1))
    assert agreement.same_plan(Planned(), "") == "" and two.asked == []
