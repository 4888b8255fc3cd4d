"""Products of few rows, one at a time."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from process_gen.models.products import FEW_ROWS, WIDE, product


def _products(rows: int, inputs: int, outputs: int) -> int:
    x, kernel = jnp.ones((rows, inputs)), jnp.ones((inputs, outputs))
    return str(jax.make_jaxpr(product)(x, kernel)).count("dot_general")


@pytest.mark.parametrize("rows", [1, 2, FEW_ROWS, FEW_ROWS + 1])
def test_the_product_and_its_gradients_are_those_of_one(rows):
    x, kernel, towards = (
        jax.random.normal(jax.random.key(i), shape)
        for i, shape in enumerate([(rows, 8), (8, 8 * WIDE), (rows, 8 * WIDE)])
    )
    found, back = jax.vjp(product, x, kernel)
    np.testing.assert_allclose(found, x @ kernel, atol=1e-5)
    for own, plain in zip(back(towards), (towards @ kernel.T, x.T @ towards), strict=True):
        np.testing.assert_allclose(own, plain, atol=1e-5)
    assert float(jnp.abs(found - x[::-1] @ kernel).max()) > 0.1 or rows == 1  # order matters


def test_few_rows_and_wide_weights_are_taken_apart_and_no_others():
    assert _products(FEW_ROWS, 8, 8 * WIDE) == FEW_ROWS
    assert _products(FEW_ROWS + 1, 8, 8 * WIDE) == 1
    assert _products(FEW_ROWS, 8, 8 * WIDE - 1) == 1
    assert _products(1, 8, 8 * WIDE) == 1
