from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from process_gen.core.patches import patchify, unpatchify
from process_gen.models.image_codecs import PixelCodec, normalise, quantise


def test_every_pixel_value_comes_back():
    values = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(quantise(normalise(jnp.asarray(values))), values)


def test_values_outside_are_clipped():
    assert quantise(jnp.array([-7.0, 7.0])).tolist() == [0, 255]


def test_a_picture_survives_the_codec():
    picture = np.random.default_rng(0).integers(0, 256, (1, 16, 24, 3), np.uint8)
    codec = PixelCodec(8)
    latent = codec.encode(jnp.asarray(patchify(picture, 8)))
    assert latent.shape == (1, 6, 192)
    np.testing.assert_array_equal(codec.decode(None, latent, 2, 3), picture)
    assert not np.array_equal(codec.decode(None, latent, 3, 2).reshape(-1), picture.reshape(-1))


def test_patches_run_row_by_row_channel_fastest():
    picture = np.arange(4 * 6 * 3).reshape(4, 6, 3)
    patches = patchify(picture, 2)
    assert patches.shape == (6, 12)
    np.testing.assert_array_equal(patches[1], picture[:2, 2:4].ravel())
    np.testing.assert_array_equal(patches[3], picture[2:, :2].ravel())
    np.testing.assert_array_equal(unpatchify(patches, 2, 2, 3), picture)


def test_a_picture_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="5x4"):
        patchify(np.zeros((5, 4, 3)), 2)
