"""Tests of saving, keeping, finding and refusing checkpoints."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from process_gen.checkpoint import manager
from process_gen.core import configs
from process_gen.core.errors import CheckpointError

TX = optax.adam(1e-3)


def make_config(**sections):
    base = {"train": {"steps": 10, "keep": 2, "best_metric": "loss"}, "data": {"rows": 2}}
    for name, values in sections.items():
        base[name] = {**base.get(name, {}), **values}
    return configs.from_mapping(base)


def make_trees(value=1.0, ema=True):
    value = float(value)
    params = {"layers": {"w": jnp.full((2, 3), value)}, "b": jnp.arange(3.0) * value}
    return {
        "params": params,
        "ema": jax.tree.map(lambda p: p + 100.0, params) if ema else None,
        "optimizer": {"opt_state": TX.init(params), "step": jnp.int32(value)},
    }


def abstract(trees):
    at = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at), trees)


def save(workdir, metrics_by_step, config=None, ema=True):
    config = config or make_config()
    with manager.CheckpointManager(workdir, config) as checkpoints:
        for step, metrics in metrics_by_step.items():
            data = {"next_index": 3 * step, "plan_hash": "abc", "tokenizer": "def"}
            checkpoints.save(step, make_trees(step, ema), data, {"note": "n"}, metrics)


def test_round_trip_of_every_part(tmp_path):
    save(tmp_path, {7: {"loss": 0.5}})
    with manager.CheckpointManager(tmp_path, make_config()) as checkpoints:
        assert checkpoints.latest_step == 7 and checkpoints.best_value == 0.5
        trees, data, meta = checkpoints.restore(abstract(make_trees()))
    jax.tree.map(np.testing.assert_array_equal, trees, make_trees(7))
    assert jax.tree.structure(trees) == jax.tree.structure(make_trees(7))
    assert data == {"next_index": 21, "plan_hash": "abc", "tokenizer": "def"}
    assert meta["tokenizer"] == "def"
    assert meta["step"] == 7 and meta["plan_hash"] == "abc" and meta["note"] == "n"
    assert meta["versions"]["jax"] == jax.__version__
    assert configs.from_mapping(meta["config"]) == make_config()
    assert configs.from_mapping(json.loads((tmp_path / "config.json").read_text())) == make_config()
    with pytest.raises(AssertionError):  # partner: another step's values differ
        jax.tree.map(np.testing.assert_array_equal, trees, make_trees(8))


def test_a_relative_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save("run", {7: {"loss": 0.5}})
    _, params, _ = manager.load_for_sampling("run", "params")
    np.testing.assert_array_equal(params["b"], make_trees(7)["params"]["b"])
    assert (tmp_path / "run" / "checkpoints" / "7").exists()
    assert str(manager.absolute("gs://bucket/run")) == "gs://bucket/run"


def test_keeps_the_newest_and_the_best(tmp_path):
    losses = {1: {"loss": 0.5}, 2: {"loss": 0.1}, 3: {"loss": 0.7}, 4: None, 5: {"loss": 0.3}}
    save(tmp_path, losses)
    assert sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir()) == [2, 4, 5]
    assert manager.load_for_sampling(tmp_path)[2]["step"] == 5
    assert manager.load_for_sampling(tmp_path, step="best")[2]["step"] == 2
    assert manager.load_for_sampling(tmp_path, step=4)[2]["step"] == 4
    with pytest.raises(CheckpointError, match=r"step 3 .*\[2, 4, 5\]"):
        manager.load_for_sampling(tmp_path, step=3)


def test_a_damaged_one_does_not_hide_the_best(tmp_path):
    save(tmp_path, {1: {"loss": 0.5}, 2: {"loss": 0.1}, 3: {"loss": 0.7}})
    (tmp_path / "checkpoints" / "3" / "meta" / "data.json").write_text("{")
    assert manager.load_for_sampling(tmp_path, step="best")[2]["step"] == 2
    with pytest.raises(CheckpointError, match="damaged"):
        manager.load_for_sampling(tmp_path, step=3)


def test_best_rises_for_exact(tmp_path):
    config = make_config(train={"best_metric": "paint/exact", "keep": 1})
    save(tmp_path, {s: {"paint/exact": v} for s, v in ((1, 0.2), (2, 0.9), (3, 0.4))}, config)
    assert manager.load_for_sampling(tmp_path, step="best")[2]["step"] == 2
    assert manager.score("loss", 1.0) < manager.score("loss", 0.5)


def test_a_changed_buffer_does_not_reach_a_running_save(tmp_path):
    """The loop donates the state to the next step while orbax still writes."""
    bump = jax.jit(lambda t: jax.tree.map(lambda x: x + 1, t), donate_argnums=0)
    trees = make_trees(2.0)
    with manager.CheckpointManager(tmp_path, make_config()) as checkpoints:
        checkpoints.save(1, trees, {}, {})
        for _ in range(3):
            trees = bump(trees)
        restored, _, _ = checkpoints.restore(abstract(trees))
    np.testing.assert_array_equal(restored["params"]["b"], make_trees(2.0)["params"]["b"])
    assert not np.array_equal(trees["params"]["b"], restored["params"]["b"])


@pytest.mark.parametrize("ema", [True, False])
def test_load_for_sampling_chooses_weights(tmp_path, ema):
    save(tmp_path, {1: None}, ema=ema)
    config, params, meta = manager.load_for_sampling(tmp_path / "checkpoints" / "1")
    assert config == make_config() and meta["weights"] == ("ema" if ema else "params")
    plain = manager.load_for_sampling(tmp_path, weights="params")[1]
    np.testing.assert_array_equal(plain["b"], np.arange(3.0))
    np.testing.assert_array_equal(params["b"], np.arange(3.0) + (100.0 if ema else 0.0))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(model={"width": 48}), "model.width is 96 there and 48 here"),
        (dict(data={"seed": 5}), "data.seed"),
        (dict(loss={"t_mean": 1.0}), "loss.t_mean"),
        (dict(optimizer={"name": "muon"}), "optimizer.name"),
        (dict(train={"seed": 1}), "train.seed"),
        (dict(data={"sources": [{"kind": "other"}]}), r"data.sources.0.kind"),
    ],
)
def test_another_config_is_refused_and_nothing_is_written(tmp_path, changes, words):
    save(tmp_path, {1: None})
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises(CheckpointError, match=words) as error:
        manager.CheckpointManager(tmp_path, make_config(**changes))
    assert "\n" not in str(error.value)
    assert before == {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}


def test_what_may_change(tmp_path):
    save(tmp_path, {1: None})
    changed = make_config(train={"steps": 99}, data={"prefetch": 1}, sampler={"batch": 2})
    with manager.CheckpointManager(tmp_path, changed) as checkpoints:
        assert checkpoints.latest_step == 1


def test_missing_and_damaged(tmp_path):
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(CheckpointError, match="no checkpoint"):
            manager.load_for_sampling(path)
    save(tmp_path, {1: None})
    with pytest.raises(CheckpointError, match="no checkpoint .* was validated"):
        manager.load_for_sampling(tmp_path, step="best")
    step = tmp_path / "checkpoints" / "1"
    (step / "params" / "manifest.ocdbt").write_bytes(b"rubbish")
    with pytest.raises(CheckpointError, match="damaged") as error:
        manager.load_for_sampling(tmp_path, weights="params")
    assert "\n" not in str(error.value)
    (step / "meta" / "metadata").unlink(missing_ok=True)
    for file in (step / "meta").iterdir():
        file.write_text("{")
    with pytest.raises(CheckpointError, match="damaged"):
        manager.load_for_sampling(tmp_path)


def test_another_shape_is_refused(tmp_path):
    save(tmp_path, {1: None})
    wrong = abstract(make_trees())
    wrong["params"]["b"] = jax.ShapeDtypeStruct((4,), jnp.float32)
    with (
        manager.CheckpointManager(tmp_path, make_config()) as checkpoints,
        pytest.raises(CheckpointError, match="another model"),
    ):
        checkpoints.restore(wrong)
