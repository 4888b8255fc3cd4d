"""Tests of the update rule: groups, schedule, untouched weights, average."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from process_gen.core import axes
from process_gen.core.configs import OptimizerConfig
from process_gen.core.errors import ConfigError
from process_gen.train import optimizer

L, E, H, D, M, V, P = (
    axes.LAYERS, axes.EMBED, axes.HEADS, axes.HEAD_DIM, axes.MLP, axes.VOCAB, axes.PATCH,
)  # fmt: skip

EXPERT = {
    "attention": {
        "q": {"kernel": (L, E, H), "bias": (L, H)},
        "k": {"kernel": (L, E, axes.KV_HEADS, D), "bias": (L, axes.KV_HEADS, D)},
        "o": {"kernel": (L, H, D, E)},
        "q_norm": {"scale": (L, D)},
    },
    "mlp": {"up": {"kernel": (L, E, M)}, "down": {"kernel": (L, M, E)}},
    "input_norm": {"scale": (L, E)},
}
AXES = {
    "embed": {"table": (V, E)},
    "layers": {"und": EXPERT, "gen": EXPERT},
    "lm_head": {"kernel": (E, V)},
    "final_norm": {"und": {"scale": (E,)}},
    "latent_in": {"kernel": (P, E), "bias": (E,)},
    "und_encoder": {"layers": {"mlp": {"kernel": (L, E, M)}}},
}
SIZES = {L: 2, E: 6, H: 4, axes.KV_HEADS: 2, D: 4, M: 5, V: 7, P: 3}

# One line a weight: its group, and which dimensions Muon reads as rows and columns. A weight that
# moves here changes how it learns: update the list only when that is meant.
GOLDEN = """
embed/table adam
final_norm/und/scale adam
latent_in/bias adam
latent_in/kernel adam
layers/{expert}/attention/k/bias adam
layers/{expert}/attention/k/kernel muon (1,) (2, 3)
layers/{expert}/attention/o/kernel muon (1, 2) (3,)
layers/{expert}/attention/q/bias adam
layers/{expert}/attention/q/kernel muon (1,) (2,)
layers/{expert}/attention/q_norm/scale adam
layers/{expert}/input_norm/scale adam
layers/{expert}/mlp/down/kernel muon (1,) (2,)
layers/{expert}/mlp/up/kernel muon (1,) (2,)
lm_head/kernel adam
und_encoder/layers/mlp/kernel adam
"""


def weights(tree=AXES, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda names: jnp.asarray(rng.normal(size=[SIZES[n] for n in names]), jnp.float32),
        tree,
        is_leaf=lambda x: isinstance(x, tuple),
    )


def flat(tree, is_leaf=None):
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): value
        for path, value in jax.tree.leaves_with_path(tree, is_leaf=is_leaf)
    }


def test_muon_groups():
    dims = optimizer.muon_dimensions(AXES)
    leaf = lambda x: x is None or isinstance(x, optax.contrib.MuonDimensionNumbers)  # noqa: E731
    lines = []
    for name, value in flat(dims, leaf).items():
        tail = f"muon {value.reduction_axis} {value.output_axis}" if value else "adam"
        lines.append(f"{name} {tail}")
    want = []
    for line in GOLDEN.split("\n"):
        want += [line.replace("{expert}", e) for e in ("gen", "und")] if "{" in line else [line]
    assert sorted(lines) == sorted(line for line in want if line)


def test_muon_state_holds_one_moment_for_its_leaves_and_two_for_the_rest():
    config = OptimizerConfig(name="muon")
    tx, _ = optimizer.make_optimizer(config, AXES)
    state = tx.init(weights())
    mirrored = optimizer.map_param_like(
        jax.tree.map_with_path(
            lambda p, _: jax.tree_util.keystr(p, simple=True, separator="/"), weights()
        ),
        state,
        "",
    )
    counts = {}
    for name in jax.tree.leaves(mirrored):
        counts[name] = counts.get(name, 0) + 1
    assert counts["layers/gen/mlp/up/kernel"] == 1
    assert counts["embed/table"] == 2 and counts["layers/gen/attention/k/bias"] == 2


def test_layers_are_a_batch_of_matrices_for_muon():
    """Each layer's update is orthogonal on its own: singular values of 0.2 sqrt(max side)."""
    config = OptimizerConfig(name="muon", clip_norm=1e9)
    tree = {"layers": {"w": (L, E, M)}}
    params = weights(tree)
    tx, _ = optimizer.make_optimizer(config, tree)
    updates, _ = jax.jit(tx.update)(params, tx.init(params), params)
    for layer in range(SIZES[L]):
        singular = np.linalg.svd(updates["layers"]["w"][layer], compute_uv=False)
        np.testing.assert_allclose(singular / (0.2 * np.sqrt(SIZES[E])), 1.0, atol=0.45)
    # Partner: the layers cannot be told from one another if one leaks into the next.
    changed = {"layers": {"w": params["layers"]["w"].at[1].multiply(7.0)}}
    again, _ = jax.jit(tx.update)(changed, tx.init(params), params)
    np.testing.assert_allclose(again["layers"]["w"][0], updates["layers"]["w"][0], atol=1e-6)
    turned = {"layers": {"w": params["layers"]["w"].at[0].set(params["layers"]["w"][1])}}
    other, _ = jax.jit(tx.update)(turned, tx.init(params), params)
    assert np.abs(other["layers"]["w"][0] - updates["layers"]["w"][0]).max() > 0.1


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_weight_without_gradient_is_left_alone(name):
    config = OptimizerConfig(name=name, weight_decay=0.1)
    tx, _ = optimizer.make_optimizer(config, AXES)
    params, grads = weights(), weights(seed=1)
    step = jax.jit(tx.update)
    _, state = step(grads, tx.init(params), params)
    quiet = {**grads, "layers": {**grads["layers"]}}
    quiet["layers"]["gen"] = jax.tree.map(jnp.zeros_like, grads["layers"]["gen"])
    updates, after = step(quiet, state, params)

    for value in jax.tree.leaves(updates["layers"]["gen"]):
        assert not np.any(value)
    is_gen = jax.tree.map_with_path(lambda p, _: p[:2] == gen_path(), params)
    flags = optimizer.map_param_like(is_gen, state, None)
    seen = {True: 0, False: 0}
    for flag, old, new in zip(
        jax.tree.leaves(flags, is_leaf=lambda x: x is None),
        jax.tree.leaves(state),
        jax.tree.leaves(after),
        strict=True,
    ):
        if flag is not None:
            seen[flag] += 1
            assert np.array_equal(old, new) == flag
    assert min(seen.values()) > 5
    # Partner: without the wrapper momentum and decay do move the weights.
    for value in jax.tree.leaves(updates["layers"]["und"]):
        assert np.any(value)
    inner = optax.contrib.muon(1.0, muon_weight_dimension_numbers=optimizer.muon_dimensions(AXES))
    _, inner_state = jax.jit(inner.update)(grads, inner.init(params), params)
    moved, _ = jax.jit(inner.update)(quiet, inner_state, params)
    assert np.any(moved["layers"]["gen"]["mlp"]["up"]["kernel"])


def gen_path():
    return (jax.tree_util.DictKey("layers"), jax.tree_util.DictKey("gen"))


def test_weight_decay_is_decoupled_and_on_matrices_only():
    params = weights()
    grads = jax.tree.map(lambda p: jnp.full_like(p, 1e-3), params)
    run = lambda c: (lambda tx: jax.jit(tx.update)(grads, tx.init(params), params)[0])(  # noqa: E731
        optimizer.make_optimizer(c, AXES)[0]
    )
    config = OptimizerConfig()
    plain, decayed = run(config), run(dataclasses.replace(config, weight_decay=0.1))
    for name, difference in flat(jax.tree.map(jnp.subtract, decayed, plain)).items():
        weight = flat(params)[name]
        want = -0.1 * weight if name.endswith(("kernel", "table")) else 0.0 * weight
        np.testing.assert_allclose(difference, want, atol=1e-6, err_msg=name)


def test_clipping_bounds_the_global_norm():
    tree = {"w": (E, M)}
    params = weights(tree)
    sgd_like = OptimizerConfig(clip_norm=1e-9, eps=1.0)
    tx, _ = optimizer.make_optimizer(sgd_like, tree)
    updates, _ = jax.jit(tx.update)(params, tx.init(params), params)
    assert optax.tree.norm(updates) < 1e-8


@pytest.mark.parametrize(
    ("changes", "points"),
    [
        (dict(schedule="constant", warmup_steps=4), {0: 0.25, 3: 1.0, 50: 1.0, 99: 1.0}),
        (dict(schedule="constant", warmup_steps=0), {0: 1.0}),
        (dict(schedule="cosine", warmup_steps=0), {0: 1.0, 50: 0.5, 100: 0.0}),
        (dict(schedule="cosine", warmup_steps=0, final_scale=0.2), {50: 0.6, 100: 0.2}),
        (dict(schedule="linear", warmup_steps=10, decay_fraction=0.4), {60: 1.0, 80: 0.5, 100: 0}),
    ],
)
def test_schedule_shapes(changes, points):
    schedule = optimizer.make_schedule(OptimizerConfig(learning_rate=2.0, **changes))
    for step, factor in points.items():
        np.testing.assert_allclose(schedule(step, 100), 2.0 * factor, atol=1e-6)


def test_schedule_follows_a_traced_total():
    schedule = jax.jit(optimizer.make_schedule(OptimizerConfig(schedule="linear", warmup_steps=0)))
    rates = [float(schedule(jnp.int32(190), jnp.int32(total))) for total in (200, 400)]
    assert rates[0] < 0.2 * rates[1]


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_frozen_parts_have_no_update_and_no_moments(name):
    config = dataclasses.replace(OptimizerConfig(), name=name, frozen=("und_encoder", "embed"))
    tx, _ = optimizer.make_optimizer(config, AXES)
    params, grads = weights(), weights(seed=1)
    state = tx.init(params)
    updates, state = tx.update(grads, state, params)
    assert set(updates) == set(tx.trained) == set(AXES) - set(config.frozen)
    for u in jax.tree.leaves(updates):
        assert float(jnp.abs(u).max()) > 0
    everything, _ = optimizer.make_optimizer(dataclasses.replace(config, frozen=()), AXES)
    sizes = [sum(x.size for x in jax.tree.leaves(s)) for s in (state, everything.init(params))]
    frozen = [x.size for part in config.frozen for x in jax.tree.leaves(params[part])]
    assert sizes[1] - sizes[0] == 2 * sum(frozen)  # both moments
    # They count for nothing in the clipping either: a huge gradient there changes no update.
    huge = {**grads, "embed": jax.tree.map(lambda g: 1e6 * g, grads["embed"])}
    again, _ = tx.update(huge, tx.init(params), params)
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(updates), strict=True):
        np.testing.assert_array_equal(a, b)


def test_frozen_names_are_checked():
    with pytest.raises(ConfigError, match="'vit'; the model has embed, final_norm"):
        optimizer.make_optimizer(
            dataclasses.replace(OptimizerConfig(), frozen=("embed", "vit")), AXES
        )
    with pytest.raises(ConfigError, match="every part"):
        optimizer.make_optimizer(dataclasses.replace(OptimizerConfig(), frozen=tuple(AXES)), AXES)


def dtypes(state):
    return sorted(x.dtype.name for x in jax.tree.leaves(state) if x.ndim > 1)


@pytest.mark.parametrize("name", ["adamw", "muon", "adafactor"])
def test_moments_are_wide_whatever_the_weights_are(name):
    tree = {"layers": {"w": (L, E, M)}}
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), weights(tree))
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), half)
    rule, _ = optimizer.make_optimizer(OptimizerConfig(name=name), tree)
    state = rule.init(half)
    assert set(dtypes(state)) == {"float32"}
    updates, after = jax.jit(rule.update)(half, state, half)
    want, want_after = jax.jit(rule.update)(wide, rule.init(wide), wide)
    jax.tree.map(np.testing.assert_array_equal, (updates, after), (want, want_after))
    # Partner: optax alone takes the weights' type.
    assert dtypes(optax.adam(1.0).init(half)) == ["bfloat16", "bfloat16"]


@pytest.mark.parametrize(
    ("name", "second"), [("adamw", ["float32"]), ("muon", []), ("adafactor", ["float32"])]
)
def test_first_moments_may_be_of_16_bits(name, second):
    tree = {"layers": {"w": (L, E, M)}}
    params = weights(tree)
    config = OptimizerConfig(name=name, moment_dtype="bfloat16", b1=0.9)
    rule, _ = optimizer.make_optimizer(config, tree)
    state = rule.init(params)
    assert dtypes(state) == ["bfloat16", *second]
    step = jax.jit(rule.update)
    wide_rule, _ = optimizer.make_optimizer(
        dataclasses.replace(config, moment_dtype="float32"), tree
    )
    wide_state = wide_rule.init(params)
    for seed in range(3):
        grads = weights(tree, seed + 1)
        updates, state = step(grads, state, params)
        want, wide_state = wide_rule.update(grads, wide_state, params)
    assert dtypes(state) == ["bfloat16", *second]
    difference = jnp.abs(updates["layers"]["w"] - want["layers"]["w"]).max()
    assert 0 < difference < 0.05


def test_large_matrices_have_factored_second_moments():
    sizes = {L: 2, E: 256, M: 128}
    rng = np.random.default_rng(0)
    params = {"w": jnp.asarray(rng.normal(size=[sizes[n] for n in (L, E, M)]), jnp.float32)}
    config = OptimizerConfig(name="adafactor", b1=0.0, b2=1.0, clip_norm=1e9)
    rule, _ = optimizer.make_optimizer(config, {"w": (L, E, M)})
    reference = optax.adafactor(multiply_by_parameter_scale=False)
    state, theirs = rule.init(params), reference.init(params)
    count = sum(x.size for x in jax.tree.leaves(state))
    assert count == 2 * (256 + 128) + 2  # a row and a column a layer, a stand-in and a counter
    for _ in range(3):
        grads = {"w": jnp.asarray(rng.normal(size=params["w"].shape), jnp.float32)}
        updates, state = jax.jit(rule.update)(grads, state, params)
        want, theirs = jax.jit(reference.update)(grads, theirs, params)
        np.testing.assert_allclose(updates["w"], want["w"], rtol=1e-5, atol=1e-6)
    capped, _ = optimizer.make_optimizer(dataclasses.replace(config, b2=0.1), {"w": (L, E, M)})
    other, _ = jax.jit(capped.update)(grads, state, params)
    assert np.abs(other["w"] - want["w"]).max() > 1e-2
    momentum, _ = optimizer.make_optimizer(dataclasses.replace(config, b1=0.9), {"w": (L, E, M)})
    assert sum(x.size for x in jax.tree.leaves(momentum.init(params))) > params["w"].size
