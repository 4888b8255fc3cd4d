"""Sizes, resizing and pixel types of pictures, against those of BAGEL's code."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from process_gen.core.configs import ModelConfig
from process_gen.core.errors import DataError
from process_gen.data import images


@pytest.mark.parametrize(
    ("given", "vae", "vae_tokens", "vit", "vit_tokens"),
    [
        ((1024, 1024), (1024, 1024), 4096, (980, 980), 4900),
        ((640, 480), (688, 512), 1376, (686, 518), 1813),
        ((1920, 1080), (1024, 576), 2304, (980, 546), 2730),
        ((300, 200), (768, 512), 1536, (770, 518), 2035),
        ((4000, 500), (1024, 128), 512, (980, 126), 630),
    ],
)
def test_golden_sizes(given, vae, vae_tokens, vit, vit_tokens):
    assert images.VAE.size(*given) == vae
    assert images.VAE.tokens(*given) == vae_tokens
    assert images.VIT_INFERENCE.size(*vae) == vit
    assert images.VIT_INFERENCE.tokens(*vae) == vit_tokens
    # The understanding copy depends on the first resize; most sizes would differ without it.
    latent, und = images.context_pictures(Image.new("RGB", given), latent=True)
    assert latent.shape == (*vae[::-1], 3) and und.shape == (*vit[::-1], 3)
    assert images.context_pictures(Image.new("RGB", given), latent=False)[0] is None


def test_first_resize_matters():
    assert images.VIT_INFERENCE.size(300, 200) != images.VIT_INFERENCE.size(768, 512)


def test_rounding_is_half_to_even_and_at_least_one_stride():
    rule = images.Resize(longest=1000, shortest=1, stride=16)
    assert rule.size(40, 56) == (32, 64)  # 2.5 -> 2 and 3.5 -> 4 strides
    assert rule.size(1000, 3) == (992, 16)


def test_budget_shrinks_by_the_ratio_of_areas():
    rule = images.Resize(longest=1000, shortest=1, stride=10, max_pixels=400 * 400)
    # 800 x 800 is four times the budget: a quarter of each side, although a half would do.
    assert rule.size(800, 800) == (200, 200)
    assert rule.size(400, 400) == (400, 400)
    assert rule.size(400, 400, pictures=2) == (200, 200)


def test_short_side_may_not_push_the_long_side_over_its_limit():
    assert images.VAE.size(2000, 100) == (1024, 48)
    with pytest.raises(DataError, match="0x5"):
        images.VAE.size(0, 5)


def test_resizing_is_antialiased():
    """A fine checkerboard shrinks to grey; a filter of fixed width would leave stripes."""
    board = np.indices((1024, 1024)).sum(0) % 2 * 255
    board = np.repeat(board[..., None], 3, -1).astype(np.uint8)
    small = np.asarray(images.Resize(256, 1, 16)(Image.fromarray(board)), np.float32)
    assert small.shape == (256, 256, 3)
    assert np.abs(small - 127.5).max() < 12
    nearest = Image.fromarray(board).resize((100, 100), Image.Resampling.NEAREST)
    assert np.asarray(nearest, np.float32).std() > 50


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB", "L", "1", "CMYK", "I;16"])
def test_every_mode_becomes_rgb(mode):
    if mode == "I;16":
        image = Image.fromarray(np.zeros((4, 6), np.uint16))
    else:
        image = Image.new(mode, (6, 4))
    assert images.to_rgb(image).mode == "RGB"
    assert np.asarray(images.to_rgb(image)).shape == (4, 6, 3)


def test_transparency_becomes_white():
    half = Image.new("RGBA", (2, 2), (255, 0, 0, 0))
    half.putpixel((0, 0), (255, 0, 0, 255))
    half.putpixel((1, 0), (0, 0, 0, 128))
    rgb = images.to_rgb(half)
    assert rgb.getpixel((1, 1)) == (255, 255, 255)
    assert rgb.getpixel((0, 0)) == (255, 0, 0)
    assert abs(rgb.getpixel((1, 0))[0] - 127) <= 1
    palette = Image.new("P", (2, 2), 0)
    palette.putpalette([9, 9, 9, 200, 0, 0])
    palette.info["transparency"] = 0
    palette.putpixel((0, 0), 1)
    assert images.to_rgb(palette).getpixel((1, 1)) == (255, 255, 255)
    assert images.to_rgb(palette).getpixel((0, 0)) == (200, 0, 0)


def test_pixel_types():
    levels = np.arange(256, dtype=np.uint8)
    assert images.normalise(levels)[[0, 255]].tolist() == [-1.0, 1.0]
    # Truncation keeps whole levels up to one, by rounding of the way there and back.
    back = images.to_uint8(images.normalise(levels)).astype(int)
    assert np.abs(back - levels).max() <= 1
    assert images.to_uint8(np.array([-3.0, 3.0])).tolist() == [0, 255]
    assert images.to_uint8(np.array([1 - 2 / 255 * 0.1])).tolist() == [254]  # not rounded


def test_rules_of_a_model_are_those_of_the_release():
    released = ModelConfig(
        codec="flux", codec_channels=16, patch=2, latent_grid=64, und_patch=14, und_grid=70
    )
    assert images.latent_rule(released) == images.VAE
    assert images.und_rule(released) == images.VIT_INFERENCE
    assert images.painted_copy(released) == images.VIT_EDIT
    assert images.painted_copy(ModelConfig()) is None
    small = ModelConfig(
        codec="flux", codec_channels=16, patch=2, latent_grid=4, und_patch=14, und_grid=8
    )
    for width, height in ((640, 480), (9, 700), (64, 64), (5000, 33)):
        picture = Image.new("RGB", (width, height))
        rules = images.latent_rule(small), images.und_rule(small)
        first, second = images.context_pictures(picture, latent=True, rules=rules)
        for copy, side, grid in ((first, 16, 4), (second, 14, 8)):
            assert not copy.shape[0] % side and not copy.shape[1] % side
            assert max(copy.shape[:2]) <= grid * side
