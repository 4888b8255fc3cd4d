"""The SigLIP-NaViT understanding encoder and its connector, those of BAGEL
(`modeling/bagel/siglip_navit.py` of github.com/ByteDance-Seed/Bagel).

Images of any sizes lie side by side in one packed row of patches; the interval attention with order
= from = to = image number keeps each image to itself, and nothing is padded to a common size.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from process_gen.core import axes
from process_gen.core.attention_mask import NEVER, PAD_ORDER
from process_gen.core.configs import ModelConfig
from process_gen.kernels.interval_attention import interval_attention
from process_gen.models.layers import Linear, shared_keys
from process_gen.sharding import rules

_NAMES = (axes.BATCH, axes.SEQUENCE, None)


class LayerNorm(nnx.Module):
    """Mean and variance normalisation of the last axis, in float32."""

    def __init__(self, cfg: ModelConfig):
        """Scale one, bias zero."""
        names = (axes.EMBED,)
        self.scale = nnx.Param(jnp.ones(cfg.vit.width, cfg.param_dtype), out_sharding=names)
        self.bias = nnx.Param(jnp.zeros(cfg.vit.width, cfg.param_dtype), out_sharding=names)
        self.eps = cfg.vit.norm_eps

    def __call__(self, x: jax.Array) -> jax.Array:
        """Keeps shape and type."""
        x32 = x.astype(jnp.float32)
        centred = x32 - x32.mean(-1, keepdims=True)
        normed = centred * jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + self.eps)
        scale, bias = (
            rules.in_use(weight[...].astype(jnp.float32), (axes.EMBED,))
            for weight in (self.scale, self.bias)
        )
        lead = (None,) * (x.ndim - 1)
        return (normed * scale[lead] + bias[lead]).astype(x.dtype)


class Mlp(nnx.Module):
    """Linear, tanh-approximated GELU, Linear; the connector too."""

    def __init__(
        self,
        inputs: int,
        hidden: int,
        outputs: int,
        *,
        names: tuple[str, str, str],
        rngs: nnx.Rngs,
        param_dtype: str,
    ):
        """Both maps have biases; `names` are the logical axes of the three widths."""
        self.hidden = Linear(
            inputs, hidden, names=names[:2], rngs=rngs, bias=True, param_dtype=param_dtype
        )
        self.out = Linear(
            hidden, outputs, names=names[1:], rngs=rngs, bias=True, param_dtype=param_dtype
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps ``[..., inputs]`` to ``[..., outputs]``."""
        # The exact GELU moves features by some 5e-4 of their size, silently.
        return self.out(jax.nn.gelu(self.hidden(x), approximate=True))


def connector(vit_width: int, width: int, *, rngs: nnx.Rngs, param_dtype: str) -> Mlp:
    """From the encoder's features to the transformer's width."""
    names = (axes.EMBED, axes.MLP, axes.EMBED)
    return Mlp(vit_width, width, width, names=names, rngs=rngs, param_dtype=param_dtype)


class Attention(nnx.Module):
    """Multi-head attention within each image; all projections have biases."""

    def __init__(self, cfg: ModelConfig, *, rngs: nnx.Rngs):
        """Heads divide the width."""
        into, outof = (axes.EMBED, axes.HEADS), (axes.HEADS, axes.EMBED)
        for name, names in (("q", into), ("k", into), ("v", into), ("o", outof)):
            linear = Linear(
                cfg.vit.width,
                cfg.vit.width,
                names=names,
                rngs=rngs,
                bias=True,
                param_dtype=cfg.param_dtype,
            )
            setattr(self, name, linear)
        self.heads = cfg.vit.num_heads
        self.implementation = cfg.attention

    def __call__(self, x_BxVxD: jax.Array, image_BxV: jax.Array) -> jax.Array:
        """Args: image_BxV is an image number, -1 where padded."""
        b, v, d = x_BxVxD.shape
        q, k, values = (
            project(x_BxVxD).reshape(b, v, self.heads, d // self.heads)
            for project in (self.q, self.k, self.v)
        )
        padded = image_BxV == PAD_ORDER
        block = shared_keys(k, values, jnp.where(padded, NEVER, image_BxV), image_BxV)
        mixed = interval_attention(q, image_BxV, (block,), self.implementation)
        return self.o(mixed.reshape(b, v, d))


class Block(nnx.Module):
    """A pre-norm transformer layer."""

    def __init__(self, cfg: ModelConfig, *, rngs: nnx.Rngs):
        """Attention, then the MLP, each beside a residual."""
        self.norm1 = LayerNorm(cfg)
        self.attention = Attention(cfg, rngs=rngs)
        self.norm2 = LayerNorm(cfg)
        self.mlp = Mlp(
            cfg.vit.width,
            cfg.vit.mlp_width,
            cfg.vit.width,
            names=(axes.EMBED, axes.MLP, axes.EMBED),
            rngs=rngs,
            param_dtype=cfg.param_dtype,
        )

    def __call__(self, x_BxVxD: jax.Array, image_BxV: jax.Array) -> jax.Array:
        """Keeps shape and type."""
        x_BxVxD = x_BxVxD + self.attention(self.norm1(x_BxVxD), image_BxV)
        return x_BxVxD + self.mlp(self.norm2(x_BxVxD))


class SiglipVit(nnx.Module):
    """Packed patches to features, before the connector.

    Attributes:
      patch_in: Linear of a patch; its input runs row, column, channel (channel fastest).
      position: learned table, ``[grid * grid, D]``, row ``r * grid + c``.
      layers: `Block`s stacked along a leading axis.
      post_norm: LayerNorm over the last layer's output, although that is not SigLIP's last layer.
    """

    def __init__(self, cfg: ModelConfig, *, rngs: nnx.Rngs):
        """Draws all weights."""
        self.cfg = cfg
        self.patch_in = Linear(
            cfg.und_features,
            cfg.vit.width,
            names=(axes.PATCH, axes.EMBED),
            rngs=rngs,
            bias=True,
            param_dtype=cfg.param_dtype,
        )
        table = 0.02 * jax.random.normal(rngs.params(), (cfg.und_grid**2, cfg.vit.width))
        self.position = nnx.Param(table.astype(cfg.param_dtype), out_sharding=(None, axes.EMBED))

        @nnx.split_rngs(splits=cfg.vit.num_layers)
        @nnx.vmap(in_axes=0, out_axes=0, transform_metadata={nnx.PARTITION_NAME: axes.LAYERS})
        def stacked(rngs: nnx.Rngs) -> Block:
            return Block(cfg, rngs=rngs)

        self.layers = stacked(rngs)
        self.post_norm = LayerNorm(cfg)

    def __call__(
        self, patch_BxVxQ: jax.Array, id_BxV: jax.Array, image_BxV: jax.Array
    ) -> jax.Array:
        """Features ``[B, V, D]`` in the type of the patches.

        Args:
          patch_BxVxQ: pixels in [-1, 1], in the type to compute in.
          id_BxV: int32 rows of the position table.
          image_BxV: int32 image numbers; -1 where padded (the features there mean nothing).
        """
        x_BxVxD = self.patch_in(patch_BxVxQ)
        table = rules.in_use(self.position[...].astype(x_BxVxD.dtype), (None, axes.EMBED))
        x_BxVxD = x_BxVxD + table[id_BxV]
        graph, layers = nnx.split(self.layers)

        def run(x_BxVxD: jax.Array, layer: nnx.State) -> tuple[jax.Array, None]:
            x_BxVxD = rules.constrain(x_BxVxD, _NAMES)
            return nnx.merge(graph, layer)(x_BxVxD, image_BxV), None

        if self.cfg.remat != "none":
            run = jax.checkpoint(run)
        unroll = self.cfg.vit.num_layers if self.cfg.layers == "unroll" else 1
        x_BxVxD, _ = jax.lax.scan(run, x_BxVxD, layers, unroll=unroll)
        return self.post_norm(x_BxVxD)
