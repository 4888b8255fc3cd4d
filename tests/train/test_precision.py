"""Tests of stochastic rounding."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from process_gen.train.precision import store

HALF = {"w": jnp.zeros(2**14, jnp.bfloat16)}


def test_the_expected_value_is_exact():
    for value in (1.0 + 2.0**-10, -3.0 - 0.001, 1e-30):
        wide = {"w": jnp.full(2**14, value, jnp.float32)}
        rounded = np.asarray(store(wide, HALF, jax.random.key(0))["w"], np.float64)
        assert len(set(rounded.tolist())) == 2  # its two neighbours
        unit = abs(np.diff(sorted(set(rounded.tolist())))[0])
        assert abs(rounded.mean() - np.float32(value)) < 0.02 * unit
        # Partner: to the nearest, all of them err by the same amount.
        nearest = np.asarray(wide["w"].astype(jnp.bfloat16), np.float64)
        assert abs(nearest.mean() - np.float32(value)) > 0.02 * unit


def test_values_of_the_type_and_what_is_not_finite_stay():
    values = jnp.asarray([0.0, -1.5, 3e38, jnp.inf, -jnp.inf], jnp.float32)
    exact = jnp.asarray(values.astype(jnp.bfloat16), jnp.float32)
    kept = store({"w": exact}, {"w": exact.astype(jnp.bfloat16)}, jax.random.key(1))["w"]
    np.testing.assert_array_equal(np.asarray(kept, np.float32), exact)
    nans = jax.lax.bitcast_convert_type(jnp.full(64, 0x7FFFFFFF, jnp.uint32), jnp.float32)
    half = {"w": jnp.zeros(64, jnp.bfloat16)}
    assert np.all(
        np.isnan(np.asarray(store({"w": nans}, half, jax.random.key(1))["w"], np.float32))
    )


def test_float32_stays_bit_for_bit_and_other_types_are_refused():
    wide = {"w": jnp.asarray([1.0 + 2.0**-20])}
    assert store(wide, wide, jax.random.key(0))["w"] is wide["w"]
    with pytest.raises(ValueError, match="float16"):
        store(wide, {"w": jnp.zeros(1, jnp.float16)}, jax.random.key(0))


def test_the_key_decides():
    wide = {"w": jnp.full(2**14, 1.003, jnp.float32), "x": jnp.full(2**14, 1.003, jnp.float32)}
    like = {**HALF, "x": HALF["w"]}
    one, two = (store(wide, like, jax.random.key(k)) for k in (0, 1))
    np.testing.assert_array_equal(one["w"], store(wide, like, jax.random.key(0))["w"])
    assert np.any(one["w"] != two["w"])
    assert np.any(one["w"] != one["x"])  # every leaf has its own numbers
