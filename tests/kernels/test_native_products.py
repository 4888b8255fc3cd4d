"""Products with matrices, their gradients and the gated MLP in C++ (`kernels.native_*`)."""

from __future__ import annotations

import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from process_gen.kernels.native_library import compiler
from process_gen.kernels.native_products import (
    MULTIPLIED,
    STRIP,
    in_strips,
    multiply,
    out_of_strips,
)
from process_gen.kernels.native_swiglu import swiglu
from tests.kernels.one_core import digest_of

pytestmark = pytest.mark.skipif(compiler() is None, reason="needs a C++ compiler")


def arrays(rows, inputs, outputs):
    keys = jax.random.split(jax.random.key(rows * inputs), len(outputs) + 1)
    x = jax.random.normal(keys[0], (rows, inputs))
    return x, [
        jax.random.normal(key, (inputs, n)) / inputs**0.5
        for key, n in zip(keys[1:], outputs, strict=True)
    ]


def largest(found, expected):
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    return max(float(np.abs(np.asarray(a) - np.asarray(b)).max()) for a, b in pairs)


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 6, 17, 64, 257, 400])
@pytest.mark.parametrize(
    ("inputs", "outputs"),
    [(1, (16,)), (7, (48, 16)), (256, (96, 48)), (300, (80, 592))],
)
def test_equals_the_plain_products(rows, inputs, outputs):
    """All counts of rows of a tile, columns of a panel, and inputs that a copy holds or not."""
    x, kernels = arrays(rows, inputs, outputs)
    found, expected = jax.jit(multiply)(x, kernels), [x @ w for w in kernels]
    assert [y.shape for y in found] == [(rows, n) for n in outputs]
    assert largest(found, expected) < 1e-5
    assert largest(found, [y + 0.01 for y in expected]) > 1e-3


def test_strips_are_columns_sixteen_at_a_time():
    kernel = jnp.arange(3 * 48.0).reshape(3, 48)
    strips = in_strips(kernel)
    assert strips.shape == (3, 3, STRIP)
    assert np.array_equal(strips[2], kernel[:, 32:]) and np.array_equal(
        out_of_strips(strips), kernel
    )


@pytest.mark.parametrize("rows", [1, 2, 7, 15, 16, 64, 401])
@pytest.mark.parametrize(("inputs", "outputs"), [(1, (16,)), (300, (80, 592)), (40, (1040,))])
def test_kernels_in_strips_give_the_same_bytes(rows, inputs, outputs):
    """Columns that are dealt to threads or rows, and more inputs than a tile takes at once."""
    x, kernels = arrays(rows, inputs, outputs)
    found = jax.jit(multiply)(x, [in_strips(w) for w in kernels])
    expected = jax.jit(multiply)(x, kernels)
    assert [y.shape for y in found] == [(rows, n) for n in outputs]
    for own, other in zip(found, expected, strict=True):
        assert np.asarray(own).tobytes() == np.asarray(other).tobytes()
    swapped = multiply(x, [in_strips(w)[::-1] for w in kernels])
    assert largest(swapped, expected) > 1e-2 or outputs == (STRIP,)


@pytest.mark.parametrize(
    ("rows", "inputs", "outputs"),
    [(9, 32, (16, 32)), (9, 24, (16, 32)), (300, 48, (96, 16)), (1100, 64, (2048,))],
)
def test_gradients_are_those_of_plain_products(rows, inputs, outputs):
    """Inputs that are whole strips or not, blocks of rows, and more than is copied at a time."""
    x, kernels = arrays(rows, inputs, outputs)

    def gradients(products):
        def scalar(x, kernels):
            return sum(jnp.sum(jnp.sin(y)) for y in products(x, kernels))

        return jax.jit(jax.grad(scalar, argnums=(0, 1)))(x, kernels)

    found, expected = gradients(multiply), gradients(lambda x, kernels: [x @ w for w in kernels])
    for own, plain in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(own, plain, atol=1e-5 * float(jnp.abs(plain).max()))
        assert float(jnp.abs(own - plain[::-1]).max()) > 0.1


def test_only_what_is_wanted_is_computed():
    """Of a map whose inputs have no gradient, as of the first one of a model."""
    x, kernels = arrays(300, 32, (16,))

    def of_weights(kernels):
        return jnp.sum(multiply(x, kernels)[0] ** 2)

    text = jax.jit(jax.grad(of_weights)).lower(kernels).compile().as_text()
    assert "linear_weight_gradients" in text and "linear_input_gradient" not in text


def mlp(rows, width, hidden):
    x, (gate, up) = arrays(rows, width, (hidden, hidden))
    return x, 2.0 * gate, up, arrays(3, hidden, (width,))[1][0]


def plain_mlp(x, gate, up, down):
    return (jax.nn.silu(x @ gate) * (x @ up)) @ down


@pytest.mark.parametrize(
    ("rows", "width", "hidden"),
    [(1, 16, 16), (7, 32, 48), (256, 96, 384), (257, 16, 4096), (700, 512, 1040)],
)
def test_the_gated_mlp_and_its_gradients(rows, width, hidden):
    """One row, blocks of rows, and hidden columns in one part or in several."""
    given = mlp(rows, width, hidden)
    towards = jnp.cos(jnp.arange(rows * width, dtype=jnp.float32)).reshape(rows, width)

    def both(function):
        return jax.jit(lambda *args: (function(*args), *jax.vjp(function, *args)[1](towards)))

    expected = both(plain_mlp)(*given)
    for own, plain in zip(both(swiglu)(*given), expected, strict=True):
        np.testing.assert_allclose(own, plain, atol=1e-5 * float(jnp.abs(plain).max()))
    turned = both(plain_mlp)(given[0], given[2], given[1], given[3])  # the gate is not the other
    assert largest(turned, expected) > 1e-2


@pytest.mark.parametrize("rows", [5, 300])
def test_gates_far_from_zero(rows):
    """Where the exponential of one is no float32."""
    x = jnp.linspace(-300.0, 300.0, rows * 16, dtype=jnp.float32).reshape(rows, 16)
    given = (x, jnp.eye(16), jnp.eye(16), jnp.eye(16))
    np.testing.assert_allclose(swiglu(*given), plain_mlp(*given), rtol=1e-5, atol=1e-6)
    lost = swiglu(x.at[2, 3].set(jnp.nan), *given[1:])
    assert bool(jnp.isnan(lost[2]).all()) and not bool(jnp.isnan(lost[3]).any())


def test_what_is_kept_for_the_way_back_has_a_name(capsys):
    """So that a model that rematerialises can keep products and nothing else."""
    given = mlp(300, 32, 48)

    def kept(policy):
        jax.ad_checkpoint.print_saved_residuals(jax.checkpoint(swiglu, policy=policy), *given)
        return capsys.readouterr().out.count("f32[300,48] named 'multiplied'")

    policies = jax.checkpoint_policies
    assert kept(policies.save_only_these_names(MULTIPLIED)) == 2
    assert kept(policies.nothing_saveable) == 0


def test_one_after_the_other_where_a_batch_is_mapped():
    x, (w,) = arrays(5, 16, (STRIP,))
    many = jnp.stack([x, 2.0 * x, -x])
    found = jax.vmap(lambda x: multiply(x, [w])[0])(many)
    assert largest(found, many @ w) < 1e-5


@pytest.mark.parametrize("rows", [66, 400])
def test_a_row_is_the_same_bytes_among_others(rows):
    """Sums are over the inputs in their order, whatever is painted beside."""
    x, kernels = arrays(rows, 300, (64, 32))
    whole = multiply(x, kernels)
    part = multiply(x[:7], kernels)
    for a, b in zip(whole, part, strict=True):
        assert np.asarray(a[:7]).tobytes() == np.asarray(b).tobytes()
        assert np.asarray(a[1:8]).tobytes() != np.asarray(b).tobytes()


def digest():
    """Of a gated MLP and its gradients."""
    random = np.random.default_rng(0)
    shapes = ((500, 96), (96, 384), (96, 384), (384, 96), (500, 96))
    *given, towards = (random.normal(size=shape).astype(np.float32) for shape in shapes)
    y, back = jax.vjp(swiglu, *given)
    results = (y, *back(towards))
    return hashlib.sha256(b"".join(np.asarray(x).tobytes() for x in results)).hexdigest()


def test_the_number_of_threads_changes_no_byte():
    assert digest_of(__name__) == digest()
