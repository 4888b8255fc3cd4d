"""A painter in two small files: comes back as it was, and damage is refused by name."""

from __future__ import annotations

import json

import jax
import ml_dtypes
import numpy as np
import pytest

from process_gen.checkpoint import shipped
from process_gen.core.configs import from_mapping
from process_gen.core.errors import CheckpointError

CONFIG = from_mapping({"model": {"width": 32}, "sampler": {"guidance": 2.5}})


def weights(scale=1.0):
    rng = np.random.default_rng(0)
    return {
        "layers": {"und": {"kernel": (scale * rng.standard_normal((3, 4))).astype(np.float32)}},
        "embed": rng.standard_normal(5).astype(np.float32),
    }


def test_weights_come_back_in_bfloat16_precision(tmp_path):
    shipped.write(tmp_path, CONFIG, weights(), {"scores": {"exact": 0.9}})
    config, params, card = shipped.read(tmp_path)
    assert config == CONFIG and card["scores"] == {"exact": 0.9} and card["parameters"] == 17
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(a, b.astype(ml_dtypes.bfloat16)),
        params,
        weights(),
    )
    assert params["embed"].dtype == np.float32
    assert not np.array_equal(params["embed"], weights()["embed"])
    assert shipped.is_painter(tmp_path) and not shipped.is_painter(tmp_path / "none")


def test_the_same_weights_give_the_same_bytes(tmp_path):
    hashes = [
        shipped.write(tmp_path / str(i), CONFIG, weights(scale), {})["weights_sha256"]
        for i, scale in enumerate((1.0, 1.0, 1.5))
    ]
    assert hashes[0] == hashes[1] != hashes[2]


def change_card(folder, **changes):
    card = json.loads((folder / shipped.CARD).read_text())
    (folder / shipped.CARD).write_text(json.dumps({**card, **changes}))


def flip(folder):
    data = bytearray((folder / shipped.WEIGHTS).read_bytes())
    data[-3] ^= 1
    (folder / shipped.WEIGHTS).write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (flip, "its hash is not the card's"),
        (lambda f: (f / shipped.WEIGHTS).write_bytes(b""), "its hash is not the card's"),
        (lambda f: (f / shipped.WEIGHTS).unlink(), "holds no painter"),
        (lambda f: (f / shipped.CARD).write_text("{"), "holds no painter"),
        (lambda f: (f / shipped.CARD).write_text("[]"), "not of format 1"),
        (lambda f: change_card(f, format=2), "not of format 1"),
        (lambda f: change_card(f, config={"model": {"widht": 3}}), "unknown config key"),
    ],
)
def test_damage_is_refused(tmp_path, damage, said):
    shipped.write(tmp_path, CONFIG, weights(), {})
    damage(tmp_path)
    with pytest.raises(CheckpointError, match=said):
        shipped.read(tmp_path)


def test_a_model_with_an_autoencoder_is_refused(tmp_path):
    config = from_mapping(
        {"model": {"codec": "flux", "codec_channels": 4, "vae": {"latent_channels": 4}}}
    )
    with pytest.raises(CheckpointError, match="launch.export_bagel"):
        shipped.write(tmp_path, config, weights(), {})
