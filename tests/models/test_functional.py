from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from process_gen.core import axes
from process_gen.core.configs import ModelConfig
from process_gen.models import functional, image_codecs
from process_gen.models.layers import Linear, RMSNorm, rotary, rotate, sincos_table, time_features
from process_gen.models.shapes import vae_shapes

TINY = ModelConfig(
    width=16, mlp_width=32, num_layers=3, num_heads=2, num_kv_heads=1, head_dim=8, vocab_size=32
)


def leaves(tree):
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in flat}


@pytest.fixture(scope="module")
def fns():
    return functional.build(TINY)


@pytest.fixture(scope="module")
def params(fns):
    return jax.jit(fns.init)(jax.random.key(0))


def test_a_model_is_built_in_any_thread():
    """flax keeps some settings for each thread by itself."""
    flux = dataclasses.replace(TINY, codec="flux", codec_channels=16, patch=2)

    def build():
        picture = jax.ShapeDtypeStruct((1, 4, 16 * 4), jnp.float32)
        vae = vae_shapes(flux.vae)
        jax.eval_shape(lambda v, x: image_codecs.build(flux).decode(v, x, 2, 2), vae, picture)
        return jax.eval_shape(functional.build(flux).init, jax.random.key(0))

    with ThreadPoolExecutor(1) as thread:
        elsewhere = thread.submit(build).result()
    assert jax.tree.structure(elsewhere) == jax.tree.structure(build())


def test_layers_are_stacked_and_drawn_apart(params):
    kernel = params["layers"]["und"]["attention"]["q"]["kernel"]
    assert kernel.shape == (3, 16, 16)
    assert not np.allclose(kernel[0], kernel[1])
    assert not np.allclose(kernel, params["layers"]["gen"]["attention"]["q"]["kernel"])
    assert np.std(kernel) == pytest.approx(16**-0.5, rel=0.1)


def test_another_key_gives_other_weights(fns, params):
    other = jax.jit(fns.init)(jax.random.key(1))
    same = jax.jit(fns.init)(jax.random.key(0))
    assert all(map(np.array_equal, jax.tree.leaves(params), jax.tree.leaves(same)))
    assert not np.array_equal(params["embed"]["table"], other["embed"]["table"])


def test_every_weight_names_every_axis(fns, params):
    flat_names = jax.tree.leaves(fns.logical_axes, is_leaf=lambda x: isinstance(x, tuple))
    for (where, leaf), own in zip(leaves(params).items(), flat_names, strict=True):
        assert len(own) == leaf.ndim, where
        assert set(own) <= set(axes.LOGICAL_AXES), where
        assert (own[0] == axes.LAYERS) == where.startswith("layers"), where


def test_parameters_that_do_not_fit_are_refused(fns, params):
    hidden = jnp.zeros((1, 16))
    assert fns.logits(params, hidden).shape == (1, 32)
    missing = {k: v for k, v in params.items() if k != "time_in"}
    with pytest.raises(ValueError, match="missing .*time_in"):
        fns.logits(missing, hidden)
    with pytest.raises(ValueError, match="unknown .*extra"):
        fns.logits({**params, "extra": hidden}, hidden)
    with pytest.raises(ValueError, match=r"lm_head/kernel is \(2, 2\)"):
        fns.logits({**params, "lm_head": {"kernel": jnp.zeros((2, 2))}}, hidden)


def test_strokes_tiny_has_about_a_million_weights():
    shapes = jax.eval_shape(functional.build(ModelConfig()).init, jax.random.key(0))
    assert 0.9e6 < sum(leaf.size for leaf in jax.tree.leaves(shapes)) < 1.1e6


# ---- layers --------------------------------------------------------------------------------------


def test_rms_norm_by_hand():
    norm = RMSNorm(4, name=axes.EMBED, eps=1e-6)
    x = np.array([[1.0, -2.0, 3.0, 4.0]], np.float32)
    wanted = x / np.sqrt(np.mean(x**2) + 1e-6)
    np.testing.assert_allclose(norm(jnp.asarray(x)), wanted, rtol=1e-6)
    assert not np.allclose(norm(jnp.asarray(x)), x / np.std(x))
    assert norm(jnp.asarray(x, jnp.bfloat16)).dtype == jnp.bfloat16


def test_linear_keeps_leading_axes_and_type():
    from flax import nnx

    linear = Linear(4, 6, names=(axes.EMBED, axes.MLP), rngs=nnx.Rngs(0), bias=True)
    linear.bias[...] = jnp.arange(6.0)
    x = jax.random.normal(jax.random.key(0), (2, 3, 4))
    wanted = np.einsum("abi,io->abo", x, linear.kernel[...]) + np.arange(6.0)
    np.testing.assert_allclose(linear(x), wanted, rtol=1e-5, atol=1e-6)
    assert linear(x.astype(jnp.bfloat16)).dtype == jnp.bfloat16


def test_rotary_scores_depend_on_distance_only():
    key_q, key_k = jax.random.split(jax.random.key(0))
    q, k = jax.random.normal(key_q, (1, 1, 1, 8)), jax.random.normal(key_k, (1, 1, 1, 8))

    def score(at_q, at_k):
        turned = [rotate(x, *rotary(jnp.array([[at]]), 8, 1e4)) for x, at in ((q, at_q), (k, at_k))]
        return float(jnp.sum(turned[0] * turned[1]))

    assert score(3, 1) == pytest.approx(score(40, 38), abs=1e-4)
    assert abs(score(3, 1) - score(3, 2)) > 1e-3
    assert score(5, 5) == pytest.approx(float(jnp.sum(q * k)), abs=1e-5)


def test_sincos_table_counts_columns_first():
    table = sincos_table(4, 8)
    row, column = 2, 3
    frequency = 1e4 ** (-np.arange(2) / 2)
    wanted = np.concatenate([f(x * frequency) for x in (column, row) for f in (np.sin, np.cos)])
    np.testing.assert_allclose(table[row * 4 + column], wanted, rtol=1e-6)
    assert not np.allclose(table[row * 4 + column], table[column * 4 + row])


def test_time_features_are_cosines_then_sines():
    features = np.asarray(time_features(jnp.array([0.0, 0.5]), 6))
    np.testing.assert_allclose(features[0], [1, 1, 1, 0, 0, 0])
    frequency = 1e4 ** (-np.arange(3) / 3)
    np.testing.assert_allclose(features[1, 3:], np.sin(0.5 * frequency), rtol=1e-5)


def test_layers_are_set_apart_with_and_without_the_stack(params):
    kept = functional.apart(params)
    own = jax.tree.map(jnp.copy, params)
    spent = functional.apart(own, spend=True)
    assert all(np.array_equal(*x) for x in zip(*map(jax.tree.leaves, (kept, spent)), strict=True))
    assert len(kept["layers"]) == TINY.num_layers
    assert all(x.is_deleted() for x in jax.tree.leaves(own["layers"]))
    assert not any(x.is_deleted() for x in jax.tree.leaves((params, own["embed"])))


WHOLE = dataclasses.replace(TINY, num_kv_heads=2)  # all kernels have whole strips


@pytest.fixture(scope="module")
def layers_apart():
    return functional.apart(jax.jit(functional.build(WHOLE).init)(jax.random.key(0)))


def in_strips(params):
    """Names of kernels that are."""
    flat = leaves({**params, "layers": params["layers"][0]})
    return {where for where, leaf in flat.items() if where.endswith("kernel") and leaf.ndim == 3}


def test_kernels_in_strips_and_back(layers_apart):
    strips = functional.in_strips(layers_apart)
    kernel = strips["layers"][1]["gen"]["mlp"]["up"]["kernel"]
    plain = layers_apart["layers"][1]["gen"]["mlp"]["up"]["kernel"]
    assert np.array_equal(kernel, np.stack([plain[:, :16], plain[:, 16:]]))
    names = {"und_encoder/patch_in/kernel", "embed/table", "layers/gen/post_norm/scale"}
    assert len(in_strips(strips)) == 14 + 5 and not names & in_strips(strips)
    back, stacked = (functional.together(tree) for tree in (strips, layers_apart))
    assert jax.tree.structure(back) == jax.tree.structure(stacked)
    assert all(map(np.array_equal, jax.tree.leaves(back), jax.tree.leaves(stacked)))


def test_layers_with_a_kernel_of_no_whole_strips_stay_as_they_are(params):
    """Keys of TINY have 8 columns."""
    found = in_strips(functional.in_strips(functional.apart(params)))
    assert found == {
        f"{n}/kernel" for n in ("lm_head", "latent_in", "latent_out", "time_in", "time_out")
    }


def test_kernels_that_are_spent_are_deleted(layers_apart):
    own = jax.tree.map(jnp.copy, layers_apart)
    spent = functional.in_strips(own, spend=True)
    for where, leaf in leaves({**own, "layers": own["layers"][0]}).items():
        kept = leaves({**spent, "layers": spent["layers"][0]})[where]
        assert leaf.is_deleted() == (kept.ndim == 3), where


def test_kernels_in_strips_that_do_not_fit_are_refused(layers_apart):
    fns, strips = functional.build(WHOLE), functional.in_strips(layers_apart)
    wrong = {**strips, "lm_head": {"kernel": strips["lm_head"]["kernel"][:1]}}
    with pytest.raises(
        ValueError, match=r"lm_head/kernel is \(1, 16, 16\), expected \(2, 16, 16\)"
    ):
        fns.logits(wrong, jnp.zeros((2, 16)))
