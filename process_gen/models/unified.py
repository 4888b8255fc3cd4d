"""The unified model: text, understanding patches and image latents in one sequence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from process_gen.core import axes
from process_gen.core.batch import Place
from process_gen.core.configs import ModelConfig
from process_gen.models.layers import Linear, RMSNorm, sincos_rows, time_features
from process_gen.models.transformer import Cache, run_layers, stacked_layers
from process_gen.models.vit import SiglipVit, connector
from process_gen.sharding import rules, stripes


class Streams(NamedTuple):
    """What enters the model. Any of T, V, G may be 0.

    Attributes:
      text, und, gen: places of the three parts.
      token_BxT: int32.
      patch_BxVxQ: pixels in [-1, 1].
      patch_id_BxV: int32 rows of the 2-D position table.
      latent_BxGxP: noised (or clean) latents x_t.
      latent_id_BxG: int32 rows of the 2-D position table.
      t_BxG: float32 in [0, 1], 0 for clean latents; one column where a row's latents share it.
      patch_image_BxV: int32 image of each patch, -1 where padded; only "siglip" needs it.
    """

    text: Place
    und: Place
    gen: Place
    token_BxT: jax.Array
    patch_BxVxQ: jax.Array
    patch_id_BxV: jax.Array
    latent_BxGxP: jax.Array
    latent_id_BxG: jax.Array
    t_BxG: jax.Array
    patch_image_BxV: jax.Array | None = None


class Outputs(NamedTuple):
    """What leaves it.

    Attributes:
      hidden_BxTxD: normed text states; `logits` reads them.
      output_BxGxP: float32 output of the flow head, see `flow_matching.to_velocity`.
      k_LxBxSxKxDh, v_LxBxSxKxDh: keys and values of all tokens, text, patches, latents.
    """

    hidden_BxTxD: jax.Array
    output_BxGxP: jax.Array
    k_LxBxSxKxDh: jax.Array
    v_LxBxSxKxDh: jax.Array


class Trace(NamedTuple):
    """The residual stream at both ends, und (text, then patches) and gen.

    Attributes:
      und_in_BxUxD, gen_in_BxGxD: embedded tokens.
      und_out_BxUxD, gen_out_BxGxD: after the final norms.
    """

    und_in_BxUxD: jax.Array
    gen_in_BxGxD: jax.Array
    und_out_BxUxD: jax.Array
    gen_out_BxGxD: jax.Array


def _places(streams: Streams, pieces: int) -> Place:
    """Places in the order of the tokens: und = (text, patches), then (und, gen)."""

    def joined(text: jax.Array, und: jax.Array, gen: jax.Array) -> jax.Array:
        return stripes.join([stripes.join([text, und], pieces), gen], pieces)

    parts = (streams.text, streams.und, streams.gen)
    return Place(*(joined(*p) for p in zip(*parts, strict=True)))


def _stream(x_BxNxD: jax.Array) -> jax.Array:
    return rules.constrain(x_BxNxD, (axes.BATCH, axes.SEQUENCE, None))


class Embedding(nnx.Module):
    """The token table."""

    def __init__(self, cfg: ModelConfig, *, rngs: nnx.Rngs):
        """Unit normal, the scale of the position tables that are added to the other tokens."""
        table = jax.random.normal(rngs.params(), (cfg.vocab_size, cfg.width))
        self.table = nnx.Param(table.astype(cfg.param_dtype), out_sharding=(axes.VOCAB, axes.EMBED))

    def __call__(self, token_BxT: jax.Array, dtype: str) -> jax.Array:
        """Rows of the table, ``[B, T, D]``."""
        return rules.lookup(self.table[...], token_BxT).astype(dtype)


class PatchEncoder(nnx.Module):
    """The smallest understanding encoder: one linear map of a patch's pixels."""

    def __init__(self, cfg: ModelConfig, *, rngs: nnx.Rngs):
        """Maps ``Q`` pixels to the model's width."""
        self.patch_in = Linear(
            cfg.und_features,
            cfg.width,
            names=(axes.PATCH, axes.EMBED),
            rngs=rngs,
            bias=True,
            param_dtype=cfg.param_dtype,
        )

    def __call__(self, patch_BxVxQ: jax.Array) -> jax.Array:
        """``[B, V, D]``, without positions."""
        return self.patch_in(patch_BxVxQ)


class FinalNorms(nnx.Module):
    """The last norm of either stream."""

    def __init__(self, cfg: ModelConfig):
        """One a stream."""
        norm = {"name": axes.EMBED, "eps": cfg.norm_eps, "param_dtype": cfg.param_dtype}
        self.und = RMSNorm(cfg.width, **norm)
        self.gen = RMSNorm(cfg.width, **norm)


class UnifiedModel(nnx.Module):
    """Embeds the three parts, runs the transformer, reads text states and the flow head."""

    def __init__(self, cfg: ModelConfig, *, rngs: nnx.Rngs):
        """All weights; heads start at 0, so that the first loss is that of a blank guess."""
        d, dtype = cfg.width, cfg.param_dtype
        self.embed = Embedding(cfg, rngs=rngs)
        self.time_in = Linear(
            cfg.time_features,
            d,
            names=(axes.PATCH, axes.EMBED),
            rngs=rngs,
            bias=True,
            param_dtype=dtype,
        )
        self.time_out = Linear(
            d, d, names=(axes.EMBED, axes.EMBED_OUT), rngs=rngs, bias=True, param_dtype=dtype
        )
        p = cfg.latent_features
        self.latent_in = Linear(
            p, d, names=(axes.PATCH, axes.EMBED), rngs=rngs, bias=True, param_dtype=dtype
        )
        self.latent_out = Linear(
            d,
            p,
            names=(axes.EMBED, axes.PATCH),
            rngs=rngs,
            bias=True,
            scale=0.0,
            param_dtype=dtype,
        )
        encoders = {"patch": PatchEncoder, "siglip": SiglipVit}
        encoder = encoders.get(cfg.und_encoder)
        self.und_encoder = encoder(cfg, rngs=rngs) if encoder else None
        self.connector = (
            connector(cfg.vit.width, d, rngs=rngs, param_dtype=dtype)
            if cfg.und_encoder == "siglip"
            else None
        )
        self.layers = stacked_layers(cfg, rngs)
        self.final_norm = FinalNorms(cfg)
        self.lm_head = Linear(
            d,
            cfg.vocab_size,
            names=(axes.EMBED, axes.VOCAB),
            rngs=rngs,
            scale=0.0,
            param_dtype=dtype,
        )
        self.cfg = cfg

    def __call__(
        self,
        streams: Streams,
        caches: Sequence[Cache] = (),
        layers: Sequence[nnx.State] | None = None,
    ) -> Outputs:
        """One forward pass, for training (no cache) and for sampling (with one or more).

        With `layers`, those are the weights of the layers, one after the other.

        Tokens stay on the devices that share a row; with a cache the new keys come in the order
        text, patches, latents, because they are written somewhere.
        """
        pieces = 1 if caches else rules.pieces(axes.SEQUENCE)
        text, patches, gen = self._enter(streams)
        und = stripes.join([text, patches], pieces)
        place = _places(streams, pieces)
        und, gen, k, v = run_layers(self.layers, self.cfg, und, gen, place, caches, pieces, layers)
        lengths = [text.shape[1], patches.shape[1]]
        hidden = self._norm_und(stripes.split(und, lengths, pieces)[0])
        output = self.latent_out(self.final_norm.gen(gen)).astype(jnp.float32)
        return Outputs(_stream(hidden), _stream(output), k, v)

    def trace(self, streams: Streams) -> Trace:
        """What enters and leaves the transformer at every token, for comparisons and figures."""
        text, patches, gen_in = self._enter(streams)
        und_in = jnp.concatenate([text, patches], 1)
        und, gen, _, _ = run_layers(self.layers, self.cfg, und_in, gen_in, _places(streams, 1))
        return Trace(und_in, gen_in, self._norm_und(und), self.final_norm.gen(gen))

    def _norm_und(self, und: jax.Array) -> jax.Array:
        normed = self.final_norm.und(und)
        return jax.lax.stop_gradient(normed) if self.cfg.freeze_und else normed

    def _enter(self, streams: Streams) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Embedded text, patches and latents."""
        text = _stream(self.embed(streams.token_BxT, self.cfg.dtype))
        patches = text[:, :0]
        if streams.patch_BxVxQ.shape[1]:
            patches = _stream(self._embed_patches(streams))
        return text, patches, _stream(self._embed_latents(streams))

    def understand(
        self, patch_BxVxQ: jax.Array, patch_id_BxV: jax.Array, patch_image_BxV: jax.Array | None
    ) -> tuple[jax.Array, jax.Array]:
        """Patches as the encoder sees them, and at the model's width without positions."""
        pixels = patch_BxVxQ.astype(self.cfg.dtype)
        if isinstance(self.und_encoder, SiglipVit):
            if patch_image_BxV is None:
                raise ValueError("und_encoder='siglip' needs patch_image_BxV")
            encoded = self.und_encoder(pixels, patch_id_BxV, patch_image_BxV)
            assert self.connector is not None
            return encoded, self.connector(encoded)
        if self.und_encoder is None:
            raise ValueError("the batch has understanding patches, but und_encoder='none'")
        encoded = self.und_encoder(pixels)
        return encoded, encoded

    def _embed_patches(self, streams: Streams) -> jax.Array:
        ids = streams.patch_id_BxV
        _, patches = self.understand(streams.patch_BxVxQ, ids, streams.patch_image_BxV)
        return patches + sincos_rows(ids, self.cfg.und_grid, self.cfg.width, self.cfg.dtype)

    def _embed_latents(self, streams: Streams) -> jax.Array:
        cfg = self.cfg
        sinusoid = time_features(streams.t_BxG, cfg.time_features).astype(cfg.dtype)
        time = self.time_out(jax.nn.silu(self.time_in(sinusoid)))
        latents = self.latent_in(streams.latent_BxGxP.astype(cfg.dtype))
        place = sincos_rows(streams.latent_id_BxG, cfg.latent_grid, cfg.width, cfg.dtype)
        return latents + time + place

    def logits(self, hidden: jax.Array) -> jax.Array:
        """float32 ``[..., W]`` from normed text states."""
        logits = self.lm_head(hidden)
        if logits.ndim == 3:
            logits = rules.constrain(logits, (axes.BATCH, axes.SEQUENCE, axes.VOCAB))
        return logits.astype(jnp.float32)
