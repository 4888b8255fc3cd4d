"""RMSNorm on all cores of a CPU, and the rotation of heads after it, in C++ (`native_norm.cc`)."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from process_gen.kernels.native_library import library
from process_gen.kernels.native_products import call, floats

Turn = tuple[jax.Array, jax.Array]  # cosines and sines of `layers.rotary`


def norm(x_NxHxD: jax.Array, scale_D: jax.Array, eps: float, turn: Turn | None = None) -> jax.Array:
    """``scale * x / rms(x)`` over the last axis, then `layers.rotate` where there is a turn.

    Args:
      x_NxHxD, scale_D: float32.
      eps: added to the mean of the squares.
      turn: float32 ``[N, D / 2]`` both; they get no gradient.

    Raises:
      ConfigError: there is no C++ compiler, or it refuses the sources.
    """
    library()
    nothing = jnp.zeros((len(x_NxHxD), 0))
    return _norm(eps, x_NxHxD, scale_D, *(turn or (nothing, nothing)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _norm(eps: float, *arrays: jax.Array) -> jax.Array:
    return call("norm_forward", [floats(*arrays[0].shape)])(*arrays, eps=np.float32(eps))[0]


def _forward(eps: float, *arrays: jax.Array) -> tuple[jax.Array, tuple]:
    return _norm(eps, *arrays), arrays


def _backward(eps: float, kept: tuple, dy: jax.Array) -> tuple:
    results = [floats(*array.shape) for array in kept[:2]]
    return (*call("norm_backward", results)(*kept, dy, eps=np.float32(eps)), None, None)


_norm.defvjp(_forward, _backward)
