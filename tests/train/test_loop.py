"""Tests of the training loop on a model of two weights."""

from __future__ import annotations

import itertools
import json
import os
import signal
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh

from process_gen.checkpoint import manager, shipped
from process_gen.core import axes, configs
from process_gen.core.errors import CheckpointError, ConfigError
from process_gen.core.interrupts import Preempted
from process_gen.sharding import mesh as mesh_lib
from process_gen.train import loop, optimizer, progress
from process_gen.train import state as state_lib

ROWS, WIDTH = 4, 3


class Numbers:
    """Batches from a generator whose position is the whole state."""

    def __init__(self):
        self.next_batch = 0

    def __next__(self):
        rng = np.random.default_rng(self.next_batch)
        self.next_batch += 1
        return {"x": rng.normal(size=(ROWS, WIDTH)).astype(np.float32)}

    def get_state(self):
        return {"next_batch": self.next_batch, "plan_hash": "p"}

    def set_state(self, state):
        self.next_batch = state["next_batch"]


FNS = types.SimpleNamespace(
    init=lambda key: {
        "layers": {"w": jax.random.normal(key, (2, WIDTH, WIDTH))},
        "b": jnp.zeros((WIDTH,)),
    },
    logical_axes={"layers": {"w": (axes.LAYERS, axes.EMBED, axes.MLP)}, "b": (axes.EMBED,)},
)


def errors(params, batch, key):
    """Squared distance of a random linear map from x, a number per row and column."""
    noise = 0.1 * jax.random.normal(key, batch["x"].shape)
    y = batch["x"] @ params["layers"]["w"][0] @ params["layers"]["w"][1] + params["b"][None]
    return (y - batch["x"] - noise) ** 2


def make_config(**sections):
    base = {
        "train": {"steps": 8, "log_every": 3, "eval_every": 4, "save_every": 4, "keep": 3},
        "data": {"rows": ROWS},
        "optimizer": {"learning_rate": 0.05, "warmup_steps": 2, "ema_decay": 0.9},
    }
    for name, values in sections.items():
        base[name] = {**base.get(name, {}), **values}
    return configs.from_mapping(base)


def run(workdir, config, dataset=None, poison_at=None, fns=FNS, **kwargs):
    tx, schedule = optimizer.make_optimizer(config.optimizer, fns.logical_axes)
    one = jnp.float32(1.0)

    def train_step(state, batch, key):
        key = jax.random.fold_in(key, state.step)
        loss, grads = jax.value_and_grad(lambda p: errors(p, batch, key).mean())(state.params)
        if poison_at is not None:
            loss = jnp.where(state.step == poison_at, jnp.nan, loss)
        state, update = state_lib.advance(state, grads, tx, schedule, key)
        return state, {"loss": (loss, one), "plan_ce": (loss * 7, one * 7), **update}

    def eval_step(params, batch, key):
        loss = errors(params, batch, key)
        return {"loss": (loss.sum(), jnp.float32(loss.size))}

    kwargs.setdefault("eval_batches", [next(Numbers())])
    kwargs.setdefault("mesh", mesh_lib.make_mesh(config.mesh, jax.devices()[:1]))
    return loop.fit(
        config,
        workdir,
        fns=fns,
        tx=tx,
        train_step=train_step,
        eval_step=eval_step,
        dataset=dataset or Numbers(),
        **kwargs,
    )


def read_metrics(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_packs_that_the_mesh_does_not_divide_are_refused_first(tmp_path):
    mesh = AbstractMesh((1, 1, 1, 4), mesh_lib.MESH_AXES)
    with pytest.raises(ConfigError, match="data.und_len=82 cannot be dealt to mesh.context = 4"):
        run(tmp_path, make_config(data={"und_len": 82}), mesh=mesh)
    assert not list(tmp_path.iterdir())


def test_stopping_and_going_on_equals_going_through(tmp_path, capsys):
    """N + N == 2 N bit for bit, with weights, average, moments, data and logged numbers."""
    config = make_config(optimizer={"name": "muon"})
    through_data, again_data = Numbers(), Numbers()
    through = run(tmp_path / "a", config, through_data)

    class StopAfter(Numbers):
        def __next__(self):
            if self.next_batch == 4:  # the fifth batch is being made
                os.kill(os.getpid(), signal.SIGINT)
            return super().__next__()

    with pytest.raises(KeyboardInterrupt) as stopped:
        run(tmp_path / "b", config, StopAfter())
    assert not isinstance(stopped.value, Preempted)
    assert manager.load_for_sampling(tmp_path / "b")[2]["step"] == 5
    again = run(tmp_path / "b", config, again_data)

    assert_same(through, again)
    assert through_data.get_state() == again_data.get_state()
    assert int(again.step) == 8
    evals = [
        [(e["step"], e["loss"]) for e in read_metrics(tmp_path / d) if e["split"] == "eval"]
        for d in "ab"
    ]
    assert evals[0] == evals[1] and [step for step, _ in evals[0]] == [4, 8]
    assert "train 3/8" in capsys.readouterr().out
    # Partner: without the iterator's state the run ends elsewhere.
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "c", config, StopAfter())
    forgetful = Numbers()
    forgetful.set_state = lambda state: None
    other = run(tmp_path / "c", config, forgetful)
    assert not np.array_equal(other.params["b"], through.params["b"])


def test_a_run_that_stops_logs_the_steps_since_its_last_line(tmp_path):
    class StopAfter(Numbers):
        def __next__(self):
            if self.next_batch == 4:
                os.kill(os.getpid(), signal.SIGINT)
            return super().__next__()

    config = make_config(train={"eval_every": 0})
    run(tmp_path / "a", config)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "b", config, StopAfter())
    run(tmp_path / "b", config)
    through, again = (
        {e["step"]: e["loss"] for e in read_metrics(tmp_path / d) if e["split"] == "train"}
        for d in "ab"
    )
    assert list(through) == [3, 6, 8] and list(again) == [3, 5, 6, 8]
    assert (2 * again[5] + again[6]) / 3 == pytest.approx(through[6], rel=1e-6)
    assert again[6] != pytest.approx(through[6], rel=1e-3)  # partner: of step 6 alone


def test_sigterm_saves_too_and_says_so(tmp_path):
    class Taken(Numbers):
        def __next__(self):
            if self.next_batch == 2:  # the third batch is being made
                os.kill(os.getpid(), signal.SIGTERM)
            return super().__next__()

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Preempted):
        run(tmp_path, make_config(), Taken())
    assert manager.load_for_sampling(tmp_path)[2]["step"] == 3
    assert signal.getsignal(signal.SIGTERM) is before


def test_batches_are_prepared_for_training_and_for_validation(tmp_path):
    config = make_config(train={"steps": 2, "eval_every": 2})

    class Halved(Numbers):
        def __next__(self):
            return {"x": super().__next__()["x"] / 2}

    def doubled(batch):
        assert isinstance(batch["x"], np.ndarray)  # not on its devices yet
        return {"x": jnp.asarray(batch["x"] * 2)}

    held_out = [next(Numbers())]
    plain = run(tmp_path / "a", config, eval_batches=held_out)
    halved = {"x": held_out[0]["x"] / 2}
    prepared = run(tmp_path / "b", config, Halved(), eval_batches=[halved], prepare=doubled)
    assert_same(plain, prepared)
    losses = [[e["loss"] for e in read_metrics(tmp_path / d)] for d in "ab"]
    assert len(losses[0]) == 2 and losses[0] == losses[1]
    unprepared = run(tmp_path / "c", config, Halved(), eval_batches=[halved])
    assert not np.array_equal(unprepared.params["b"], plain.params["b"])


def test_logged_means_are_over_the_window(tmp_path):
    losses = []
    config = make_config(train={"eval_every": 0, "steps": 7})

    class Record(loop.writers.MetricWriter):
        def write_scalars(self, step, scalars):
            losses.append((step, scalars))

    run(tmp_path / "a", config, writer=Record())
    assert [step for step, _ in losses] == [3, 6, 7]
    one_by_one = []
    fine = make_config(train={"eval_every": 0, "steps": 7, "log_every": 1})
    losses, one_by_one = one_by_one, losses
    run(tmp_path / "b", fine, writer=Record())
    singles = [s["train/loss"] for _, s in losses]
    assert len(singles) == 7
    np.testing.assert_allclose(one_by_one[0][1]["train/loss"], np.mean(singles[:3]), rtol=1e-6)
    np.testing.assert_allclose(one_by_one[0][1]["train/plan_ce"], np.mean(singles[:3]), rtol=1e-6)
    assert abs(singles[0] - singles[2]) > 1e-3


def test_numbers_and_pictures_of_a_hook_are_logged(tmp_path):
    picture, seen = np.full((2, 3, 3), 7, np.uint8), []
    config = make_config(
        train={"best_metric": "paint/finished", "eval_every": 0, "save_every": 0, "steps": 4}
    )

    class Record(loop.writers.MetricWriter):
        def write_images(self, step, images):
            seen.append((step, list(images.items())))

        def write_scalars(self, step, scalars):
            seen.append((step, sorted(n for n in scalars if n.startswith("paint/"))))

    hooks = {"paint": loop.Hook(2, lambda step, state: {"0": picture, "finished": np.float32(1)})}
    run(tmp_path, config, hooks=hooks, writer=Record())
    found = [entry for entry in seen if entry[1]]
    assert found == [
        entry
        for step in (2, 4)
        for entry in ((step, [("paint/0", picture)]), (step, ["paint/finished"]))
    ]


def test_best_is_saved_whenever_it_comes(tmp_path):
    config = make_config(
        train={"best_metric": "paint/exact", "eval_every": 0, "save_every": 0, "keep": 1}
    )
    scores = {2: 0.1, 4: 0.8, 6: 0.3, 8: 0.2}
    hooks = {"paint": loop.Hook(2, lambda step, state: {"exact": scores[step]})}
    run(tmp_path, config, hooks=hooks)
    assert manager.load_for_sampling(tmp_path, step="best")[2]["step"] == 4
    assert manager.load_for_sampling(tmp_path)[2]["step"] == 8
    painted = [e["exact"] for e in read_metrics(tmp_path) if e["split"] == "paint"]
    assert painted == list(scores.values())


def test_unmeasured_best_metric_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="names no hook"):
        run(tmp_path, make_config(train={"best_metric": "paint/exact"}))
    with pytest.raises(ConfigError, match="'lss' is not measured; known: loss"):
        run(tmp_path, make_config(train={"best_metric": "lss"}))


def test_nan_stops_before_it_is_saved(tmp_path):
    config = make_config(train={"log_every": 50, "eval_every": 0})
    with pytest.raises(loop.TrainingError, match="loss, plan_ce not finite"):
        run(tmp_path, config, poison_at=5)
    assert manager.load_for_sampling(tmp_path)[2]["step"] == 4


def test_more_steps_later_and_another_config(tmp_path):
    assert int(run(tmp_path, make_config()).step) == 8
    longer = run(tmp_path, make_config(train={"steps": 10}))
    assert int(longer.step) == int(longer.total_steps) == 10
    assert int(run(tmp_path, make_config(train={"steps": 10})).step) == 10  # nothing left to do
    with pytest.raises(CheckpointError, match="optimizer.learning_rate"):
        run(tmp_path, make_config(optimizer={"learning_rate": 0.1}))


def test_starting_from_other_weights(tmp_path):
    first = run(tmp_path / "a", make_config())
    seen = []
    config = make_config(train={"init_from": str(tmp_path / "a"), "steps": 1})
    run(tmp_path / "b", config, on_start=lambda s: seen.append(jax.device_get(s)))
    assert_same(seen[0].params, jax.device_get(first.ema))
    assert int(seen[0].step) == 0
    wide = types.SimpleNamespace(**vars(FNS))
    wide.init = lambda key: {**FNS.init(key), "b": jnp.zeros((WIDTH + 1,))}
    tx, _ = optimizer.make_optimizer(config.optimizer, FNS.logical_axes)
    like = state_lib.abstract_state(wide, tx, 1, mesh_lib.make_mesh(config.mesh, jax.devices()[:1]))
    with pytest.raises(CheckpointError, match=r"weight b has shape \(3,\) there and \(4,\) here"):
        manager.load_for_sampling(tmp_path / "a", like=like.params)


def test_starting_from_a_painter_that_was_handed_on(tmp_path):
    config = make_config(train={"init_from": str(tmp_path / "painter"), "steps": 1})
    w = np.full((2, WIDTH, WIDTH), 0.5, np.float32)
    given = {"layers": {"w": w}, "b": np.arange(WIDTH, dtype=np.float32)}
    shipped.write(tmp_path / "painter", config, given, {})
    seen = []
    run(tmp_path / "run", config, on_start=lambda s: seen.append(jax.device_get(s)))
    assert_same(seen[0].params, given)
    shipped.write(tmp_path / "painter", config, {**given, "b": np.zeros(WIDTH + 1)}, {})
    with pytest.raises(CheckpointError, match=r"weight b has shape \(4,\) there and \(3,\) here"):
        run(tmp_path / "other", config)


def test_a_time_budget_sets_the_total_and_a_resume_keeps_it(tmp_path, monkeypatch):
    ticks = itertools.count()

    class Clocked(progress.TimeBudget):
        """A tenth of a second for 20 steps, whatever the machine is doing."""

        def __init__(self, minutes, started, settled=False):
            super().__init__(minutes, 0.0, settled, clock=lambda: 0.1 * next(ticks))

    monkeypatch.setattr(progress, "TimeBudget", Clocked)
    config = make_config(
        train={"minutes": 0.02, "steps": 10, "eval_every": 0, "save_every": 0, "log_every": 1000}
    )
    state = run(tmp_path, config)
    total = int(state.total_steps)
    assert int(state.step) == total == 2 + 1.2 * 200  # 60 is what it begins with
    meta = manager.load_for_sampling(tmp_path)[2]
    assert meta["timed"] is True
    again = run(tmp_path, config)
    assert int(again.total_steps) == total


def test_average_is_optional(tmp_path):
    state = run(tmp_path, make_config(optimizer={"ema_decay": 0.0}))
    assert state.ema is None
    assert manager.load_for_sampling(tmp_path)[2]["weights"] == "params"
    again = run(tmp_path, make_config(optimizer={"ema_decay": 0.0}))
    assert_same(jax.device_get(state), jax.device_get(again))


def test_what_the_data_left_out_is_logged(tmp_path):
    class Skipping(Numbers):
        def counters(self):
            return {"skipped_failed": float(self.next_batch // 4)}

    run(tmp_path / "a", make_config(), Skipping())
    logged = [m for m in read_metrics(tmp_path / "a") if m["split"] == "train"]
    assert [m["skipped_failed"] for m in logged] == [0.0, 1.0, 2.0]  # after steps 3, 6, 8
    run(tmp_path / "b", make_config())
    assert not any("skipped_failed" in m for m in read_metrics(tmp_path / "b"))


HALF = types.SimpleNamespace(
    init=lambda key: jax.tree.map(lambda x: x.astype(jnp.bfloat16), FNS.init(key)),
    logical_axes=FNS.logical_axes,
)


@pytest.mark.parametrize(
    "settings",
    [
        {"name": "adafactor", "moment_dtype": "bfloat16", "ema_dtype": "bfloat16", "ema_every": 2},
        {"name": "muon", "moment_dtype": "bfloat16", "ema_memory": "host"},
    ],
)
def test_every_form_of_the_state_goes_on_exactly(tmp_path, settings):
    """Weights of 16 bits with every form of moments and average: N + N == 2 N, bit for bit."""
    short = {"steps": 2, "eval_every": 0, "save_every": 0}
    through = run(
        tmp_path / "a", make_config(optimizer=settings, train={**short, "steps": 4}), fns=HALF
    )
    seen = []
    first = run(tmp_path / "b", make_config(optimizer=settings, train=short), fns=HALF)
    again = run(
        tmp_path / "b",
        make_config(optimizer=settings, train={**short, "steps": 4}),
        Numbers(),
        fns=HALF,
        on_start=seen.append,
    )
    assert_same(jax.device_get(through.ema), jax.device_get(again.ema))
    assert_same(through.params, again.params)
    assert_same(through.opt_state, again.opt_state)
    kinds = [jax.tree.map(lambda x: (x.dtype, x.sharding), s) for s in (through, first, again)]
    assert kinds[0] == kinds[1] == kinds[2]
    assert np.any(first.params["b"] != again.params["b"])


def test_a_step_gives_up_the_buffers_of_the_state():
    config = make_config()
    rule, schedule = optimizer.make_optimizer(config.optimizer, FNS.logical_axes)
    mesh = mesh_lib.make_mesh(config.mesh, jax.devices()[:1])
    state = state_lib.abstract_state(FNS, rule, 1, mesh)

    def step(state, batch, key):
        grads = jax.grad(lambda p: errors(p, batch, key).mean())(state.params)
        return state_lib.advance(state, grads, rule, schedule, key)

    batch = {"x": jax.ShapeDtypeStruct((ROWS, WIDTH), jnp.float32)}
    arguments = (state, batch, jax.eval_shape(lambda: jax.random.key(0)))
    compiled = loop.jit_step(step, state).lower(*arguments).compile()
    size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
    assert compiled.memory_analysis().alias_size_in_bytes == size
    entry = compiled.as_text().split("\n", 1)[0]
    assert entry.count("may-alias") + entry.count("must-alias") == len(jax.tree.leaves(state))
    kept = jax.jit(step).lower(*arguments).compile()
    assert kept.memory_analysis().alias_size_in_bytes == 0


def test_products_of_a_step_on_cpus_are_eigens():
    """What XLA gives to YNN it names so; a step without the loop's options shows it."""
    rule, _ = optimizer.make_optimizer(make_config().optimizer, FNS.logical_axes)
    mesh = mesh_lib.make_mesh(make_config().mesh, jax.devices()[:1])
    state = state_lib.abstract_state(FNS, rule, 1, mesh)

    def step(state, batch, key):
        return state, jnp.tanh(batch @ batch)

    batch = jax.ShapeDtypeStruct((256, 256), jnp.float32)
    arguments = (state, batch, jax.eval_shape(lambda: jax.random.key(0)))
    taken, default = (
        jitted.lower(*arguments).compile().as_text()
        for jitted in (loop.jit_step(step, state), jax.jit(step))
    )
    assert " dot(" in taken and "ynn" not in taken
    assert "ynn" in default


@pytest.mark.parametrize("log_every", [4, 1])
def test_numbers_are_fetched_one_step_late_and_only_to_be_logged(tmp_path, monkeypatch, log_every):
    """Records after how many batches anything was read from a device."""
    data, read, flags, written = Numbers(), set(), [], []
    kind = type(jnp.zeros(1))
    fetch = kind._value.fget  # every way to the host leads through it

    def noted(array):
        if array.dtype == bool:  # whether an update was made
            flags.append(data.next_batch)
        else:
            read.add(data.next_batch)
        return fetch(array)

    monkeypatch.setattr(kind, "_value", property(noted))
    config = make_config(
        train={"steps": 9, "log_every": log_every, "eval_every": 0, "save_every": 0}
    )

    class Record(loop.writers.MetricWriter):
        def write_scalars(self, step, scalars):
            written.append((step, data.next_batch))

    run(tmp_path, config, data, eval_batches=[], writer=Record())
    started, ended = {0, 1}, {9}  # the first step reads constants while it is traced
    # The window that ends at step 4 is read when step 5 is on its way.
    due = {4: {5, 9}, 1: set(range(2, 10))}[log_every]
    assert read - started - ended == due - ended
    assert written[0] == (log_every, log_every + 1)
    # One byte of each step is read, and that too when the next step is on its way.
    assert flags == [*range(2, 10), 9]
