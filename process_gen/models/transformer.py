"""The Mixture-of-Transformers: two dense streams, two experts, one joint attention.

Tokens are routed by type, which the packer knows, so the und and the gen stream each pass through
their own expert's weights once; attention alone sees both. Training and the KV cache use the same
code: a cache is one more block of keys, and the keys and values of the new tokens are returned.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from process_gen.core import axes
from process_gen.core.batch import Place
from process_gen.core.configs import ModelConfig
from process_gen.kernels import native_layer
from process_gen.kernels.interval_attention import interval_attention
from process_gen.kernels.key_block import ATTENDED, CachedKeys, KeyBlock, PooledKeys
from process_gen.kernels.native_norm import Turn
from process_gen.kernels.native_products import MULTIPLIED
from process_gen.models.layers import (
    Linear,
    RMSNorm,
    SwiGLU,
    rotary,
    shared_keys,
    side_by_side,
)
from process_gen.sharding import rules, stripes

_RESIDUAL = (axes.BATCH, axes.RESIDUAL, None)

_STREAM = "stream"  # what enters a layer

_REMAT_POLICIES = {
    "dots": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
        jax.checkpoint_policies.save_only_these_names(MULTIPLIED),
    ),
    "full": jax.checkpoint_policies.nothing_saveable,
    "attention": jax.checkpoint_policies.save_only_these_names(ATTENDED),
    "offload": jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=[ATTENDED, _STREAM],
        offload_src="device",
        offload_dst="pinned_host",
    ),
}


class Cache(NamedTuple):
    """Keys and values of tokens seen before, in any physical order, as `CachedKeys` lays them out.

    Layers that are inlined have an array each, those that are looped over one array of all, so that
    a pass takes no layer's keys out of a larger array.

    Attributes:
      k: ``[B, K, Dh, C]`` each, with layers="scan" ``[L, B, K, Dh, C]``; normed and rotated.
      v: the same with ``[B, K, C, Dh]``.
      visible_from_BxC, visible_to_BxC: int32; an unused slot's interval is empty.
      row_B: where inlined layers' arrays are a pool's, the rows of it; see `PooledKeys`.
    """

    k: tuple[jax.Array, ...]
    v: tuple[jax.Array, ...]
    visible_from_BxC: jax.Array
    visible_to_BxC: jax.Array
    row_B: jax.Array | None = None

    def keys(self, layer: int) -> tuple[jax.Array, jax.Array]:
        """Keys and values of an array of layers."""
        return self.k[layer], self.v[layer]

    def of_layer(self, k: jax.Array, v: jax.Array) -> CachedKeys | PooledKeys:
        """What a layer's queries see of its keys and values."""
        interval = (self.visible_from_BxC, self.visible_to_BxC)
        if self.row_B is None:
            return CachedKeys(k, v, *interval)
        return PooledKeys(k, v, self.row_B, *interval)


class ExpertAttention(nnx.Module):
    """One expert's projections around the joint attention."""

    def __init__(self, cfg: ModelConfig, name: str, *, rngs: nnx.Rngs, out_scale: float):
        """Grouped-query projections with a norm per head on q and k."""
        d, dh, dtype = cfg.width, cfg.head_dim, cfg.param_dtype
        bias, heads, kv = cfg.qkv_bias, cfg.num_heads * dh, cfg.num_kv_heads * dh
        lora = cfg.lora.of(name)

        def linear(map_name: str, sizes: tuple[int, int], *names: str, **more: Any) -> Linear:
            more |= {"rngs": rngs, "param_dtype": dtype, "lora": lora.get(map_name)}
            return Linear(*sizes, names=(names[0], names[1]), **more)

        self.q = linear("q", (d, heads), axes.EMBED, axes.HEADS, bias=bias)
        self.k = linear("k", (d, kv), axes.EMBED, axes.KV_HEADS, bias=bias)
        self.v = linear("v", (d, kv), axes.EMBED, axes.KV_HEADS, bias=bias)
        self.o = linear("o", (heads, d), axes.HEADS, axes.EMBED, scale=out_scale)
        self.q_norm = RMSNorm(dh, name=axes.HEAD_DIM, eps=cfg.norm_eps, param_dtype=dtype)
        self.k_norm = RMSNorm(dh, name=axes.HEAD_DIM, eps=cfg.norm_eps, param_dtype=dtype)
        self.head_dim = dh

    def project(self, x_BxNxD: jax.Array, turn: Turn) -> tuple[jax.Array, jax.Array, jax.Array]:
        """``q[B, N, H, Dh]``, ``k[B, N, K, Dh]`` (both normed and rotated) and v."""

        def heads(x: jax.Array) -> jax.Array:
            return x.reshape(*x.shape[:2], -1, self.head_dim)

        q, k, v = map(heads, side_by_side(x_BxNxD, self.q, self.k, self.v))
        return self.q_norm.turned(q, turn), self.k_norm.turned(k, turn), v


def _tokens(x_BxNxD: jax.Array) -> jax.Array:
    """Brings a stream's tokens to the devices that hold columns of its weights."""
    return rules.constrain(x_BxNxD, (axes.BATCH, axes.SEQUENCE, None))


class Expert(nnx.Module):
    """One expert's weights of one layer."""

    def __init__(self, cfg: ModelConfig, name: str, *, rngs: nnx.Rngs, frozen: bool = False):
        """Pre-norm block; residual branches start at 1/sqrt(2 L) of unit scale.

        A frozen expert's tokens pass no gradient on: not to its weights, nor to the other expert's
        tokens that they attend to (`freeze_und` in BAGEL's `modeling/bagel/qwen2_navit.py`).
        """
        out_scale = (2 * cfg.num_layers) ** -0.5
        norm = {"name": axes.EMBED, "eps": cfg.norm_eps, "param_dtype": cfg.param_dtype}
        self.input_norm = RMSNorm(cfg.width, **norm)
        self.attention = ExpertAttention(cfg, name, rngs=rngs, out_scale=out_scale)
        self.post_norm = RMSNorm(cfg.width, **norm)
        self.mlp = SwiGLU(
            cfg.width,
            cfg.mlp_width,
            rngs=rngs,
            out_scale=out_scale,
            param_dtype=cfg.param_dtype,
            lora=cfg.lora.of(name),
        )
        self.frozen = frozen

    def project(self, x_BxNxD: jax.Array, turn: Turn) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Queries, keys and values of the normed stream, see `ExpertAttention.project`."""
        return self._pass(self.attention.project(_tokens(self.input_norm(x_BxNxD)), turn))

    def finish(self, x_BxNxD: jax.Array, attended_BxNxHxDh: jax.Array) -> jax.Array:
        """Adds the attention's output and the MLP to the residual stream."""
        flat = attended_BxNxHxDh.reshape(*x_BxNxD.shape[:2], -1)
        x = x_BxNxD + self._pass(rules.constrain(self.attention.o(flat), _RESIDUAL))
        added = self.mlp(_tokens(self.post_norm(x)))
        return x + self._pass(rules.constrain(added, _RESIDUAL))

    def _pass(self, x: Any) -> Any:
        return jax.lax.stop_gradient(x) if self.frozen else x

    @property
    def in_strips(self) -> bool:
        """Whether `before` and `after` are all there is: no adapters, all kernels in strips."""
        own, mlp = self.attention, self.mlp
        maps = (own.q, own.k, own.v, own.o, mlp.gate, mlp.up, mlp.down)
        return all(m.in_strips and m.lora is None for m in maps)

    @property
    def before(self) -> native_layer.Before:
        """Weights of `project`."""
        own = self.attention
        maps = (own.q, own.k, own.v)
        return native_layer.Before(
            scale_D=self.input_norm.scale[...],
            kernels=[m.kernel[...] for m in maps],
            biases=[jnp.zeros(0) if m.bias is None else m.bias[...] for m in maps],
            head_scales=[own.q_norm.scale[...], own.k_norm.scale[...]],
        )

    @property
    def after(self) -> native_layer.After:
        """Weights of `finish`."""
        maps = (self.attention.o, self.mlp.gate, self.mlp.up, self.mlp.down)
        return native_layer.After(self.post_norm.scale[...], [m.kernel[...] for m in maps])


class Layer(nnx.Module):
    """Both experts of one layer."""

    def __init__(self, cfg: ModelConfig, *, rngs: nnx.Rngs):
        """Independent weights for und and gen."""
        self.und = Expert(cfg, "und", rngs=rngs, frozen=cfg.freeze_und)
        self.gen = Expert(cfg, "gen", rngs=rngs)
        self.implementation = cfg.attention

    def __call__(
        self,
        und_BxUxD: jax.Array,
        gen_BxGxD: jax.Array,
        turns: Sequence[Turn],
        place: Place,
        cached: Sequence[CachedKeys | PooledKeys],
        pieces: int,
    ) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        """One layer over both streams; an empty stream costs nothing.

        Args:
          und_BxUxD, gen_BxGxD, place, cached, pieces: see `run_layers`.
          turns: rotations of the und and the gen tokens.

        Returns:
          The two streams, and the new tokens' keys and values ``[B, S, K, Dh]``.
        """
        if self.und.in_strips and self.gen.in_strips:
            return self._in_strips((und_BxUxD, gen_BxGxD), turns, place, cached)
        streams = [(self.und, und_BxUxD), (self.gen, gen_BxGxD)]
        lengths = [x.shape[1] for _, x in streams if x.shape[1]]
        projected = [
            expert.project(x, turn)
            for (expert, x), turn in zip(streams, turns, strict=True)
            if x.shape[1]
        ]
        q, k, v = (stripes.join(parts, pieces) for parts in zip(*projected, strict=True))
        own = shared_keys(k, v, place.visible_from, place.visible_to)
        attended = interval_attention(q, place.order, [*cached, own], self.implementation)
        split = iter(stripes.split(attended, lengths, pieces))
        und, gen = (expert.finish(x, next(split)) if x.shape[1] else x for expert, x in streams)
        return und, gen, k, v

    def _in_strips(
        self,
        streams: Sequence[jax.Array],
        turns: Sequence[Turn],
        place: Place,
        cached: Sequence[CachedKeys | PooledKeys],
    ) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        """The same with both experts' parts in C++, where weights are laid out for it."""
        experts, eps = (self.und, self.gen), self.und.input_norm.eps
        q, k, v = (
            x.reshape(*x.shape[:2], -1, self.und.attention.head_dim)
            for x in native_layer.before(streams, turns, [e.before for e in experts], eps)
        )
        own = KeyBlock(k, v, place.visible_from, place.visible_to)
        attended = interval_attention(q, place.order, [*cached, own], self.implementation)
        flat = attended.reshape(*attended.shape[:2], -1)
        und, gen = native_layer.after(streams, flat, [e.after for e in experts], eps)
        return und, gen, k, v


def stacked_layers(cfg: ModelConfig, rngs: nnx.Rngs) -> Layer:
    """All layers as one `Layer` whose weights have a leading axis, each drawn from its own key."""

    @nnx.split_rngs(splits=cfg.num_layers)
    @nnx.vmap(in_axes=0, out_axes=0, transform_metadata={nnx.PARTITION_NAME: axes.LAYERS})
    def create(rngs: nnx.Rngs) -> Layer:
        return Layer(cfg, rngs=rngs)

    return create(rngs)


def run_layers(
    stacked: Layer,
    cfg: ModelConfig,
    und_BxUxD: jax.Array,
    gen_BxGxD: jax.Array,
    place: Place,
    caches: Sequence[Cache] = (),
    pieces: int = 1,
    layers: Sequence[nnx.State] | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Runs the layers one after the other, as one compiled loop or inlined (`cfg.layers`).

    Args:
      stacked: of `stacked_layers`.
      cfg: sizes, and how to loop and rematerialise.
      und_BxUxD, gen_BxGxD: embedded streams; either may have no tokens.
      place: of und and gen tokens in the order of `stripes.join`, ``int32[B, S]`` each.
      caches: earlier keys and values.
      pieces: of `stripes.join`.
      layers: the weights one layer after the other; those of `stacked` are not looked at then.

    Returns:
      The streams before the final norms, and the keys and values of the new tokens
      ``[L, B, S, K, Dh]``.
    """
    graph, weights = nnx.split(stacked)
    lengths = (und_BxUxD.shape[1], gen_BxGxD.shape[1])
    turns = [
        rotary(position, cfg.head_dim, cfg.rope_theta)
        for position in stripes.split(place.position, lengths, pieces)
    ]

    def body(
        streams: tuple[jax.Array, jax.Array], scanned: tuple
    ) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
        layer_weights, keys = scanned
        cached = [cache.of_layer(*kv) for kv, cache in zip(keys, caches, strict=True)]
        streams = tuple(checkpoint_name(rules.constrain(x, _RESIDUAL), _STREAM) for x in streams)
        layer = nnx.merge(graph, layer_weights)
        und, gen, k, v = layer(*streams, turns, place, cached, pieces)
        return (und, gen), (k, v)

    if cfg.remat != "none":
        body = jax.checkpoint(body, policy=_REMAT_POLICIES[cfg.remat])
    streams = (und_BxUxD, gen_BxGxD)
    if layers is None and caches and cfg.layers == "unroll":
        layers = [jax.tree.map(lambda w, i=i: w[i], weights) for i in range(cfg.num_layers)]
    if layers is not None:
        new = []
        for i, layer_weights in enumerate(layers):
            streams, own = body(streams, (layer_weights, [cache.keys(i) for cache in caches]))
            new.append(own)
        k, v = (jnp.stack(part) for part in zip(*new, strict=True))
    else:
        keys = [cache.keys(0) for cache in caches]
        unroll = cfg.num_layers if cfg.layers == "unroll" else 1
        streams, (k, v) = jax.lax.scan(body, streams, (weights, keys), unroll=unroll)
    und, gen = (_tokens(x) for x in streams)
    return und, gen, k, v
