"""Training on an imported checkpoint: from pictures to losses, on one device and on several."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import process_gen
from configs import bagel_7b, bagel_debug
from launch import common, import_bagel
from process_gen.checkpoint import manager
from process_gen.core import configs
from process_gen.core.batch import PackedBatch, Place
from process_gen.core.errors import CheckpointError, ConfigError
from process_gen.core.trajectory import Step, Trajectory, plan_text
from process_gen.data import builders, rows
from process_gen.models import functional
from process_gen.train import latents, optimizer, start, state, step
from tests.evaluation.test_other_sizes import SIZES
from tests.parity import make_fixtures

ROOT = Path(__file__).resolve().parents[2]
CHECKPOINT = ROOT / "tests" / "parity" / "fixtures" / "checkpoint"


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    output = tmp_path_factory.mktemp("bagel") / "imported"
    arguments = ["x", f"--source={CHECKPOINT}", f"--output={output}", "--tokenizer=bytes"]
    common.run(import_bagel.main, import_bagel.define_flags, "", arguments)
    return output


def debug(imported, **train_section):
    mapping = bagel_debug.get_config().to_dict()
    mapping["train"] |= {"init_from": str(imported), **train_section}
    return configs.from_mapping(mapping)


SCRIPT = """
import json, sys
import jax
from process_gen.core import configs
from process_gen.data import pipeline
from process_gen.models import functional
from process_gen.sharding.mesh import make_mesh
from process_gen.train import latents, loop, optimizer, start, step, writers

config, workdir, vae = configs.from_mapping(json.loads(sys.argv[1])), sys.argv[2], None
assert jax.device_count() == 4

class Losses(writers.MetricWriter):
    def __init__(self): self.found = []
    def write_scalars(self, step, scalars): self.found.append([step, scalars["train/loss"]])

def run(name, devices, seed=0, **mesh):
    mapping = configs.to_mapping(config)
    mapping["train"] |= {"seed": seed}
    own = start.adopt(configs.from_mapping(mapping | {"mesh": mesh}), workdir + name)
    grid, way = make_mesh(own.mesh, jax.devices()[:devices]), latents.of_model(own.model)
    fns = functional.build(own.model)
    tx, schedule = optimizer.make_optimizer(own.optimizer, fns.logical_axes)
    writer = Losses()
    loop.fit(
        own, workdir + name, fns=fns, tx=tx, mesh=grid, writer=writer, eval_batches=[],
        train_step=step.make_train_step(fns, tx, schedule, own, way), eval_step=None,
        dataset=pipeline.train_dataset(own),
        prepare=latents.make_prepare(own, start.frozen_codec(own), grid))
    return writer.found

print(json.dumps([run("/a", 1), run("/b", 4, data=2, fsdp=2), run("/c", 1, seed=1)]))
"""


def pictures_of_many_shapes(folder):
    """Eight short trajectories; a picture comes as a noised and a clean copy and as patches."""
    rng = np.random.default_rng(0)
    made = []
    for height, width in ((20, 40), (64, 48), (8, 8), (90, 31)) * 2:
        picture = rng.integers(0, 256, (height, width, 3), np.uint8)
        step = Step(plan_text("a dot", "a dot"), picture, "fine")
        made.append(Trajectory("dot", steps=(step,), final_image=picture))
    builders.write_folder(str(folder), made)
    return {
        "sources": [{"kind": "folder", "path": str(folder)}], "eval_sources": [], "image_size": 0,
        "text_len": 160, "und_len": 32, "gen_len": 144, "rows": 4,
    }  # fmt: skip


def check_one_and_four_devices(folder, tmp_path, **data):
    mapping = configs.to_mapping(debug(folder, steps=2, eval_every=0, save_every=0))
    mapping["data"] |= pictures_of_many_shapes(tmp_path / "data") | data
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(mapping), str(tmp_path)],
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    one, four, other = np.array(json.loads(done.stdout.splitlines()[-1]))
    assert one[:, 0].tolist() == [1, 2] and np.isfinite(one).all()
    np.testing.assert_allclose(four, one, rtol=1e-5)
    assert np.abs(other[:, 1] / one[:, 1] - 1).max() > 1e-4  # other times, noise and latents


@pytest.mark.slow
@pytest.mark.multidevice
def test_one_and_four_devices_have_the_same_losses(imported, tmp_path):
    check_one_and_four_devices(imported, tmp_path)


@pytest.mark.slow
@pytest.mark.multidevice
def test_other_sizes_train_and_paint(tmp_path):
    """As above on a synthetic checkpoint, then a picture by the weights that came out."""
    model = dataclasses.replace(SIZES["three"], vocab_size=300)  # bytes and four special ids
    make_fixtures.write_checkpoint(tmp_path / "checkpoint", model)
    folder = tmp_path / "imported"
    arguments = ["x", f"--source={tmp_path / 'checkpoint'}", f"--output={folder}"]
    arguments.append("--tokenizer=bytes")
    common.run(import_bagel.main, import_bagel.define_flags, "", arguments)
    check_one_and_four_devices(folder, tmp_path, und_len=64)
    painter = process_gen.load(tmp_path / "a")
    pictures = [
        next(iter(painter.paint(["dot"], mode="one_shot", seed=seed, size=(24, 60)))).final_image
        for seed in (0, 0, 1)
    ]
    assert pictures[0].shape == (24, 60, 3)
    np.testing.assert_array_equal(pictures[0], pictures[1])
    assert (pictures[0] != pictures[2]).any()


def test_what_an_import_decides(imported, tmp_path):
    config = start.adopt(debug(imported), tmp_path)
    stored = manager.find(imported)[2]
    assert config.model == stored.model and config.model != debug(imported).model
    assert config.data.tokenizer == str(imported / "tokenizer.json")
    mapping = configs.to_mapping(debug(imported))
    mapping["model"]["remat"] = "full"  # how the model is run stays the run's own
    mapping["data"]["tokenizer"] = "mine.json"
    own = start.adopt(configs.from_mapping(mapping), tmp_path)
    assert (own.model.remat, own.data.tokenizer) == ("full", "mine.json")
    with pytest.raises(ConfigError, match="train.init_from=DIR"):
        start.adopt(debug(""), tmp_path)
    with pytest.raises(CheckpointError, match="nowhere"):
        start.adopt(debug(tmp_path / "nowhere"), tmp_path)
    mapping["train"]["init_model"] = False
    plain = configs.from_mapping(mapping)
    assert start.adopt(plain, tmp_path) is plain


def test_bagel_7b_is_the_released_model_and_its_step_traces():
    config = configs.from_mapping(bagel_7b.get_config().to_dict())
    model, data = config.model, config.data
    fns = functional.build(model)
    tx, schedule = optimizer.make_optimizer(config.optimizer, fns.logical_axes)
    shapes = jax.eval_shape(
        lambda key: state.make_state(fns.init(key), tx, 1),
        jax.random.key(0),
    )
    tables = (64 * 64 + 70 * 70) * 3584  # frozen, not among the weights
    assert sum(x.size for x in jax.tree.leaves(shapes.params)) + tables == 14_607_260_128
    assert 32_000 < data.text_len + data.und_len + data.gen_len < 34_000

    def part(length):
        return jax.ShapeDtypeStruct((1, length), jnp.int32)

    def floats(length, features, dtype):
        return jax.ShapeDtypeStruct((1, length, features), dtype)

    t, v, g = part(data.text_len), part(data.und_len), part(data.gen_len)
    batch = PackedBatch(
        Place(t, t, t, t), Place(v, v, v, v), Place(g, g, g, g), t, t, t,
        floats(data.und_len, model.und_features, jnp.uint8), v, v,
        floats(data.gen_len, 2 * model.latent_features, jnp.float32), g, g, g,
    )  # fmt: skip
    run = step.make_train_step(fns, tx, schedule, config, latents.of_model(model))
    after, metrics = jax.eval_shape(run, shapes, batch, jax.random.key(0))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(
        lambda x: (x.shape, x.dtype), shapes
    )
    assert metrics["loss"][0].dtype == jnp.float32


def test_bagel_7b_reads_a_folder():
    config = configs.from_mapping(bagel_7b.get_config("somewhere").to_dict())
    assert config.data.sources == (configs.SourceConfig("folder", path="somewhere"),)
    assert rows.patch_sizes(config).latent == 16
