"""Tests of updates that are left out, of loss spikes, and of what both cost a step."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from process_gen.checkpoint import manager
from process_gen.sharding import mesh as mesh_lib
from process_gen.train import guard, loop, optimizer
from process_gen.train import metrics as metrics_lib
from process_gen.train import state as state_lib
from tests.train import test_loop
from tests.train.test_loop import FNS, Numbers, assert_same, make_config, read_metrics


class Faulty(Numbers):
    """Some batches (counted from 0) hold a number that is not finite, or are far too large."""

    def __init__(self, poisoned=(), huge=()):
        super().__init__()
        self.poisoned, self.huge = set(poisoned), set(huge)

    def __next__(self):
        number, batch = self.next_batch, super().__next__()
        if number in self.poisoned:
            batch["x"][1, 2] = np.nan
        return {"x": batch["x"] * 1e3} if number in self.huge else batch


def make_step(config, advance=state_lib.advance):
    tx, schedule = optimizer.make_optimizer(config.optimizer, FNS.logical_axes)
    one = jnp.float32(1.0)

    def train_step(state, batch, key):
        key = jax.random.fold_in(key, state.step)
        loss, grads = jax.value_and_grad(lambda p: test_loop.errors(p, batch, key).mean())(
            state.params
        )
        state, update = advance(state, grads, tx, schedule, key, loss)
        metrics = {"loss": (loss, one), **update}
        return state, metrics_lib.only_if(metrics.pop("finite"), metrics)

    return tx, train_step


def run(workdir, config, dataset, **kwargs):
    tx, train_step = make_step(config)
    return loop.fit(
        config,
        workdir,
        fns=FNS,
        tx=tx,
        train_step=train_step,
        eval_step=lambda *_: {},
        dataset=dataset,
        eval_batches=[],
        mesh=mesh_lib.make_mesh(config.mesh, jax.devices()[:1]),
        **kwargs,
    )


def config_of(**train):
    settings = {"eval_every": 0, "save_every": 0, "log_every": 1, "keep": 9, **train}
    return make_config(train=settings, optimizer={"schedule": "constant", "warmup_steps": 0})


def test_an_update_that_is_not_finite_is_left_out_counted_and_kept(tmp_path):
    config = config_of(steps=8)
    seen = {}
    hooks = {"look": loop.Hook(1, lambda step, s: seen.update({step: jax.device_get(s)}))}
    run(tmp_path, config, Faulty({3, 5}), hooks=hooks)
    for step in (4, 6):  # the fourth and the sixth update
        assert_same(
            (seen[step].params, seen[step].ema, seen[step].opt_state),
            (seen[step - 1].params, seen[step - 1].ema, seen[step - 1].opt_state),
        )
        assert int(seen[step].step) == step
    assert np.any(seen[5].params["b"] != seen[4].params["b"])  # partner: the others are made
    logged = [entry for entry in read_metrics(tmp_path) if entry["split"] == "train"]
    # The log line of step 4 closes before the answer of step 4 is read.
    assert [entry.get("skipped_updates", 0) for entry in logged] == [0, 0, 0, 0, 1, 1, 2, 2]
    assert ["loss" in entry for entry in logged] == [n not in (4, 6) for n in range(1, 9)]
    kept = sorted((tmp_path / "skipped").iterdir())
    assert [path.name for path in kept] == ["step_4_process_0.npz", "step_6_process_0.npz"]
    np.testing.assert_array_equal(np.load(kept[0])["x"], next_of(Faulty({3}), 3)["x"])


def next_of(dataset, number):
    dataset.set_state({"next_batch": number})
    return next(dataset)


def test_a_run_stops_after_too_many_in_a_row_and_its_checkpoint_is_good(tmp_path):
    config = config_of(steps=20, save_every=4, max_skipped=2)
    bad = {3, 4, 8, 9, 10}
    with pytest.raises(loop.TrainingError, match=r"3 updates in a row .* step 11,.*step_11_pro"):
        run(tmp_path, config, Faulty(bad))
    _, params, meta = manager.load_for_sampling(tmp_path, "params")
    assert meta["step"] == 8 and meta["guard"]["skipped"] == 2
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))
    # Two in a row are borne, and what was counted goes on with the run.
    run(tmp_path, config, Faulty({3, 4, 9, 10}))
    assert manager.load_for_sampling(tmp_path)[2]["guard"]["skipped"] == 4


@pytest.mark.slow
def test_three_in_a_row_are_three_also_across_a_restart(tmp_path):
    config = config_of(steps=5, max_skipped=2)
    run(tmp_path, config, Faulty({3, 4}))
    with pytest.raises(loop.TrainingError, match="3 updates in a row"):
        run(tmp_path, config_of(steps=9, max_skipped=2), Faulty({5}))


def test_without_faults_the_guard_changes_no_bit(tmp_path):
    """Compared with a step that applies every update as it is."""

    def unguarded(state, grads, tx, schedule, key, loss):
        real = jnp.isfinite
        try:
            jnp.isfinite = lambda x: True  # what `advance` asks while it is traced
            return state_lib.advance(state, grads, tx, schedule, key, loss)
        finally:
            jnp.isfinite = real

    config = config_of()
    mesh = mesh_lib.make_mesh(config.mesh, jax.devices()[:1])
    ends = []
    for advance in (state_lib.advance, unguarded):
        tx, step = make_step(config, advance)
        data, key = Faulty(), jax.random.key(1)
        state = state_lib.init_state(FNS, tx, key, 9, mesh)
        # As users compile: what is left unoptimised rounds by how it is cut into kernels.
        jitted = jax.jit(step, compiler_options={"xla_backend_optimization_level": 3})
        for _ in range(6):
            state, _ = jitted(state, next(data), key)
        ends.append(jax.device_get(state))
        poisoned, _ = jitted(state, next_of(Faulty({0}), 0), key)
        ends.append(np.isfinite(poisoned.params["b"]).all())
    assert_same(ends[0], ends[2])
    assert ends[1] and not ends[3]  # partner: the two steps are not the same


def test_a_spike_sends_the_run_back_and_its_batch_is_left_out(tmp_path):
    """The run ends as one whose data never held that batch."""
    train = dict(steps=70, save_every=20, spike_factor=10.0, max_rollbacks=1)
    state = run(tmp_path / "a", config_of(**train), Faulty(huge={64}))

    class Without(Numbers):
        def __next__(self):
            if self.next_batch == 64:
                self.next_batch += 1
            return super().__next__()

    wanted = run(tmp_path / "b", config_of(**train), Without())
    assert_same(jax.device_get(state), jax.device_get(wanted))
    meta = manager.load_for_sampling(tmp_path / "a")[2]
    assert meta["guard"]["rollbacks"] == meta["guard"]["spikes"] == 1
    assert meta["guard"]["left_out"] == [65]
    steps = [e["step"] for e in read_metrics(tmp_path / "a") if e["split"] == "train"]
    assert steps == list(range(1, 71))
    # Partners: with the batch the run ends elsewhere, and without rollbacks it is only counted.
    other = run(tmp_path / "c", config_of(**{**train, "max_rollbacks": 0}), Faulty(huge={64}))
    assert np.any(other.params["b"] != wanted.params["b"])
    assert manager.load_for_sampling(tmp_path / "c")[2]["guard"]["spikes"] >= 1
    with pytest.raises(loop.TrainingError, match="after train.max_rollbacks=1 rollbacks"):
        run(tmp_path / "d", config_of(**train), Faulty(huge={64, 66}))


@pytest.mark.slow
def test_a_rollback_before_there_is_a_checkpoint_goes_to_the_beginning(tmp_path):
    train = dict(steps=60, spike_factor=10.0, max_rollbacks=1)
    state = run(tmp_path, config_of(**train), Faulty(huge={52}))
    assert int(state.step) == 60
    assert manager.load_for_sampling(tmp_path)[2]["guard"]["left_out"] == [53]


def test_the_check_adds_no_pass_and_no_transfer():
    """Read from the compiled program, beside one of a step that applies every update as it is.

    A pass over the gradients would be one more reduction of each of them; a question to the host
    would be a callback, an outfeed or a send.
    """
    config = config_of()
    tx, schedule = optimizer.make_optimizer(config.optimizer, FNS.logical_axes)
    mesh = mesh_lib.make_mesh(config.mesh, jax.devices()[:1])
    state = state_lib.abstract_state(FNS, tx, 1, mesh)
    batch = {"x": jax.ShapeDtypeStruct((4, 3), jnp.float32)}
    key = jax.eval_shape(lambda: jax.random.key(0))

    def compiled(extra):
        def step(state, batch, key):
            loss, grads = jax.value_and_grad(lambda p: test_loop.errors(p, batch, key).mean())(
                state.params
            )
            if extra == "none":
                loss = 0.0  # what is judged is the norm alone, which the log needs anyway
            if extra == "pass":
                checks = [jnp.isfinite(g).all() for g in jax.tree.leaves(grads)]
                loss = jnp.where(jnp.stack(checks).all(), loss, jnp.nan)
            return state_lib.advance(state, grads, tx, schedule, key, loss)

        return loop.jit_step(step, state).lower(state, batch, key).compile().as_text()

    reductions = {
        extra: len(re.findall(r" = \S+ reduce\(", compiled(extra)))
        for extra in ("none", "loss", "pass")
    }
    assert reductions["loss"] - reductions["none"] <= 1  # the loss itself, if nothing else asks
    assert reductions["pass"] > reductions["loss"]  # partner: a pass would be seen
    text = compiled("loss")
    assert not re.search(r"outfeed|infeed|\bsend\b|\brecv\b|callback", text)


@pytest.mark.slow
def test_a_full_folder_of_bad_batches_takes_no_more(tmp_path, monkeypatch):
    monkeypatch.setattr(guard, "_MAX_DUMPS", 1)
    run(tmp_path, config_of(steps=4), Faulty({1, 2}))
    assert len(list((tmp_path / "skipped").iterdir())) == 1
