"""Matrix products of two blocks inside of a kernel, in float32; those of float32 are exact ones."""

from __future__ import annotations

import jax
import jax.numpy as jnp

ROWS, COLUMNS = 0, 1


def transposed(a: jax.Array, b: jax.Array) -> jax.Array:
    """``a b^T``."""
    return _dot(a, b, (COLUMNS, COLUMNS))


def product(a: jax.Array, b: jax.Array) -> jax.Array:
    """``a b``."""
    return _dot(a, b, (COLUMNS, ROWS))


def _dot(a: jax.Array, b: jax.Array, contract: tuple[int, int]) -> jax.Array:
    exact = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else jax.lax.Precision.DEFAULT
    return jax.lax.dot_general(
        a,
        b,
        (((contract[0],), (contract[1],)), ((), ())),
        precision=exact,
        preferred_element_type=jnp.float32,
    )
