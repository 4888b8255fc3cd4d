"""From what a batch holds of pictures to the latents x0 that a step noises.

Two ways, by codec. Pixel patches are their own latents. The autoencoder of "flux" is frozen: a
program of its own, run before the step, turns the pixels of a batch into moments, so that its
weights are neither constants of the compiled step nor known to the optimiser. The step samples from
the moments with the run's key, as BAGEL's trainer samples at every encoding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from process_gen.core.batch import PackedBatch
from process_gen.core.configs import Config, ModelConfig
from process_gen.data.pictures import picture_rule
from process_gen.models.flux_codec import FluxCodec
from process_gen.models.image_codecs import normalise
from process_gen.sharding import rules
from process_gen.sharding.local import on_each_device
from process_gen.train.picture_encoder import PictureEncoder, find_pictures


class Latents(Protocol):
    """What a step asks of a codec. S is the number of features that a batch holds of a token."""

    def features(self, stored: int) -> int:
        """P, the features of a latent token, from S."""
        ...

    def draw(self, key: jax.Array, shape: tuple[int, ...]) -> jax.Array | None:
        """The randomness of `x0`: float32 of `shape` ``[B, G, P]``, or None."""
        ...

    def x0(self, stored_BxGxS: jax.Array, draw_BxGxP: jax.Array | None) -> jax.Array:
        """``float32[B, G, P]``."""
        ...


class Pixels:
    """Batches hold uint8 pixels, which are the latents."""

    def features(self, stored: int) -> int:
        """S."""
        return stored

    def draw(self, key: jax.Array, shape: tuple[int, ...]) -> jax.Array | None:
        """Nothing is random."""
        del key, shape

    def x0(self, stored_BxGxS: jax.Array, draw_BxGxP: jax.Array | None) -> jax.Array:
        """Pixels in [-1, 1]."""
        del draw_BxGxP
        return normalise(stored_BxGxS)


class Moments:
    """Batches hold the autoencoder's moments; each step samples anew."""

    def __init__(self, codec: FluxCodec):
        """`codec` knows scale and shift."""
        self._codec = codec

    def features(self, stored: int) -> int:
        """Half of mean and log-variance."""
        return stored // 2

    def draw(self, key: jax.Array, shape: tuple[int, ...]) -> jax.Array | None:
        """Standard normal."""
        return jax.random.normal(key, shape)

    def x0(self, stored_BxGxS: jax.Array, draw_BxGxP: jax.Array | None) -> jax.Array:
        """A sample of the latents."""
        return self._codec.sample(stored_BxGxS, draw_BxGxP)


def of_model(model: ModelConfig) -> Latents:
    """The way of a model's codec."""
    return Moments(FluxCodec(model.vae, model.patch)) if model.codec == "flux" else Pixels()


def make_prepare(config: Config, vae_params: Any, mesh: Mesh) -> Callable[[PackedBatch], Any]:
    """What brings a host batch to the devices, in the form that the step takes.

    Args:
      config: of the run.
      vae_params: of the autoencoder, host arrays; None where pictures need none, because the codec
        has none or because batches hold stored moments (`data.stored_latents`).
      mesh: the run's.

    Returns:
      ``host batch -> global arrays``. Each process encodes the pictures of its own rows.
    """
    if vae_params is None:
        return lambda batch: rules.put_batch(batch, mesh)
    model, rule = config.model, picture_rule(config).latent
    assert rule is not None  # a codec with weights has one
    codec = FluxCodec(model.vae, model.patch)
    encoder = PictureEncoder(codec, vae_params, -(-rule.longest // codec.side), mesh)

    def spread(moments_MxF: jax.Array, place_BxG: jax.Array) -> jax.Array:
        return jnp.where(place_BxG[..., None] < 0, 0.0, moments_MxF[place_BxG])

    spread_rows = on_each_device(spread, mesh)

    def prepare(batch: PackedBatch) -> PackedBatch:
        pictures, place_BxG = find_pictures(
            batch.latent_BxGxP, batch.latent_id_BxG, batch.gen.order, model.latent_grid
        )
        moments_MxF = encoder(pictures, max(place_BxG.size, 1))
        placed = rules.put_batch(batch._replace(latent_BxGxP=place_BxG), mesh)
        return placed._replace(latent_BxGxP=spread_rows(moments_MxF, placed.latent_BxGxP))

    return prepare
