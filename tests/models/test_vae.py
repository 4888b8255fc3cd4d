"""The FLUX autoencoder against the reference's arrays, and that each convention matters."""

from __future__ import annotations

import re
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from process_gen.checkpoint import name_map, safetensors_io
from process_gen.core.encoder_sizes import VaeSizes
from process_gen.models import vae
from process_gen.models.shapes import vae_shapes

FIXTURES = Path(__file__).parents[1] / "parity" / "fixtures"
CFG = VaeSizes(channels=32, multipliers=(1, 2), latent_channels=4)
TOLERANCE = 5e-5


@pytest.fixture(scope="module")
def case():
    return dict(np.load(FIXTURES / "e_vae.npz"))


@pytest.fixture(scope="module")
def model():
    entries = name_map.vae_entries(vae_shapes(CFG))
    with safetensors_io.open_folder(FIXTURES / "checkpoint", ("ae",)) as reader:
        params = name_map.unflatten(
            {e.path: name_map.from_official(reader.read(e.key), e.layout) for e in entries}
        )

    moments, _, decode = vae.functions(CFG)
    return params, moments, decode


def _error(got, wanted) -> float:
    """Largest error over the largest value; `wanted` has its channels first."""
    wanted = np.moveaxis(wanted, -3, -1)
    return float(np.abs(np.asarray(got) - wanted).max() / np.abs(wanted).max())


def _last(array):
    return np.moveaxis(array, -3, -1)[None]


@pytest.mark.parametrize("k", [0, 1])
def test_encode_and_decode_match_the_reference(case, model, k):
    params, moments, decode = model
    mean, log_variance = moments(params, _last(case[f"in.image_{k}"]))
    assert _error(mean[0], case[f"out.mean_{k}"]) < TOLERANCE
    assert _error(log_variance[0], case[f"out.logvar_{k}"]) < TOLERANCE
    latent = vae.sample_latent(mean, log_variance, None, CFG)
    assert _error(latent[0], case[f"out.latent_{k}"]) < TOLERANCE
    sampled = vae.sample_latent(mean, log_variance, _last(case[f"in.eps_{k}"]), CFG)
    assert _error(sampled[0], case[f"out.latent_sampled_{k}"]) < TOLERANCE
    assert _error(latent[0], case[f"out.latent_sampled_{k}"]) > 1e-2
    assert _error(decode(params, latent)[0], case[f"out.decoded_{k}"]) < TOLERANCE
    random = decode(params, _last(case[f"in.random_latent_{k}"]))
    assert _error(random[0], case[f"out.decoded_random_{k}"]) < TOLERANCE


def test_padding_is_part_of_the_picture(case, model):
    params, moments, _ = model
    mean, log_variance = moments(params, np.moveaxis(case["in.padded_images"], 1, -1))
    latent = vae.sample_latent(mean, log_variance, None, CFG)
    assert _error(latent, case["out.latent_padded_batch"]) < TOLERANCE
    alone = case["out.latent_0"]
    cropped = np.asarray(latent)[0, : alone.shape[1], : alone.shape[2]]
    assert _error(cropped, alone) > 1e-3


def test_one_changed_weight_is_noticed(case, model):
    params, moments, _ = model
    changed = jax.tree.map(np.array, params)
    changed["encoder"]["mid"]["attn_1"]["q"]["kernel"] *= 1.01
    mean, _ = moments(changed, _last(case["in.image_0"]))
    assert _error(mean[0], case["out.mean_0"]) > TOLERANCE


def test_attention_in_parts_equals_whole(case, model, monkeypatch):
    attention = vae.Attention(32, rngs=nnx.Rngs(1))
    x = np.random.default_rng(0).normal(size=(2, 5, 7, 32)).astype(np.float32)
    whole = attention(x)
    monkeypatch.setattr(vae, "ATTENTION_ROWS", 8)
    np.testing.assert_allclose(attention(x), whole, rtol=1e-5, atol=1e-6)
    assert np.abs(np.asarray(attention(x[:, ::-1])) - np.asarray(whole)).max() > 1e-2


def test_released_sizes():
    """Number and total size of the tensors in the released `ae.safetensors`."""
    entries = name_map.vae_entries(vae_shapes(VaeSizes()))
    assert len(entries) == len({e.key for e in entries}) == 244
    assert sum(int(np.prod(e.shape)) for e in entries) == 83_819_683
    assert VaeSizes().downsample == 8
    by_key = {e.key: e.shape for e in entries}
    assert by_key["encoder.down.1.block.0.nin_shortcut.weight"] == (256, 128, 1, 1)
    assert by_key["encoder.down.2.downsample.conv.weight"] == (512, 512, 3, 3)
    assert by_key["decoder.up.3.upsample.conv.weight"] == (512, 512, 3, 3)
    assert by_key["decoder.up.0.block.0.conv1.weight"] == (128, 256, 3, 3)
    assert by_key["encoder.conv_out.weight"] == (32, 512, 3, 3)
    assert "decoder.up.0.upsample.conv.weight" not in by_key


def test_products_are_as_exact_as_asked(model):
    """By default not exact on accelerators, and never in bfloat16 alone, which is TPUs' default."""
    params, moments, decode = model
    picture, latent = np.zeros((1, 16, 16, 3), np.float32), np.zeros((1, 8, 8, 4), np.float32)

    def precisions():
        texts = (jax.jit(moments).lower(params, picture), jax.jit(decode).lower(params, latent))
        return {
            name
            for text in texts
            for line in re.findall(r"precision\w* = \[[^]]*", text.as_text())
            for name in re.findall("[A-Z]{3,}", line)
        }

    for asked, written in ((None, {"HIGH"}), ("highest", {"HIGHEST"})):
        jax.clear_caches()
        with jax.default_matmul_precision(asked):
            assert precisions() == written
