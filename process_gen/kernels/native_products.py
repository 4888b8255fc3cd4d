"""Products of few rows with matrices on all cores of a CPU, in C++ (`native_products.cc`)."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from process_gen.kernels.native_library import library

WHOLE = 16  # columns that a matrix has a multiple of


def few_rows(x_NxI: jax.Array, kernels: Sequence[jax.Array]) -> tuple[jax.Array, ...]:
    """``x @ kernel`` for each of the kernels ``float32[I, O]``, as one call; float32 ``[N, O]``.

    Raises:
      ConfigError: there is no C++ compiler, or it refuses the sources.
    """
    library()
    return _few_rows(x_NxI, tuple(kernels))


@jax.custom_vjp
def _few_rows(x: jax.Array, kernels: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    results = [jax.ShapeDtypeStruct((len(x), w.shape[1]), jnp.float32) for w in kernels]
    call = jax.ffi.ffi_call("few_rows_products", results, vmap_method="sequential")
    return tuple(call(x, *kernels))


def _forward(x: jax.Array, kernels: tuple[jax.Array, ...]) -> tuple[tuple, tuple]:
    return _few_rows(x, kernels), (x, kernels)


def _backward(kept: tuple, d_outs: tuple[jax.Array, ...]) -> tuple:
    x, kernels = kept
    dx = sum(d @ w.T for d, w in zip(d_outs, kernels, strict=True))
    return dx, tuple(x.T @ d for d in d_outs)


_few_rows.defvjp(_forward, _backward)
