"""Products of tokens with matrices on all cores of a CPU, in C++ (`native_products.cc`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from process_gen.kernels.native_library import library

STRIP = 16  # columns; an output has a multiple of them
MULTIPLIED = "multiplied"  # the name of what rematerialisation keeps where it keeps products


def multiply(x_NxI: jax.Array, kernels: Sequence[jax.Array]) -> tuple[jax.Array, ...]:
    """``x @ kernel`` for each of the kernels ``float32[I, O]``, as one call; float32 ``[N, O]``.

    Where there is no gradient to be had, kernels may be `in_strips`.

    Raises:
      ConfigError: there is no C++ compiler, or it refuses the sources.
    """
    library()
    return _multiply(x_NxI, tuple(kernels))


def in_strips(kernel_IxO: jax.Array) -> jax.Array:
    """``[O / 16, I, 16]``, as the products of few rows want to read it."""
    inputs, outputs = kernel_IxO.shape
    return kernel_IxO.reshape(inputs, outputs // STRIP, STRIP).swapaxes(0, 1)


def out_of_strips(strips: jax.Array) -> jax.Array:
    """The inverse of `in_strips`."""
    return strips.swapaxes(0, 1).reshape(strips.shape[1], -1)


def outputs(kernel: jax.Array) -> int:
    """Columns of a kernel, plain or in strips."""
    return kernel.shape[1] if kernel.ndim == 2 else STRIP * len(kernel)


@jax.custom_vjp
def _multiply(x: jax.Array, kernels: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    results = [floats(len(x), outputs(w)) for w in kernels]
    return tuple(call("linear_outputs", results)(x, *kernels))


def _forward(x: jax.Array, kernels: tuple[jax.Array, ...]) -> tuple[tuple, tuple]:
    outs = tuple(checkpoint_name(y, MULTIPLIED) for y in _multiply(x, kernels))
    return outs, (x, kernels)


def _backward(kept: tuple, d_outs: tuple[jax.Array, ...]) -> tuple:
    x, kernels = kept
    if x.shape[1] % STRIP:
        dx = sum(d @ w.T for d, w in zip(d_outs, kernels, strict=True))
    else:
        dx = call("linear_input_gradient", [floats(*x.shape)])(*d_outs, *kernels)[0]
    weights = [floats(*w.shape) for w in kernels]
    return dx, tuple(call("linear_weight_gradients", weights)(x, *d_outs))


def call(name: str, results: Sequence[jax.ShapeDtypeStruct]) -> Callable[..., Sequence]:
    """What calls the C++ function of this name; rows that are mapped over one after the other."""
    return jax.ffi.ffi_call(name, results, vmap_method="sequential")


def floats(*shape: int) -> jax.ShapeDtypeStruct:
    """A result of it, float32."""
    return jax.ShapeDtypeStruct(shape, jnp.float32)


_multiply.defvjp(_forward, _backward)
