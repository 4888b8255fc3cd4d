from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from process_gen.losses.flow import velocity_error


def test_by_hand():
    velocity = jnp.asarray([[[1.0, 2.0], [0.0, 0.0]]])
    target = jnp.asarray([[[1.0, 4.0], [3.0, 4.0]]])
    np.testing.assert_allclose(velocity_error(velocity, target), [[2.0, 12.5]])
    assert float(velocity_error(velocity, velocity).max()) == 0.0


def test_float32_whatever_comes_in():
    velocity = jnp.full((1, 1, 4096), 1.0, jnp.bfloat16)
    error = velocity_error(velocity, velocity * 0)
    assert error.dtype == jnp.float32 and float(error[0, 0]) == 1.0
