"""Small building blocks: linear maps, RMSNorm, SwiGLU, rotary and sin-cos positions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from process_gen.core import axes
from process_gen.core.model_config import LoraConfig
from process_gen.kernels.key_block import KeyBlock
from process_gen.kernels.native_library import available
from process_gen.kernels.native_norm import Turn, norm
from process_gen.kernels.native_swiglu import swiglu
from process_gen.models.products import in_cpp, products
from process_gen.sharding import rules


class Adapter(nnx.Module):
    """``scale (x a) b``, the low-rank addition to a linear map; see `LoraConfig`."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        names: tuple[str, str],
        rngs: nnx.Rngs,
        lora: LoraConfig,
    ):
        """`a` is a normal of deviation ``1 / sqrt(inputs)``, `b` 0; both float32."""
        a = jax.random.normal(rngs.params(), (inputs, lora.rank)) / math.sqrt(inputs)
        self.names_a, self.names_b = (names[0], axes.RANK), (axes.RANK, names[1])
        self.a = nnx.Param(a, out_sharding=self.names_a)
        self.b = nnx.Param(jnp.zeros((lora.rank, outputs)), out_sharding=self.names_b)
        self.scale = lora.scale

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps ``[..., inputs]`` to ``[..., outputs]`` in the type of `x`."""
        a = rules.in_use(self.a[...].astype(x.dtype), self.names_a)
        b = rules.in_use(self.b[...].astype(x.dtype), self.names_b)
        return self.scale * (x @ a) @ b


class Linear(nnx.Module):
    """``x @ kernel + bias``, on one device on a flattened 2-D view (1.1 to 1.3x faster on CPU).

    Attributes:
      kernel: ``[inputs, outputs]``, or in strips (`functional.in_strips`).
      bias: ``[outputs]`` or None.
      lora: an `Adapter` or None.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        names: tuple[str, str],
        rngs: nnx.Rngs,
        bias: bool = False,
        scale: float = 1.0,
        param_dtype: str = "float32",
        lora: LoraConfig | None = None,
    ):
        """Draws a truncated normal of deviation ``scale / sqrt(inputs)``; 0 gives zeros."""
        if scale == 0.0:
            kernel = jnp.zeros((inputs, outputs), param_dtype)
        else:
            # 0.8796 is the standard deviation of a normal cut at two of its own.
            draw = jax.random.truncated_normal(rngs.params(), -2.0, 2.0, (inputs, outputs))
            kernel = (draw * (scale / math.sqrt(inputs) / 0.87962566)).astype(param_dtype)
        self.kernel = nnx.Param(kernel, out_sharding=names)
        self.bias = (
            nnx.Param(jnp.zeros(outputs, param_dtype), out_sharding=names[1:]) if bias else None
        )
        self.lora = Adapter(inputs, outputs, names=names, rngs=rngs, lora=lora) if lora else None
        self.names = names

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps ``[..., inputs]`` to ``[..., outputs]`` in the type of `x`."""
        return side_by_side(x, self)[0]

    @property
    def in_strips(self) -> bool:
        """Whether the kernel lies in strips."""
        return self.kernel.ndim == 3

    def _complete(self, x: jax.Array, product: jax.Array) -> jax.Array:
        out = product if self.lora is None else product + self.lora(x)
        if self.bias is not None:
            bias = rules.in_use(self.bias[...].astype(x.dtype), self.names[1:])
            out = out + bias[(None,) * (out.ndim - 1)]
        return out


def side_by_side(x: jax.Array, *maps: Linear) -> list[jax.Array]:
    """Linear maps of the same ``[..., inputs]``, whose products are one call where that pays."""
    kernels = _kernels(x, maps)
    # Rows and tokens that are both cut over devices have no flattened view without moving.
    flat = x.reshape(-1, x.shape[-1]) if rules.mesh_in_force() is None else x
    if _on_one_cpu():
        found = products(flat, kernels)
    else:
        found = [flat @ kernel for kernel in kernels]
    outs = (m._complete(flat, product) for m, product in zip(maps, found, strict=True))
    return [out.reshape(*x.shape[:-1], out.shape[-1]) for out in outs]


def _kernels(x: jax.Array, maps: Sequence[Linear]) -> list[jax.Array]:
    return [rules.in_use(m.kernel[...].astype(x.dtype), m.names) for m in maps]


def _on_one_cpu() -> bool:
    return rules.mesh_in_force() is None and rules.platform() == "cpu"


_NORMED = 32  # lines that are normalised in C++ at least; XLA takes no longer for fewer


class RMSNorm(nnx.Module):
    """``scale * cast(x32 / rms(x32))``: float32 statistics, cast back before scaling."""

    def __init__(self, width: int, *, name: str, eps: float, param_dtype: str = "float32"):
        """Starts at scale 1."""
        self.scale = nnx.Param(jnp.ones(width, param_dtype), out_sharding=(name,))
        self.names = (name,)
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalises the last axis."""
        if self._in_cpp(x):
            flat = x.reshape(-1, 1, x.shape[-1])
            return norm(flat, self.scale[...], self.eps).reshape(x.shape)
        x32 = x.astype(jnp.float32)
        normed = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), -1, keepdims=True) + self.eps)
        scale = rules.in_use(self.scale[...].astype(x.dtype), self.names)
        return normed.astype(x.dtype) * scale[(None,) * (x.ndim - 1)]

    def turned(self, x_BxNxHxDh: jax.Array, turn: Turn) -> jax.Array:
        """Normalises each head's features, and rotates them by the turn of its token."""
        if not self._in_cpp(x_BxNxHxDh):
            return rotate(self(x_BxNxHxDh), *turn)
        flat = x_BxNxHxDh.reshape(-1, *x_BxNxHxDh.shape[2:])
        angles = tuple(part.reshape(-1, part.shape[-1]) for part in turn)
        return norm(flat, self.scale[...], self.eps, angles).reshape(x_BxNxHxDh.shape)

    def _in_cpp(self, x: jax.Array) -> bool:
        plain = x.dtype == self.scale.dtype == jnp.float32
        return _on_one_cpu() and plain and x.size >= _NORMED * x.shape[-1] and available()


class SwiGLU(nnx.Module):
    """``down(silu(gate x) * up x)``."""

    def __init__(
        self,
        width: int,
        mlp_width: int,
        *,
        rngs: nnx.Rngs,
        out_scale: float,
        param_dtype: str,
        lora: Mapping[str, LoraConfig],
    ):
        """Three matrices without biases; `lora` has the adapters by name."""

        def linear(
            name: str, sizes: tuple[int, int], names: tuple[str, str], **more: Any
        ) -> Linear:
            more |= {"rngs": rngs, "param_dtype": param_dtype, "lora": lora.get(name)}
            return Linear(*sizes, names=names, **more)

        into, outof = (axes.EMBED, axes.MLP), (axes.MLP, axes.EMBED)
        self.gate = linear("gate", (width, mlp_width), into)
        self.up = linear("up", (width, mlp_width), into)
        self.down = linear("down", (mlp_width, width), outof, scale=out_scale)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps ``[..., D]`` to ``[..., D]``."""
        maps = (self.gate, self.up, self.down)
        if _on_one_cpu() and not any(m.lora or m.in_strips for m in maps):
            flat, kernels = x.reshape(-1, x.shape[-1]), _kernels(x, maps)
            if in_cpp(flat, kernels):  # of both widths, as each is one of its maps' outputs
                return swiglu(flat, *kernels).reshape(x.shape)
        gate, up = side_by_side(x, self.gate, self.up)
        hidden = jax.nn.silu(gate) * up
        if hidden.ndim == 3:
            hidden = rules.constrain(hidden, (axes.BATCH, axes.SEQUENCE, axes.MLP))
        return self.down(hidden)


def shared_keys(
    k_BxSxKxDh: jax.Array,
    v_BxSxKxDh: jax.Array,
    visible_from_BxS: jax.Array,
    visible_to_BxS: jax.Array,
) -> KeyBlock:
    """Keys and values of a row for all its queries, wherever on the mesh these are.

    Queries stay where they are and keys are gathered: grouped queries make keys and values the
    small part (docs/scaling.md compares this with a ring).
    """
    tokens = (axes.BATCH, axes.SEQUENCE)
    heads = (*tokens, axes.KV_HEADS, None)
    return KeyBlock(
        rules.all_tokens(k_BxSxKxDh, heads),
        rules.all_tokens(v_BxSxKxDh, heads),
        rules.all_tokens(visible_from_BxS, tokens),
        rules.all_tokens(visible_to_BxS, tokens),
    )


def time_features(t: jax.Array, features: int) -> jax.Array:
    """Sinusoids of t in [0, 1] (not times 1000), cosines first; float32 ``[..., features]``.

    Source: `TimestepEmbedder` of BAGEL, `modeling/bagel/modeling_utils.py` of its repository.
    """
    half = features // 2
    frequency = jnp.exp(-math.log(1e4) * jnp.arange(half, dtype=jnp.float32) / half)
    angle = t.astype(jnp.float32)[..., None] * frequency[(None,) * t.ndim]
    return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], -1)


def rotary(position: jax.Array, head_dim: int, theta: float) -> Turn:
    """``(cos, sin)`` of the rotary angles, float32 ``[..., head_dim / 2]``."""
    half = head_dim // 2
    frequency = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle = position.astype(jnp.float32)[..., None] * frequency[(None,) * position.ndim]
    return jnp.cos(angle), jnp.sin(angle)


def rotate(x_BxSxHxDh: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotates halves as Qwen2 does (the first with the second, not neighbours), in float32."""
    x = x_BxSxHxDh.astype(jnp.float32)
    first, second = jnp.split(x, 2, -1)
    cos, sin = cos[:, :, None], sin[:, :, None]
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], -1)
    return turned.astype(x_BxSxHxDh.dtype)


def _sincos_line(side: int, width: int) -> np.ndarray:
    """``[side, width / 2]``: sines and then cosines of one coordinate's angles."""
    frequency = 1e4 ** (-np.arange(width // 4) / (width / 4))
    angle = np.arange(side)[:, None] * frequency
    return np.concatenate([np.sin(angle), np.cos(angle)], 1)


def sincos_table(side: int, width: int) -> np.ndarray:
    """The frozen 2-D position table, float32 ``[side * side, width]``, of BAGEL.

    Row ``r * side + c`` is ``[sin(c w), cos(c w), sin(r w), cos(r w)]``, the column first, with
    ``w_j = 10000^(-j / (width / 4))``.
    """
    line = _sincos_line(side, width)
    row, column = np.divmod(np.arange(side * side), side)
    return np.concatenate([line[column], line[row]], 1).astype(np.float32)


def sincos_rows(id_BxN: jax.Array, side: int, width: int, dtype: str) -> jax.Array:
    """Rows of `sincos_table`, ``[B, N, width]``, without the table: half a line a coordinate."""
    line = jnp.asarray(_sincos_line(side, width), jnp.float32).astype(dtype)
    return jnp.concatenate([line[id_BxN % side], line[id_BxN // side]], -1)
