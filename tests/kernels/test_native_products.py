"""Products of few rows in C++ (`kernels.native_products`)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from process_gen.kernels.native_library import compiler
from process_gen.kernels.native_products import WHOLE, few_rows

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


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 6, 17, 64, 200])
@pytest.mark.parametrize(
    ("inputs", "outputs"),
    [(1, (16,)), (7, (48, 16)), (256, (96, 48)), (300, (80, 592))],
)
def test_equals_the_plain_products(rows, inputs, outputs):
    """All counts of rows of a tile, columns of a panel, and inputs that a copy holds or not."""
    x, kernels = arrays(rows, inputs, outputs)
    found, expected = jax.jit(few_rows)(x, kernels), [x @ w for w in kernels]
    assert [y.shape for y in found] == [(rows, n) for n in outputs]
    assert largest(found, expected) < 1e-5
    assert largest(found, [y + 0.01 for y in expected]) > 1e-3


def test_gradients_are_those_of_plain_products():
    x, kernels = arrays(9, 24, (16, 32))

    def gradients(products):
        def scalar(x, kernels):
            return sum(jnp.sum(jnp.sin(y)) for y in products(x, kernels))

        return jax.jit(jax.grad(scalar, argnums=(0, 1)))(x, kernels)

    expected = gradients(lambda x, kernels: [x @ w for w in kernels])
    assert largest(gradients(few_rows), expected) < 1e-5
    assert min(float(jnp.abs(g).max()) for g in jax.tree.leaves(expected)) > 0.1


def test_one_after_the_other_where_a_batch_is_mapped():
    x, (w,) = arrays(5, 16, (WHOLE,))
    many = jnp.stack([x, 2.0 * x, -x])
    found = jax.vmap(lambda x: few_rows(x, [w])[0])(many)
    assert largest(found, many @ w) < 1e-5


def test_a_row_is_the_same_bytes_among_others():
    """Sums are over the inputs in their order, whatever is painted beside."""
    x, kernels = arrays(66, 300, (64, 32))
    whole = few_rows(x, kernels)
    part = few_rows(x[:7], kernels)
    for a, b in zip(whole, part, strict=True):
        assert np.asarray(a[:7]).tobytes() == np.asarray(b).tobytes()
        assert np.asarray(a[1:8]).tobytes() != np.asarray(b).tobytes()
