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
from process_gen.core.errors import ConfigError
from process_gen.core.patches import unpatchify
from process_gen.data.pictures import picture_rule
from process_gen.models.flux_codec import FluxCodec
from process_gen.models.image_codecs import normalise
from process_gen.sharding import rules


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
    """What is done with a batch on the devices before the step.

    Args:
      config: of the run.
      vae_params: of the autoencoder, host arrays; None where the codec has none.
      mesh: the run's; every device keeps a copy of the autoencoder.

    Raises:
      ConfigError: the codec needs pictures of one size, and `data.image_size` names none.
    """
    model = config.model
    if model.codec != "flux":
        return lambda batch: batch
    rule = picture_rule(config).latent
    if rule is None:
        raise ConfigError("model.codec='flux' encodes pictures of one size; set data.image_size")
    codec = FluxCodec(model.vae, model.patch)
    rows = rule.size(rule.longest, rule.longest)[0] // codec.side
    params = jax.device_put(vae_params, rules.replicated(mesh))
    encode = jax.jit(
        lambda params, pixels: encode_tokens(codec, params, pixels, rows),
        out_shardings=rules.batch_sharding(mesh),
    )
    return lambda batch: batch._replace(latent_BxGxP=encode(params, batch.latent_BxGxP))


def encode_tokens(codec: FluxCodec, params: Any, pixel_BxGxS: jax.Array, rows: int) -> jax.Array:
    """Moments ``float32[B, G, 2P]`` of pictures that lie in a row one behind the other.

    All have ``rows * rows`` tokens, so that the i-th one begins at token ``i * rows * rows``,
    whatever trajectories a row holds. Pictures of a row pass one after the other, rows side by
    side.

    Args:
      codec: of the model.
      params: of the autoencoder.
      pixel_BxGxS: uint8 squares of `codec.side` pixels.
      rows: tokens a side of a picture.
    """
    b, g, s = pixel_BxGxS.shape
    tokens = rows * rows
    count = g // tokens
    cut = pixel_BxGxS[:, : count * tokens].reshape(b, count, tokens, s).swapaxes(0, 1)
    pictures_KxBxHxWx3 = unpatchify(cut, codec.side, rows, rows)
    moments = jax.lax.map(lambda one: codec.moments(params, one), pictures_KxBxHxWx3)
    packed = moments.swapaxes(0, 1).reshape(b, count * tokens, moments.shape[-1])
    return jnp.pad(packed, ((0, 0), (0, g - count * tokens), (0, 0)))
