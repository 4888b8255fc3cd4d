"""How a picture becomes latent tokens and how latent tokens become a picture again."""

from __future__ import annotations

from typing import Any, Protocol

import jax
import jax.numpy as jnp

from process_gen.core.configs import ModelConfig
from process_gen.core.patches import patchify, unpatchify
from process_gen.models.flux_codec import FluxCodec


class Codec(Protocol):
    """What painting needs of a codec; `params` are its frozen weights, None where it has none.

    Attributes:
      side: side of a latent token's square in pixels.
      draws: whether encoding is a draw.
    """

    draws: bool

    @property
    def side(self) -> int:
        """See above."""
        ...

    def encode_pictures(
        self, params: Any, image_NxHxWx3: jax.Array, eps_NxMxP: jax.Array | None = None
    ) -> jax.Array:
        """uint8 pictures of one size to latent tokens ``float32[N, n, P]``.

        `eps` is standard normal noise for codecs that draw; None takes the mean.
        """
        ...

    def decode(self, params: Any, latent_NxMxP: jax.Array, rows: int, columns: int) -> jax.Array:
        """Latents of a grid of rows x columns tokens to ``uint8[N, H, W, 3]``."""
        ...


def build(cfg: ModelConfig) -> Codec:
    """The codec of a model."""
    return FluxCodec(cfg.vae, cfg.patch) if cfg.codec == "flux" else PixelCodec(cfg.patch)


def normalise(pixels: jax.Array) -> jax.Array:
    """uint8 pixels to float32 in [-1, 1]."""
    return pixels.astype(jnp.float32) / 127.5 - 1.0


def quantise(pixels: jax.Array) -> jax.Array:
    """float32 in [-1, 1] to uint8, clipped and rounded to the nearest value."""
    return jnp.round((jnp.clip(pixels, -1.0, 1.0) + 1.0) * 127.5).astype(jnp.uint8)


class PixelCodec:
    """Latent tokens are patches of raw pixels."""

    def __init__(self, patch: int):
        """`patch` is the side of a token's square in pixels."""
        self.patch = patch

    draws = False

    @property
    def side(self) -> int:
        """Side of a token's square in pixels."""
        return self.patch

    def encode(self, patches_BxNxP: jax.Array) -> jax.Array:
        """uint8 patches to latents in [-1, 1]."""
        return normalise(patches_BxNxP)

    def encode_pictures(
        self, params: Any, image_NxHxWx3: jax.Array, eps_NxMxP: jax.Array | None = None
    ) -> jax.Array:
        """uint8 pictures to latents ``float32[N, n, P]`` in [-1, 1]; nothing is drawn."""
        del params, eps_NxMxP
        return self.encode(patchify(image_NxHxWx3, self.patch))

    def decode(self, params: Any, latent_NxMxP: jax.Array, rows: int, columns: int) -> jax.Array:
        """Latents of a grid of rows x columns tokens to ``uint8[B, H, W, 3]``; no `params`."""
        del params
        return unpatchify(quantise(latent_NxMxP), self.patch, rows, columns)
