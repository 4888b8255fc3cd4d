from __future__ import annotations

import numpy as np
import pytest

from process_gen.core.configs import from_mapping
from process_gen.core.errors import DataError, GrammarError
from process_gen.core.trajectory import Step, Trajectory
from process_gen.data.pipeline import train_dataset
from process_gen.data.statistics import Contents, describe, distribution, speed, verdict

PLAN = "<ins>a</ins><des>a</des>"
IMAGE = np.zeros((32, 32, 3), np.uint8)
FAULT = "no <refine>b</refine>"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.parametrize(
    ("step", "name"),
    [
        (Step(PLAN), "no sketch"),
        (Step(PLAN, IMAGE), "not inspected"),
        (Step(PLAN, IMAGE, "fine"), "approved"),
        (Step(PLAN, IMAGE, FAULT), "refused, not repaired"),
        (Step(PLAN, IMAGE, FAULT, None, IMAGE), "misalignment"),
        (Step(PLAN, IMAGE, FAULT, PLAN, IMAGE), "conflict"),
    ],
)
def test_verdicts(step, name):
    assert verdict(step) == name


def test_distributions():
    assert distribution([]) == {"mean": 0.0, "max": 0, "histogram": {}}
    assert distribution([1, 1, 4], whole=True)["histogram"] == {"1": 2, "4": 1}
    found = distribution(range(101))
    assert (found["p50"], found["p90"], found["p99"], found["max"]) == (50, 90, 99, 100)
    assert sum(found["histogram"].values()) == 101


def config(**data):
    return from_mapping({"data": {"sources": [{"kind": "strokes", "size": 30}], "rows": 2, **data}})


def test_tokens_by_stage_add_up_to_the_lengths():
    found = describe(config(), sample=0)
    tokens = found["contents"]["tokens"]
    for name in ("text", "und", "gen"):
        total = sum(counts.get(name, 0) for counts in tokens.values())
        assert total == pytest.approx(found["lengths"][name]["mean"], abs=0.05)
    loss = sum(counts.get("supervised", 0) for counts in tokens.values())
    iterator = train_dataset(config(grammar={"text_dropout": 0.0}))
    plan = iterator.plan(0)
    batches = [next(iterator) for _ in range(len(plan) // 2)]
    labels = sum((b.label_BxT >= 0).sum() + (b.target_stage_BxG >= 0).sum() for b in batches)
    # A batch may end in the next epoch's first pack; most packs are this one's.
    assert labels / 30 == pytest.approx(loss, rel=0.15)


def test_what_cannot_be_used_is_not_counted():
    contents = Contents(config())
    with pytest.raises(GrammarError):
        contents.add(Trajectory("a dot"), "all")
    assert contents.count == 0 and not contents.tokens
    contents.add(Trajectory("a dot", steps=(Step(PLAN, IMAGE, "fine"),)), "all")
    summary = contents.summary()
    assert summary["steps"]["histogram"] == {"1": 1} and summary["verdicts"] == {"approved": 1}


def test_a_split_that_there_is_not():
    with pytest.raises(DataError, match="data.eval_sources is empty"):
        describe(config(), split="eval")


def test_speed():
    found = speed(config(), 3)
    assert found["batches"] == 3 and found["workers"] == 0
    assert found["rows_per_second"] == pytest.approx(2 * found["batches_per_second"], rel=0.05)
    assert 0 < found["batches_per_second_with_plans"] <= found["batches_per_second"]
