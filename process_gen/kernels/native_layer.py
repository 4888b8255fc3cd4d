"""A layer's two halves for painting on a CPU, of both experts at once, in C++ (`native_layer.cc`).

Weights lie in strips of 16 columns, ``[O / 16, I, 16]``; all is float32, nothing has a gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from process_gen.kernels.native_library import library
from process_gen.kernels.native_norm import Turn
from process_gen.kernels.native_products import STRIP, call, floats


class Before(NamedTuple):
    """One expert's weights before the attention.

    Attributes:
      scale_D: of the norm of its stream.
      kernels: of q, k and v, in strips.
      biases: ``[O]`` each, or empty.
      head_scales: of the norms of q's and k's heads, ``[Dh]``.
    """

    scale_D: jax.Array
    kernels: Sequence[jax.Array]
    biases: Sequence[jax.Array]
    head_scales: Sequence[jax.Array]


class After(NamedTuple):
    """One expert's weights after it.

    Attributes:
      scale_D: of the norm of its stream.
      kernels: of o, gate, up and down, in strips.
    """

    scale_D: jax.Array
    kernels: Sequence[jax.Array]


def before(
    streams: Sequence[jax.Array], turns: Sequence[Turn], experts: Sequence[Before], eps: float
) -> Sequence[jax.Array]:
    """Queries, keys and values ``[B, S, O]`` of the normed streams; heads normed and rotated.

    Args:
      streams: of both experts, ``[B, N, D]``; either may have no tokens.
      turns: of `layers.rotary` for each.
      experts: their weights.
      eps: of the norms.

    Raises:
      ConfigError: there is no C++ compiler, or it refuses the sources.
    """
    library()
    rows, tokens = streams[0].shape[0], sum(x.shape[1] for x in streams)
    results = [floats(rows, tokens, STRIP * len(kernel)) for kernel in experts[0].kernels]
    given: list[jax.Array] = []
    for x, turn, own in zip(streams, turns, experts, strict=True):
        given += [x, own.scale_D, *own.kernels, *own.biases, *own.head_scales, *turn]
    return call("layer_before", results)(*given, eps=np.float32(eps))


def after(
    streams: Sequence[jax.Array], attended_BxSxH: jax.Array, experts: Sequence[After], eps: float
) -> Sequence[jax.Array]:
    """Both streams with the attention's output and the gated MLP of the normed sum added.

    Args:
      streams: as for `before`.
      attended_BxSxH: all heads of a token.
      experts: their weights.
      eps: of the norms.

    Raises:
      ConfigError: there is no C++ compiler, or it refuses the sources.
    """
    library()
    given: list[jax.Array] = []
    for x, own in zip(streams, experts, strict=True):
        given += [x, own.scale_D, *own.kernels]
    results = [floats(*x.shape) for x in streams]
    return call("layer_after", results)(attended_BxSxH, *given, eps=np.float32(eps))
