"""How a picture becomes latent tokens and how latent tokens become a picture again."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from process_gen.core.patches import unpatchify


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

    def encode(self, patches_BxNxP: jax.Array) -> jax.Array:
        """uint8 patches to latents in [-1, 1]."""
        return normalise(patches_BxNxP)

    def decode(self, latent_BxNxP: jax.Array, rows: int, columns: int) -> jax.Array:
        """Latents of a grid of rows x columns tokens to ``uint8[B, H, W, 3]``."""
        return unpatchify(quantise(latent_BxNxP), self.patch, rows, columns)
