"""Both halves of a layer in C++ (`kernels.native_layer`), beside the layer's own in JAX."""

from __future__ import annotations

import dataclasses
import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from process_gen.core.attention_mask import NEVER
from process_gen.core.batch import Place
from process_gen.core.configs import ModelConfig
from process_gen.core.model_config import LoraConfig
from process_gen.kernels.native_library import compiler
from process_gen.models import functional
from process_gen.models.transformer import Cache
from process_gen.models.unified import Streams
from process_gen.sampling.cache import make_pool
from tests.kernels.one_core import digest_of

pytestmark = pytest.mark.skipif(compiler() is None, reason="needs a C++ compiler")

MODEL = ModelConfig(
    width=32, mlp_width=336, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=24, vocab_size=48
)
SLOTS = 16


def drawn(model, seed=0):
    """Weights of which none is 0 or 1, as heads, norms and biases are at first."""
    params = jax.eval_shape(functional.build(model).init, jax.random.key(0))
    flat, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed), len(flat))
    draws = [0.3 * jax.random.normal(k, x.shape) for k, x in zip(keys, flat, strict=True)]
    return functional.apart(jax.tree.unflatten(tree, draws))


def streams(rows, text, latents, model=MODEL):
    """Texts and latents that see one another and a cache, with numbers of their own each."""
    rng = np.random.default_rng(rows + 100 * text + 10_000 * latents)

    def place(tokens):
        order = jnp.full((rows, tokens), 50, jnp.int32)
        position = jnp.asarray(rng.integers(0, 40, (rows, tokens)), jnp.int32)
        return Place(order, order, order, position)

    def numbers(*shape):
        return jnp.asarray(rng.normal(size=(rows, *shape)), jnp.float32)

    none = jnp.zeros((rows, 0), jnp.int32)
    return Streams(
        text=place(text),
        und=Place(none, none, none, none),
        gen=place(latents),
        token_BxT=jnp.asarray(rng.integers(0, model.vocab_size, (rows, text)), jnp.int32),
        patch_BxVxQ=numbers(0, model.und_features),
        patch_id_BxV=none,
        latent_BxGxP=numbers(latents, model.latent_features),
        latent_id_BxG=jnp.tile(jnp.arange(latents, dtype=jnp.int32), (rows, 1)),
        t_BxG=jnp.asarray(rng.random((rows, 1)), jnp.float32),
        patch_image_BxV=none,
    )


def cache(rows, model=MODEL):
    """Random earlier tokens, all of which are seen."""
    rng = np.random.default_rng(rows)
    pool = jax.tree.map(
        lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), make_pool(model, rows, SLOTS)
    )
    start = jnp.zeros((rows, SLOTS), jnp.int32)
    return Cache(*pool, start, jnp.full_like(start, NEVER - 1))


def forward(model, params, rows, text, latents):
    run = jax.jit(functional.build(model).forward)
    return run(params, streams(rows, text, latents, model), [cache(rows, model)])


def different(found, expected):
    """The largest difference of any result, of its own largest number."""
    parts = [(a, b) for a, b in zip(found, expected, strict=True) if b.size]
    return max(float(jnp.abs(a - b).max() / jnp.abs(b).max()) for a, b in parts)


@pytest.mark.parametrize(
    ("rows", "text", "latents"),
    [(1, 1, 0), (3, 4, 0), (1, 2, 16), (2, 0, 9), (5, 2, 16), (7, 20, 3), (30, 2, 16)],
)
def test_equals_the_layers_of_jax(rows, text, latents, monkeypatch):
    """Columns dealt to threads and rows, either stream empty, blocks that cross from row to row."""
    params = drawn(MODEL)
    found = forward(MODEL, functional.in_strips(params), rows, text, latents)
    monkeypatch.setattr("process_gen.models.layers.available", lambda: False)
    monkeypatch.setattr("process_gen.models.products.available", lambda: False)
    plain = dataclasses.replace(MODEL, attention="dense")
    expected = forward(plain, params, rows, text, latents)
    assert different(found, expected) < 2e-5
    assert different(forward(plain, drawn(MODEL, 1), rows, text, latents), expected) > 0.1


@pytest.mark.parametrize("changes", [{"qkv_bias": False}, {"head_dim": 16}, {"num_kv_heads": 4}])
def test_other_models(changes):
    model = dataclasses.replace(MODEL, **changes)
    params = drawn(model)
    found = forward(model, functional.in_strips(params), 4, 2, 16)
    assert different(found, forward(model, params, 4, 2, 16)) < 2e-5


def calls(model, params):
    given = (streams(2, 2, 16, model), [cache(2, model)])
    text = str(jax.make_jaxpr(functional.build(model).forward)(params, *given))
    return [text.count(name) for name in ("layer_before", "layer_after", "linear_outputs")]


def test_two_calls_a_layer_and_one_for_each_map_s_inputs_where_adapters_are():
    outside = 4  # two maps of the time, and latents in and out
    assert calls(MODEL, functional.in_strips(drawn(MODEL))) == [2, 2, outside]
    adapted = dataclasses.replace(MODEL, lora=LoraConfig(rank=2))
    params = drawn(adapted)
    inputs = 4  # of each expert: of q, k and v; of o; of gate and up; of down
    found = calls(adapted, functional.in_strips(params))
    assert found == [0, 0, outside + 2 * MODEL.num_layers * inputs]
    found = forward(adapted, functional.in_strips(params), 4, 2, 16)
    assert different(found, forward(adapted, params, 4, 2, 16)) < 2e-5


def test_a_row_is_the_same_bytes_among_others():
    """Whatever is painted beside it: sums are over the inputs in their order."""
    params, given = functional.in_strips(drawn(MODEL)), streams(40, 2, 16)
    run = jax.jit(functional.build(MODEL).forward)
    whole = run(params, given, [cache(40)])

    def some(tree, count):
        return jax.tree.map(lambda x: x[:count], tree)

    part = run(params, some(given, 8), [some(cache(40), 8)])
    assert np.array_equal(whole.output_BxGxP[:8], part.output_BxGxP)
    assert np.array_equal(whole.k_LxBxSxKxDh[:, :8], part.k_LxBxSxKxDh)
    assert not np.array_equal(whole.output_BxGxP[1:9], part.output_BxGxP)


def digest():
    out = forward(MODEL, functional.in_strips(drawn(MODEL)), 12, 2, 16)
    return hashlib.sha256(b"".join(np.asarray(x).tobytes() for x in out)).hexdigest()


def test_the_number_of_threads_changes_no_byte():
    assert digest_of(__name__) == digest()
