"""Few tokens times wide weights on a CPU, a row at a time."""

from __future__ import annotations

import jax
import jax.numpy as jnp

# So many rows at most, and so many columns for each input at least.
FEW_ROWS, WIDE = 6, 4


def product(x_NxI: jax.Array, kernel_IxO: jax.Array) -> jax.Array:
    """``x @ kernel``, ``[N, O]``.

    A product of one row reads wide weights as fast as memory gives them, one of 2 to 6 rows takes
    two to four times as long as one row (jax 0.10, docs/performance.md).
    """
    rows, (inputs, outputs) = len(x_NxI), kernel_IxO.shape
    if 1 < rows <= FEW_ROWS and outputs >= WIDE * inputs:
        return jnp.concatenate([x_NxI[i : i + 1] @ kernel_IxO for i in range(rows)])
    return x_NxI @ kernel_IxO
