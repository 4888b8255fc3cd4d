"""What a batch holds of pictures becomes x0."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from process_gen.core.batch import Lengths, PatchSizes, lay_out, pack, stack
from process_gen.core.configs import Config, GrammarConfig, MeshConfig, ModelConfig
from process_gen.core.encoder_sizes import VaeSizes
from process_gen.core.grammar import to_segments
from process_gen.core.trajectory import Trajectory
from process_gen.data.tokenizer import load_tokenizer, token_ids
from process_gen.models.flux_codec import FluxCodec
from process_gen.models.image_codecs import normalise
from process_gen.models.shapes import vae_shapes
from process_gen.sharding.mesh import make_mesh
from process_gen.train import latents

ROOT = Path(__file__).resolve().parents[2]
SIZES = VaeSizes(channels=32, multipliers=(1, 2), blocks=1, latent_channels=2)
MODEL = ModelConfig(codec="flux", patch=2, codec_channels=2, latent_grid=8, vae=SIZES)
PICTURE = np.random.default_rng(0).integers(0, 256, (8, 12, 3), np.uint8)


def weights():
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda s: rng.normal(0, 0.2, s.shape).astype(np.float32), vae_shapes(SIZES))


@pytest.fixture(scope="module")
def params():
    return weights()


def batch_of(*pictures):
    ids, sizes = token_ids(load_tokenizer()), PatchSizes(4, 4, 8, 8)
    runs = [
        lay_out(
            to_segments(Trajectory("x", "one_shot", final_image=p), GrammarConfig()), ids, sizes
        )
        for p in pictures
    ]
    return stack([pack(runs, Lengths(64, 0, 32), sizes)])


def test_prepared_batches_hold_samples_of_the_autoencoder(params):
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    batch = batch_of(PICTURE, PICTURE[:, ::-1].copy())
    prepared = latents.make_prepare(Config(model=MODEL), params, mesh)(batch)
    assert prepared.latent_BxGxP.shape == (1, 32, 2 * MODEL.latent_features)
    np.testing.assert_array_equal(prepared.latent_id_BxG, batch.latent_id_BxG)
    codec, way = FluxCodec(SIZES, 2), latents.of_model(MODEL)
    first, second = (
        np.asarray(codec.encode_pictures(params, p[None]))[0] for p in (PICTURE, PICTURE[:, ::-1])
    )
    mean = np.asarray(way.x0(prepared.latent_BxGxP, None))
    np.testing.assert_allclose(mean[0, :6], first, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(mean[0, 6:12], second, rtol=1e-4, atol=1e-5)
    assert np.abs(first - second).max() > 0.1  # partner: another picture has other latents
    assert not np.asarray(prepared.latent_BxGxP)[:, 12:].any()
    assert way.features(prepared.latent_BxGxP.shape[-1]) == MODEL.latent_features
    shape = (1, 32, MODEL.latent_features)
    one, other = (way.draw(jax.random.key(seed), shape) for seed in (0, 1))
    drawn = [np.asarray(way.x0(prepared.latent_BxGxP, draw))[0, :6] for draw in (one, other)]
    assert np.abs(drawn[0] - first).max() > 1e-3 and np.abs(drawn[0] - drawn[1]).max() > 1e-3


def test_pixels_are_their_own_latents():
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    batch = batch_of(PICTURE)
    prepared = latents.make_prepare(Config(), None, mesh)(batch)
    way = latents.of_model(ModelConfig())
    wanted = normalise(jnp.asarray(batch.latent_BxGxP))
    np.testing.assert_array_equal(way.x0(prepared.latent_BxGxP, None), wanted)
    assert way.draw(jax.random.key(0), (1, 32, 48)) is None and way.features(48) == 48


TWO_PROCESSES = """
import sys
import jax
import numpy as np

place, process = sys.argv[1], int(sys.argv[2])
jax.distributed.initialize(place, 2, process)
from process_gen.core.configs import Config, MeshConfig
from process_gen.sharding import rules
from process_gen.sharding.mesh import make_mesh
from process_gen.train import latents
from process_gen.core.batch import stack
from tests.train.test_latents import MODEL, PICTURE, batch_of, weights

mesh = make_mesh(MeshConfig(data=2, fsdp=-1))  # two devices of each process
one, other = PICTURE, PICTURE[::-1, ::-1].copy()
# Rows differ in what has to be encoded, and in how many sizes; the global batch has four.
rows = [[one], [other, one], [one.swapaxes(0, 1)], []]
place = latents.make_prepare(Config(model=MODEL), weights(), mesh)
mine = [batch_of(*rows[i]) for i in range(4) if i // 2 == process]
batch = jax.tree.map(lambda *parts: np.concatenate(parts), *mine)
assert rules.row_blocks(mesh) == ((2 * process, 2 * process + 1), 4)
with jax.set_mesh(mesh):
    prepared = place(batch).latent_BxGxP
assert prepared.shape[0] == 4 and len(prepared.addressable_shards) == 2
alone_mesh = make_mesh(MeshConfig(), jax.local_devices()[:1])
for shard in prepared.addressable_shards:
    row = shard.index[0].start
    alone = latents.make_prepare(Config(model=MODEL), weights(), alone_mesh)(batch_of(*rows[row]))
    np.testing.assert_allclose(shard.data, alone.latent_BxGxP, rtol=1e-4, atol=1e-5)
    assert (np.abs(shard.data).max() > 0.1) == bool(rows[row])
    print("row", row)
"""


@pytest.mark.slow
@pytest.mark.multidevice
def test_two_processes_encode_their_own_rows():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        place = f"localhost:{free.getsockname()[1]}"
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=2"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", TWO_PROCESSES, place, str(i)],
            env={**environment, "PYTHONPATH": str(ROOT)},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    printed = [process.communicate() for process in running]
    assert [p.returncode for p in running] == [0, 0], printed
    rows = [[x for x in out.splitlines() if x.startswith("row")] for out, _ in printed]
    assert rows == [["row 0", "row 1"], ["row 2", "row 3"]]
