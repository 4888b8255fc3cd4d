"""Tests of the training state."""

from __future__ import annotations

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from process_gen.core import axes
from process_gen.core.configs import MeshConfig, OptimizerConfig
from process_gen.core.errors import ConfigError
from process_gen.sharding import mesh as mesh_lib
from process_gen.sharding import rules
from process_gen.train import optimizer
from process_gen.train import state as state_lib

FNS = types.SimpleNamespace(
    init=lambda key: {"layers": {"w": jax.random.normal(key, (2, 4, 6))}, "b": jnp.ones((4,))},
    logical_axes={"layers": {"w": (axes.LAYERS, axes.EMBED, axes.MLP)}, "b": (axes.EMBED,)},
)


@pytest.fixture
def mesh():
    return mesh_lib.make_mesh(MeshConfig(), jax.devices()[:1])


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_moments_are_sharded_like_their_weights(mesh, name):
    tx, _ = optimizer.make_optimizer(OptimizerConfig(name=name), FNS.logical_axes)
    state = state_lib.init_state(FNS, tx, jax.random.key(0), 10, mesh)
    abstract = state_lib.abstract_state(FNS, tx, 10, mesh)
    assert jax.tree.structure(state) == jax.tree.structure(abstract)
    for leaf, shape in zip(jax.tree.leaves(state), jax.tree.leaves(abstract), strict=True):
        assert (leaf.shape, leaf.dtype, leaf.sharding) == (shape.shape, shape.dtype, shape.sharding)
    names = (FNS.logical_axes["layers"]["w"], FNS.logical_axes["b"])
    by_shape = {(2, 4, 6): rules.partition_spec(names[0]), (4,): rules.partition_spec(names[1])}
    assert by_shape[2, 4, 6] != by_shape[4,] != PartitionSpec()
    for leaf in jax.tree.leaves(state.opt_state):
        assert leaf.sharding.spec == by_shape.get(leaf.shape, PartitionSpec())
    assert state.params["layers"]["w"].sharding.spec == by_shape[2, 4, 6]


def test_parts_are_an_exact_round_trip(mesh):
    for decay in (0.0, 0.9):
        tx, _ = optimizer.make_optimizer(OptimizerConfig(ema_decay=decay), FNS.logical_axes)
        state = state_lib.init_state(FNS, tx, jax.random.key(0), 10, mesh)
        again = state_lib.from_parts(state_lib.to_parts(state))
        assert jax.tree.structure(again) == jax.tree.structure(state)
        jax.tree.map(np.testing.assert_array_equal, again, state)


def test_advance_applies_rate_and_counts(mesh):
    config = OptimizerConfig(learning_rate=0.5, schedule="constant", warmup_steps=0, ema_decay=0.5)
    tx, schedule = optimizer.make_optimizer(config, FNS.logical_axes)
    state = state_lib.init_state(FNS, tx, jax.random.key(0), 10, mesh)
    grads = jax.tree.map(jnp.ones_like, state.params)
    step = jax.jit(lambda s, g: state_lib.advance(s, g, tx, schedule, jax.random.key(0)))
    new, metrics = step(state, grads)
    # Adam's first step is the sign of the gradient times the rate.
    np.testing.assert_allclose(new.params["b"], state.params["b"] - 0.5, rtol=1e-5)
    np.testing.assert_allclose(new.ema["b"], 1.0 - 0.9 * 0.5, rtol=1e-5)
    assert int(new.step) == 1 and int(new.total_steps) == 10
    np.testing.assert_allclose(metrics["grad_norm"][0], np.sqrt(2 * 4 * 6 + 4), rtol=1e-6)
    assert float(metrics["learning_rate"][0]) == 0.5
    change = {name: new.params[name] - state.params[name] for name in ("b",)}
    np.testing.assert_allclose(metrics["update_norm/b"][0], np.linalg.norm(change["b"]), rtol=1e-5)


def test_with_total_and_with_weights(mesh):
    tx, _ = optimizer.make_optimizer(OptimizerConfig(), FNS.logical_axes)
    state = state_lib.init_state(FNS, tx, jax.random.key(0), 10, mesh)
    assert int(state_lib.with_total(state, 7).total_steps) == 7
    other = jax.tree.map(lambda p: p + 1, state.params)
    started = state_lib.with_weights(state, other, OptimizerConfig())
    jax.tree.map(np.testing.assert_array_equal, started.ema, other)
    jax.tree.map(np.testing.assert_array_equal, started.params, other)


def test_unknown_logical_name_is_refused(mesh):
    bad = types.SimpleNamespace(init=FNS.init, logical_axes={**FNS.logical_axes, "b": ("embd",)})
    tx, _ = optimizer.make_optimizer(OptimizerConfig(), bad.logical_axes)
    with pytest.raises(ConfigError, match="embd"):
        state_lib.init_state(bad, tx, jax.random.key(0), 10, mesh)


def test_the_state_of_16_bits_and_in_the_hosts_memory(mesh):
    """Types, places and sizes are what the settings say, in the arrays and in their description."""
    settings = OptimizerConfig(
        name="adafactor", moment_dtype="bfloat16", ema_dtype="bfloat16", ema_memory="host"
    )
    shape = (2, 128, 256)
    fns = types.SimpleNamespace(
        init=lambda key: {
            "layers": {"w": jax.random.normal(key, shape, jnp.bfloat16)},
            "b": jnp.ones((128,), jnp.bfloat16),
        },
        logical_axes=FNS.logical_axes,
    )
    rule, schedule = optimizer.make_optimizer(settings, fns.logical_axes)
    state = state_lib.init_state(fns, rule, jax.random.key(0), 10, mesh)
    abstract = state_lib.abstract_state(fns, rule, 10, mesh)
    for leaf, described in zip(jax.tree.leaves(state), jax.tree.leaves(abstract), strict=True):
        assert (leaf.shape, leaf.dtype) == (described.shape, described.dtype)
        assert leaf.sharding == described.sharding
    assert {x.sharding.memory_kind for x in jax.tree.leaves(state.ema)} == {"pinned_host"}
    assert {x.dtype.name for x in jax.tree.leaves((state.params, state.ema))} == {"bfloat16"}
    rows = [x for x in jax.tree.leaves(state.opt_state) if x.shape in ((2, 128), (2, 256))]
    assert len(rows) == 2 and all(x.sharding.spec == PartitionSpec() for x in rows)
    assert state_lib.averaged(state)["b"].sharding == state.params["b"].sharding


def test_small_updates_reach_weights_of_16_bits(mesh):
    """A thousandth of the spacing a step: lost to the nearest, there in the mean by chance."""
    fns = types.SimpleNamespace(
        init=lambda key: {"b": jnp.ones((4096,), jnp.bfloat16)}, logical_axes={"b": (axes.EMBED,)}
    )
    rate = 2.0**-12
    settings = OptimizerConfig(
        learning_rate=rate, schedule="constant", warmup_steps=0, ema_decay=0.0
    )
    rule, schedule = optimizer.make_optimizer(settings, fns.logical_axes)
    state = state_lib.init_state(fns, rule, jax.random.key(0), 100, mesh)
    grads = {"b": -jnp.ones((4096,), jnp.bfloat16)}

    @jax.jit
    def step(state):
        key = jax.random.fold_in(jax.random.key(1), state.step)
        return state_lib.advance(state, grads, rule, schedule, key)[0]

    for _ in range(100):
        state = step(state)
    moved = np.asarray(state.params["b"], np.float32).mean() - 1.0
    assert moved == pytest.approx(100 * rate, rel=0.1)
    assert jnp.bfloat16(1.0) + jnp.bfloat16(rate) == 1.0  # what plain addition would do
