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
