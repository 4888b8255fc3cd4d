from __future__ import annotations

import dataclasses
import time

import pytest

from configs import strokes_tiny
from process_gen.core.configs import from_mapping
from process_gen.data.pipeline import TrainIterator
from process_gen.train import feeding as feeding_lib
from process_gen.train.feeding import feeding


def config(kind="strokes"):
    mapping = strokes_tiny.get_config("debug").to_dict()
    mapping["data"] |= {"sources": ({"kind": kind, "size": 40},), "eval_sources": ()}
    mapping["model"] |= {"num_layers": 1, "width": 16, "mlp_width": 16, "head_dim": 8}
    mapping["optimizer"] |= {"name": "adamw"}
    return from_mapping(mapping)


@pytest.fixture
def light_step(monkeypatch):
    """A step that counts and does nothing else, for what is timed does not matter here."""

    def make(*_):
        return lambda state, batch, key: (
            dataclasses.replace(state, step=state.step + 1),
            batch.text.order[0],
        )

    monkeypatch.setattr(feeding_lib.step, "make_train_step", make)


def test_steps_and_batches_are_timed(light_step, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    found = feeding(config(), 1, batches=2)
    # Ratios, and the plan of a fast machine, are rounded to nothing.
    timed = ("step_seconds", "batch_seconds", "step_cpu_seconds", "batch_cpu_seconds")
    assert found["turns"] == 1 and min(found[name] for name in timed) > 0
    assert found["times_over"] <= 0.06 + found["step_seconds"] / found["batch_seconds"]

    taken = TrainIterator.__next__

    def slowly(iterator):
        time.sleep(0.05)
        return taken(iterator)

    monkeypatch.setattr(TrainIterator, "__next__", slowly)
    slow = feeding(config(), 1, batches=2)
    assert slow["batch_seconds"] >= 0.05
    assert slow["times_over"] <= 0.06 + slow["step_seconds"] / 0.05


def test_what_the_run_would_object_to_is_an_error():
    with pytest.raises(ValueError, match="unknown data source"):
        feeding(config("nothing"), 1)
