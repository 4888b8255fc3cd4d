"""Tokens times weights on a CPU: in C++, or by XLA a row at a time."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from process_gen.kernels.native_library import available
from process_gen.models import products as lib
from process_gen.models.products import FEW_ROWS, FEWEST, WIDE, products


@pytest.fixture
def by_xla(monkeypatch):
    monkeypatch.setattr(lib, "available", lambda: False)


def _counts(rows: int, inputs: int, outputs: int, dtype: str = "float32") -> tuple[int, int]:
    """Products of XLA, and calls of C++."""
    x, kernel = jnp.ones((rows, inputs), dtype), jnp.ones((inputs, outputs), dtype)
    text = str(jax.make_jaxpr(lambda x, w: products(x, [w]))(x, kernel))
    return text.count("dot_general"), text.count("ffi_call")


@pytest.mark.parametrize("rows", [1, 2, FEW_ROWS, FEW_ROWS + 1])
def test_the_product_and_its_gradients_are_those_of_one(rows, by_xla):
    x, kernel, towards = (
        jax.random.normal(jax.random.key(i), shape)
        for i, shape in enumerate([(rows, 8), (8, 8 * WIDE), (rows, 8 * WIDE)])
    )
    found, back = jax.vjp(lambda x, w: products(x, [w])[0], x, kernel)
    np.testing.assert_allclose(found, x @ kernel, atol=1e-5)
    for own, plain in zip(back(towards), (towards @ kernel.T, x.T @ towards), strict=True):
        np.testing.assert_allclose(own, plain, atol=1e-5)
    assert float(jnp.abs(found - x[::-1] @ kernel).max()) > 0.1 or rows == 1  # order matters


def test_few_rows_and_wide_weights_are_taken_apart_and_no_others(by_xla):
    assert _counts(FEW_ROWS, 8, 8 * WIDE) == (FEW_ROWS, 0)
    assert _counts(FEW_ROWS + 1, 8, 8 * WIDE) == (1, 0)
    assert _counts(FEW_ROWS, 8, 8 * WIDE - 1) == (1, 0)
    assert _counts(1, 8, 8 * WIDE) == (1, 0)


@pytest.mark.skipif(not available(), reason="needs a C++ compiler")
def test_in_cpp_where_it_pays():
    for rows in (FEWEST, 1000):
        assert _counts(rows, 8, 32) == (0, 1)
    assert _counts(FEWEST - 1, 8, 32) == (1, 0)
    assert _counts(64, 8, 24) == (1, 0)  # no whole vectors
    assert _counts(64, 8, 32, "bfloat16") == (1, 0)
