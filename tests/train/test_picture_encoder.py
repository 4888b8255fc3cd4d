"""Pictures of a batch to moments: each as if alone, few programs, copies once."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from process_gen.core.batch import Lengths, PatchSizes, lay_out, pack, stack
from process_gen.core.configs import GrammarConfig, MeshConfig
from process_gen.core.encoder_sizes import VaeSizes
from process_gen.core.errors import DataError
from process_gen.core.grammar import to_segments
from process_gen.core.trajectory import Step, Trajectory
from process_gen.data.tokenizer import load_tokenizer, token_ids
from process_gen.models.flux_codec import FluxCodec
from process_gen.models.shapes import vae_shapes
from process_gen.sharding.mesh import make_mesh
from process_gen.train.picture_encoder import Picture, PictureEncoder, find_pictures

SIZES = VaeSizes(channels=32, multipliers=(1, 2), blocks=1, latent_channels=2)
GRID = 8  # tokens a side that the position table holds; a token has 4 px a side
# The second and the third are smaller than their canvas, 8 x 16 px.
SHAPES = ((8, 8), (8, 12), (4, 16), (8, 12))


@pytest.fixture(scope="module")
def codec():
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda s: rng.normal(0, 0.2, s.shape).astype(np.float32), vae_shapes(SIZES)
    )
    return FluxCodec(SIZES, 2), params


@pytest.fixture(scope="module")
def encoder(codec):
    return PictureEncoder(*codec, GRID, make_mesh(MeshConfig(), jax.devices()[:1]))


def trajectory(*sizes, seed=0):
    rng = np.random.default_rng(seed)
    steps = tuple(
        Step("<ins>a</ins><des>a</des>", rng.integers(0, 256, (h, w, 3), np.uint8), "fine")
        for h, w in sizes
    )
    return Trajectory("x", steps=steps, final_image=steps[-1].sketch)


def batch_of(*rows, copies=2):
    ids, sizes = token_ids(load_tokenizer()), PatchSizes(4, 4, GRID, GRID)
    grammar = GrammarConfig(context_images="vae", noise_copies=copies)
    made = []
    for trajectories in rows:
        runs = [lay_out(to_segments(t, grammar), ids, sizes) for t in trajectories]
        made.append(pack(runs, Lengths(256, 0, 60), sizes))
    return stack(made)


def find(batch):
    return find_pictures(batch.latent_BxGxP, batch.latent_id_BxG, batch.gen.order, GRID)


def alone(codec, image):
    return np.asarray(codec[0].moments(codec[1], image[None]))[0]


def test_every_picture_is_encoded_as_if_alone(codec, encoder):
    first, second = trajectory(*SHAPES[:2]), trajectory(*SHAPES[2:], seed=1)
    batch = batch_of([first, second], [second])
    pictures, place = find(batch)
    assert len(pictures) == 6  # of 18 copies, two noised and a clean one of each
    moments = np.asarray(encoder(pictures, place.size))
    for row, trajectories in enumerate(([first, second], [second])):
        at = 0
        for image in (image for t in trajectories for image in t.images):
            wanted = alone(codec, image)
            for _ in range(3):
                found = moments[place[row, at : at + len(wanted)]]
                np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
                at += len(wanted)
        assert (place[row, at:] == -1).all()
    # Partner: without being told where the picture ends, the autoencoder sees the canvas.
    canvas = np.zeros((8, 16, 3), np.uint8)
    canvas[:, :12] = first.images[1]
    plain = alone(codec, canvas).reshape(2, 4, -1)[:, :3].reshape(6, -1)
    assert np.abs(plain - alone(codec, first.images[1])).max() > 0.1


def test_sizes_share_programs(encoder):
    rng = np.random.default_rng(0)
    for rows, columns in ((2, 2), (1, 1), (2, 1), (1, 3), (2, 3), (2, 4), (1, 4)):
        picture = Picture(rng.integers(0, 256, (rows, columns, 48), np.uint8), 0)
        encoder([picture], 120)
    assert encoder.sizes == {(2, 2), (2, 4)}
    assert encoder._add._cache_size() == 2


def test_copies_of_a_picture_are_encoded_once_and_others_are_not():
    same = trajectory((8, 8))
    row = [same, same, trajectory((8, 8), seed=1)]
    pictures, place = find(batch_of(row))
    assert [p.start for p in pictures] == [0, 24]  # the neighbours too, being equal
    assert place[0, :36].tolist() == [*(6 * [0, 1, 2, 3]), *(3 * [24, 25, 26, 27])]
    assert find(batch_of([]))[0] == []


def test_ids_that_are_no_pictures_are_refused():
    batch = batch_of([trajectory((8, 8), (8, 12))], copies=1)
    with pytest.raises(DataError, match="row 0: the latent tokens do not begin"):
        find(batch._replace(latent_id_BxG=batch.latent_id_BxG + 1))
    broken = batch.latent_id_BxG.copy()
    broken[0, 3] = 2  # three tokens in the first of two rows
    with pytest.raises(DataError, match="4 tokens are no picture of 3 wide"):
        find(batch._replace(latent_id_BxG=broken))


def test_nothing_to_encode(encoder):
    assert not np.asarray(encoder([], 3)).any()
