"""Tokens times one or more matrices of weights on a CPU."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from process_gen.kernels.native_library import available
from process_gen.kernels.native_products import STRIP, multiply

FEWEST = 2  # rows, in C++ (docs/performance.md)
# By XLA: so many rows at most, and so many columns for each input at least, are taken apart.
FEW_ROWS, WIDE = 6, 4


def products(x_NxI: jax.Array, kernels: Sequence[jax.Array]) -> Sequence[jax.Array]:
    """``x @ kernel`` for each kernel, plain ``[I, O]`` or all in strips; ``[N, O]``.

    In C++ where it can be: XLA multiplies few rows on two cores hardly faster than on one, and
    many at 60 to 90 % of what the cores can do.
    """
    if kernels[0].ndim == 3 or in_cpp(x_NxI, kernels):
        return multiply(x_NxI, kernels)
    return [_product(x_NxI, kernel) for kernel in kernels]


def in_cpp(x_NxI: jax.Array, kernels: Sequence[jax.Array]) -> bool:
    """Whether `kernels.native_products` multiplies these."""
    plain = all(a.dtype == jnp.float32 for a in (x_NxI, *kernels))
    whole = all(w.shape[1] % STRIP == 0 for w in kernels)
    return len(x_NxI) >= FEWEST and plain and whole and available()


def _product(x_NxI: jax.Array, kernel_IxO: jax.Array) -> jax.Array:
    """``x @ kernel``, ``[N, O]``.

    For 2 to 6 rows XLA's product of all takes about twice as long as so many products of one row
    each (jax 0.10, `[2 or 6, 256] x [256, 1024]` on two cores).
    """
    rows, (inputs, outputs) = len(x_NxI), kernel_IxO.shape
    if 1 < rows <= FEW_ROWS and outputs >= WIDE * inputs:
        return jnp.concatenate([x_NxI[i : i + 1] @ kernel_IxO for i in range(rows)])
    return x_NxI @ kernel_IxO
