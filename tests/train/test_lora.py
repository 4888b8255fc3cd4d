"""Tests of adapters: what they compute, what is trained, what is stored and read back."""

from __future__ import annotations

import dataclasses
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from launch import common, import_bagel
from process_gen.checkpoint import adapters, bagel, manager, safetensors_io
from process_gen.core import axes, configs, trees
from process_gen.core.configs import Config, LoraConfig, OptimizerConfig
from process_gen.core.errors import ConfigError
from process_gen.models import functional
from process_gen.models.layers import Linear, nnx
from process_gen.sharding.mesh import make_mesh
from process_gen.train import loop, optimizer
from process_gen.train import state as state_lib

CHECKPOINT = Path(__file__).resolve().parents[1] / "parity" / "fixtures" / "checkpoint"
LORA = LoraConfig(rank=2, alpha=6.0)


def lively(tree, seed=0):
    """Random numbers in place of b = 0, with which an adapter would compute nothing."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), tree)


def merge(params, scale):
    return adapters.merge(*adapters.split(params), scale)


def apply(linear, weights, x):
    graph, state = nnx.split(linear)
    nnx.replace_by_pure_dict(state, weights)
    return nnx.merge(graph, state)(x)


def test_an_adapter_computes_what_the_merged_map_computes():
    names, rngs = (axes.EMBED, axes.MLP), nnx.Rngs(0)
    linear = Linear(6, 5, names=names, rngs=rngs, bias=True, lora=LORA)
    plain = Linear(6, 5, names=names, rngs=rngs, bias=True)
    fresh = nnx.to_pure_dict(nnx.state(linear, nnx.Param))
    x = jnp.asarray(np.random.default_rng(1).normal(size=(3, 6)), jnp.float32)
    base = adapters.without(fresh)
    np.testing.assert_array_equal(linear(x), apply(plain, base, x))  # b is 0 at first

    weights = lively(fresh)
    found = apply(linear, weights, x)
    merged = merge(weights, LORA.scale)
    np.testing.assert_allclose(found, apply(plain, merged, x), rtol=1e-5, atol=1e-5)
    assert not np.allclose(found, apply(plain, adapters.without(weights), x), atol=0.1)
    halves = fresh["lora"]
    assert {half.dtype.name for half in halves.values()} == {"float32"}
    half = Linear(6, 5, names=names, rngs=rngs, param_dtype="bfloat16", lora=LORA)
    assert half.kernel[...].dtype == jnp.bfloat16 and half.lora.a[...].dtype == jnp.float32


def test_targets_and_experts_choose_the_maps():
    lora = LoraConfig(rank=2, targets=("q", "down"), experts=("gen",))
    fns = functional.build(dataclasses.replace(Config().model, lora=lora))
    names = [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, _ in jax.tree.leaves_with_path(
            fns.logical_axes, is_leaf=lambda x: isinstance(x, tuple)
        )
    ]
    found = {name for name in names if "/lora/" in name}
    maps = ("layers/gen/attention/q", "layers/gen/mlp/down")
    assert found == {f"{name}/lora/{half}" for name in maps for half in "ab"}
    rule, _ = optimizer.make_optimizer(OptimizerConfig(), fns.logical_axes)
    assert len(jax.tree.leaves(rule.trained, is_leaf=lambda x: isinstance(x, tuple))) == 4
    with pytest.raises(ConfigError, match="one of"):
        configs.from_mapping({"model": {"lora": {"rank": 1, "targets": ["norm"]}}})
    with pytest.raises(ConfigError, match="names no map"):
        configs.from_mapping({"model": {"lora": {"rank": 1, "targets": []}}})


SIDE, ROWS = 4, 2
L, E, M, R = axes.LAYERS, axes.EMBED, axes.MLP, axes.RANK
FNS = types.SimpleNamespace(
    init=lambda key: {
        "layers": {
            "map": {
                "kernel": jax.random.normal(key, (2, SIDE, SIDE), jnp.bfloat16),
                "lora": {"a": jnp.ones((2, SIDE, 2)), "b": jnp.zeros((2, 2, SIDE))},
            }
        },
        "b": jnp.zeros((SIDE,)),
    },
    logical_axes={
        "layers": {"map": {"kernel": (L, E, M), "lora": {"a": (L, E, R), "b": (L, R, M)}}},
        "b": (E,),
    },
)


class Numbers:
    def __init__(self):
        self.count = 0

    def __next__(self):
        self.count += 1
        rng = np.random.default_rng(self.count)
        return {"x": rng.normal(size=(ROWS, SIDE)).astype(np.float32)}

    def get_state(self):
        return {"count": self.count}

    def set_state(self, state):
        self.count = state["count"]


def run(workdir, steps, fns=FNS, rank=2, seen=None, **train):
    config = configs.from_mapping(
        {
            "model": {"lora": {"rank": rank, "alpha": 4.0}},
            "data": {"rows": ROWS},
            "optimizer": {
                "learning_rate": 0.1,
                "warmup_steps": 0,
                "ema_decay": 0.5,
                "schedule": "constant",
            },
            "train": {"steps": steps, "eval_every": 0, "log_every": 1, **train},
        }
    )
    rule, schedule = optimizer.make_optimizer(config.optimizer, fns.logical_axes)

    def train_step(state, batch, key):
        def loss(trained):
            params = trees.overlay(state.params, trained)
            kernel = merge(params, config.model.lora.scale)["layers"]["map"]["kernel"]
            y = batch["x"] @ kernel[0].astype(jnp.float32) @ kernel[1].astype(jnp.float32)
            return jnp.mean((y - batch["x"]) ** 2)

        value, grads = jax.value_and_grad(loss)(trees.take(state.params, rule.trained))
        state, update = state_lib.advance(state, grads, rule, schedule, key)
        return state, {"loss": (value, jnp.float32(1.0)), **update}

    return loop.fit(
        config,
        workdir,
        fns=fns,
        tx=rule,
        train_step=train_step,
        eval_step=lambda *_: {},
        dataset=Numbers(),
        eval_batches=[],
        mesh=make_mesh(config.mesh, jax.devices()[:1]),
        writer=loop.writers.MetricWriter(),
        on_start=None if seen is None else lambda state: seen.append(jax.device_get(state)),
    )


def test_a_run_trains_and_averages_adapters_only_and_goes_on_exactly(tmp_path):
    seen = []
    through = run(tmp_path / "a", 4, seen=seen)
    first = seen[0]
    kernel = through.params["layers"]["map"]["kernel"]
    np.testing.assert_array_equal(kernel, first.params["layers"]["map"]["kernel"])
    np.testing.assert_array_equal(through.params["b"], first.params["b"])
    halves = through.params["layers"]["map"]["lora"]
    assert np.any(halves["b"]) and np.any(halves["a"] != 1.0)
    sizes = sorted(x.size for x in jax.tree.leaves(through.opt_state) if x.size > 1)
    assert sizes == [2 * SIDE * 2] * 4  # two moments of a and of b, and nothing of the kernel
    assert jax.tree.structure(through.ema) == jax.tree.structure(adapters_of(through.params))

    run(tmp_path / "b", 2)
    again = run(tmp_path / "b", 4)
    jax.tree.map(np.testing.assert_array_equal, through, again)


def adapters_of(params):
    return trees.select(params, lambda path, leaf: "lora" in path)


def test_reading_a_run_merges_its_adapters(tmp_path):
    state = run(tmp_path, 2)
    for weights, tree in (("params", state.params), ("ema", state_lib.averaged(state))):
        config, params, meta = manager.load_for_sampling(tmp_path, weights)
        assert config.model.lora.rank == 0 and meta["weights"] == weights
        want = merge(tree, 2.0)
        jax.tree.map(np.testing.assert_array_equal, params, want)
        assert params["layers"]["map"]["kernel"].dtype == jnp.bfloat16
        assert np.any(params["layers"]["map"]["kernel"] != tree["layers"]["map"]["kernel"])
    plain = manager.load_for_sampling(tmp_path, "params")[1]
    assert np.any(plain["layers"]["map"]["kernel"] != params["layers"]["map"]["kernel"])


def test_a_run_may_start_from_weights_with_or_without_adapters(tmp_path):
    plain = types.SimpleNamespace(
        init=lambda key: adapters.without(FNS.init(jax.random.fold_in(key, 1))),
        logical_axes=adapters.without(FNS.logical_axes),
    )

    def merge_step_needs_no_adapters(path, steps):
        return run(path, steps, fns=plain, rank=0)

    base = merge_step_needs_no_adapters(tmp_path / "base", 2)
    seen = []
    adapted = run(tmp_path / "a", 2, seen=seen, init_from=str(tmp_path / "base"))
    start = seen[0].params["layers"]["map"]
    want = base.ema["layers"]["map"]["kernel"].astype(jnp.bfloat16)
    np.testing.assert_array_equal(start["kernel"], want)
    assert not np.any(start["lora"]["b"])
    # On top of adapters: they are part of the weights then.
    run(tmp_path / "b", 1, seen=seen, init_from=str(tmp_path / "a"))
    merged = merge(state_lib.averaged(adapted), 2.0)["layers"]["map"]["kernel"]
    np.testing.assert_array_equal(seen[1].params["layers"]["map"]["kernel"], merged)
    assert np.any(np.asarray(merged) != np.asarray(want))


def test_an_export_holds_the_merged_weights(tmp_path):
    source = tmp_path / "imported"
    arguments = ["x", f"--source={CHECKPOINT}", f"--output={source}", "--tokenizer=bytes"]
    common.run(import_bagel.main, import_bagel.define_flags, "", arguments)
    config, base, _ = manager.load_for_sampling(source)
    model = dataclasses.replace(config.model, lora=LORA)
    fns = functional.build(model)
    shapes = jax.eval_shape(fns.init, jax.random.key(0))
    params = trees.overlay(lively(shapes, seed=2), base)
    started = dataclasses.replace(
        config,
        model=model,
        train=dataclasses.replace(config.train, init_from=str(source)),
    )
    with manager.CheckpointManager(tmp_path / "run", started) as checkpoints:
        ema = jax.tree.map(lambda x: 2 * x, adapters_of(params))
        checkpoints.save(1, {"params": params, "ema": ema, "optimizer": {"x": jnp.ones(1)}}, {}, {})
    out = tmp_path / "exported"
    bagel.export_folder(tmp_path / "run", out, dtype="float32")
    key = "language_model.model.layers.1.mlp_moe_gen.down_proj.weight"
    with safetensors_io.Reader([out / "ema.safetensors"]) as reader:
        exported = reader.read(key).T

    def down(tree):
        tree = merge(jax.tree.map(lambda x: x.astype(jnp.float32), tree), LORA.scale)
        return tree["layers"]["gen"]["mlp"]["down"]["kernel"][1]

    np.testing.assert_allclose(exported, down(trees.overlay(params, ema)), rtol=1e-5, atol=1e-6)
    assert np.abs(exported - down(params)).max() > 0.1  # averaged adapters, not the plain ones
    assert np.abs(exported - down({**base})).max() > 0.1
