"""Tokens of the FLUX autoencoder against the reference's arrays."""

from __future__ import annotations

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from process_gen.checkpoint import bagel, bagel_config, safetensors_io
from process_gen.core.patches import patchify
from process_gen.models import image_codecs
from process_gen.models.flux_codec import FluxCodec
from process_gen.models.shapes import BAGEL

FIXTURES = Path(__file__).parents[1] / "parity" / "fixtures"
PATCH = 2


@pytest.fixture(scope="module")
def loaded():
    folder = FIXTURES / "checkpoint"
    with safetensors_io.open_folder(folder, ("ae",)) as reader:
        settings = bagel_config.read_settings(folder)
        sizes = bagel_config.vae_sizes(reader.infos, settings, "ae")
    return FluxCodec(sizes, PATCH), bagel.load_vae(folder, sizes, BAGEL)


@pytest.fixture(scope="module")
def case():
    return np.load(FIXTURES / "e_vae.npz")


def tokens(array):
    return patchify(np.moveaxis(array, 0, -1), PATCH)


def test_tokens_of_a_picture(loaded, case):
    codec, params = loaded
    image = np.round((np.moveaxis(case["in.image_0"], 0, -1) * 0.5 + 0.5) * 255).astype(np.uint8)
    moments = codec.moments(params, jnp.asarray(image)[None])
    mean, logvar = tokens(case["out.mean_0"]), tokens(case["out.logvar_0"])
    np.testing.assert_allclose(moments[0], np.concatenate([mean, logvar], -1), atol=5e-5, rtol=1e-4)
    latent = codec.sample(moments, None)[0]
    np.testing.assert_allclose(latent, tokens(case["out.latent_0"]), atol=5e-5, rtol=1e-4)
    sampled = codec.sample(moments, jnp.asarray(tokens(case["in.eps_0"]))[None])[0]
    wanted = tokens(case["out.latent_sampled_0"])
    np.testing.assert_allclose(sampled, wanted, atol=5e-5, rtol=1e-4)
    assert not np.allclose(latent, wanted, atol=1e-2)  # partner: the noise does something
    again = codec.encode_pictures(params, jnp.asarray(image)[None])[0]
    np.testing.assert_allclose(again, latent, atol=1e-5)


def test_tokens_become_the_picture_truncated(loaded, case):
    codec, params = loaded
    latent = tokens(case["out.latent_0"])
    rows, columns = (side // PATCH for side in case["out.latent_0"].shape[1:])
    picture = np.asarray(codec.decode(params, jnp.asarray(latent)[None], rows, columns))[0]
    decoded = np.moveaxis(case["out.decoded_0"], 0, -1)
    exact = np.clip(decoded * 0.5 + 0.5, 0, 1) * 255
    assert picture.shape == (rows * codec.side, columns * codec.side, 3)
    # Values within 1e-3 of a whole number may fall on either side of it.
    clear = np.abs(exact - np.round(exact)) > 1e-3
    np.testing.assert_array_equal(picture[clear], np.floor(exact)[clear])
    assert np.any(np.round(exact)[clear] != picture[clear])  # partner: rounding is not the same


def test_the_codec_of_a_model(loaded):
    from process_gen.core.configs import ModelConfig

    assert isinstance(image_codecs.build(ModelConfig()), image_codecs.PixelCodec)
    flux = ModelConfig(codec="flux", codec_channels=16, patch=2)
    assert image_codecs.build(flux).side == 16
