"""Few tokens times one or more matrices of weights on a CPU."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from process_gen.kernels.native_library import available
from process_gen.kernels.native_products import WHOLE, few_rows

# In C++: rows at least, and at most (docs/performance.md).
FEWEST, MOST = 2, 256
# By XLA: so many rows at most, and so many columns for each input at least, are taken apart.
FEW_ROWS, WIDE = 6, 4


def products(x_NxI: jax.Array, kernels: Sequence[jax.Array]) -> Sequence[jax.Array]:
    """``x @ kernel`` for each kernel, ``[N, O]``.

    XLA multiplies a row on one core, and few rows on two hardly faster.
    """
    plain = all(a.dtype == jnp.float32 for a in (x_NxI, *kernels))
    whole = all(w.shape[1] % WHOLE == 0 for w in kernels)
    if FEWEST <= len(x_NxI) <= MOST and plain and whole and available():
        return few_rows(x_NxI, kernels)
    return [_product(x_NxI, kernel) for kernel in kernels]


def _product(x_NxI: jax.Array, kernel_IxO: jax.Array) -> jax.Array:
    """``x @ kernel``, ``[N, O]``.

    For 2 to 6 rows XLA's product of all takes about twice as long as so many products of one row
    each (jax 0.10, `[2 or 6, 256] x [256, 1024]` on two cores).
    """
    rows, (inputs, outputs) = len(x_NxI), kernel_IxO.shape
    if 1 < rows <= FEW_ROWS and outputs >= WIDE * inputs:
        return jnp.concatenate([x_NxI[i : i + 1] @ kernel_IxO for i in range(rows)])
    return x_NxI @ kernel_IxO
