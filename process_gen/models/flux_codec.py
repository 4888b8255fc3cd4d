"""BAGEL's codec: latent tokens are patches of what the FLUX autoencoder makes of a picture.

The functions are pure and take the autoencoder's weights (`models.vae`) first. Pictures of one call
have one size, or canvases of one size with the place of each picture: padding that the group norms
do not know of would change the latents.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from process_gen.core.encoder_sizes import VaeSizes
from process_gen.core.patches import patchify, unpatchify
from process_gen.models import vae


class FluxCodec:
    """Pictures to latent tokens and back; P is ``patch * patch * latent_channels``."""

    def __init__(self, sizes: VaeSizes, patch: int):
        """Describes the codec; no array is made here.

        Args:
          sizes: of the autoencoder.
          patch: side of a token's square in latent cells.
        """
        self.sizes = sizes
        self.patch = patch
        self._moments, _, self._decode = vae.functions(sizes)

    draws = True

    @property
    def side(self) -> int:
        """Side of a token's square in pixels."""
        return self.patch * self.sizes.downsample

    def moments(
        self, params: Any, image_NxHxWx3: jax.Array, inside_NxHxW: jax.Array | None = None
    ) -> jax.Array:
        """``float32[N, n, 2P]`` of uint8 pictures: mean, then log-variance, row-major over tokens.

        Inside either half the order is row, column, channel, the channel running fastest. Both are
        before scale and shift. `inside` says where pictures lie in larger canvases
        (`vae.FluxVae.moments`).
        """
        pixels = (image_NxHxWx3.astype(jnp.float32) / 255.0 - 0.5) / 0.5
        both = self._moments(params, pixels, inside_NxHxW)
        parts = [patchify(part, self.patch) for part in both]
        return jnp.concatenate(parts, -1)

    def sample(self, moments_NxMx2P: jax.Array, eps_NxMxP: jax.Array | None) -> jax.Array:
        """Latent tokens of `moments`, scaled and shifted; without noise those of the mean."""
        mean, log_variance = jnp.split(moments_NxMx2P, 2, -1)
        return vae.sample_latent(mean, log_variance, eps_NxMxP, self.sizes)

    def encode_pictures(
        self, params: Any, image_NxHxWx3: jax.Array, eps_NxMxP: jax.Array | None = None
    ) -> jax.Array:
        """Latent tokens ``float32[N, n, P]``, one picture after the other; None takes the mean."""

        def one(item: tuple[jax.Array, jax.Array | None]) -> jax.Array:
            image, eps = item
            noise = None if eps is None else eps[None]
            return self.sample(self.moments(params, image[None]), noise)[0]

        return jax.lax.map(one, (image_NxHxWx3, eps_NxMxP))

    def decode(self, params: Any, latent_NxMxP: jax.Array, rows: int, columns: int) -> jax.Array:
        """Latents of a grid of rows x columns tokens to ``uint8[N, H, W, 3]``.

        Values are clipped and then *truncated*, as the reference does. Pictures pass one
        after the other: the widest level of one of 1024 x 1024 pixels takes half a gigabyte.
        """
        latents = unpatchify(latent_NxMxP, self.patch, rows, columns)
        pixels = jax.lax.map(lambda one: self._decode(params, one[None])[0], latents)
        return (jnp.clip(pixels * 0.5 + 0.5, 0.0, 1.0) * 255.0).astype(jnp.uint8)
