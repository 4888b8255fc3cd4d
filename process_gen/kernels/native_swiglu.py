"""The gated MLP on all cores of a CPU, forward and backward, in C++ (`native_swiglu.cc`)."""

from __future__ import annotations

import jax
from jax.ad_checkpoint import checkpoint_name

from process_gen.kernels.native_library import library
from process_gen.kernels.native_products import MULTIPLIED, call, floats


def swiglu(
    x_NxD: jax.Array, gate_DxF: jax.Array, up_DxF: jax.Array, down_FxD: jax.Array
) -> jax.Array:
    """``(silu(x gate) * (x up)) down``, all float32; D and F are multiples of 16.

    Raises:
      ConfigError: there is no C++ compiler, or it refuses the sources.
    """
    library()
    return _swiglu(x_NxD, gate_DxF, up_DxF, down_FxD)


@jax.custom_vjp
def _swiglu(x: jax.Array, *weights: jax.Array) -> jax.Array:
    return call("swiglu_forward", [floats(*x.shape)])(x, *weights)[0]


def _forward(x: jax.Array, *weights: jax.Array) -> tuple[jax.Array, tuple]:
    hidden = floats(len(x), weights[0].shape[1])
    saved = call("swiglu_forward", [floats(*x.shape), hidden, hidden])(x, *weights)
    y, gate, up = (checkpoint_name(array, MULTIPLIED) for array in saved)
    return y, (x, gate, up, weights)


def _backward(kept: tuple, dy: jax.Array) -> tuple[jax.Array, ...]:
    x, gate, up, weights = kept
    results = [floats(*a.shape) for a in (x, gate, up, gate)]
    dx, d_gate, d_up, hidden = call("swiglu_backward", results)(dy, gate, up, *weights)
    into, outof = [floats(*w.shape) for w in weights[:2]], [floats(*weights[2].shape)]
    return (
        dx,
        *call("linear_weight_gradients", into)(x, d_gate, d_up),
        *call("linear_weight_gradients", outof)(hidden, dy),
    )


_swiglu.defvjp(_forward, _backward)
