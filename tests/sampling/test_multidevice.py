"""Painting with weights that are spread over four devices, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CHECKPOINT = ROOT / "tests" / "parity" / "fixtures" / "checkpoint"

SCRIPT = """
import json, sys
import jax, numpy as np
import process_gen
from launch import common, import_bagel
from process_gen.core.configs import MeshConfig
from process_gen.models import functional
from process_gen.sampling.painter import Painter
from process_gen.sharding import rules
from process_gen.sharding.mesh import make_mesh

source, folder = sys.argv[1:]
arguments = ["x", f"--source={source}", f"--output={folder}", "--tokenizer=bytes"]
common.run(import_bagel.main, import_bagel.define_flags, "", arguments)
assert jax.device_count() == 4

def picture(painter, seed=1):
    (out,) = painter.paint(["a dot"], mode="one_shot", seed=seed, batch=1, one_shot_steps=3)
    assert out.finish_reason == "finished"
    return out.final_image.astype(int)

one = process_gen.load(folder)
mesh = make_mesh(MeshConfig(data=1, fsdp=2, tensor=2))
fns = functional.build(one.config.model)
shardings = rules.logical_to_sharding(fns.logical_axes, mesh, one.weights.model)
spread = jax.device_put(one.weights.model, shardings)
vae = jax.device_put(one.weights.vae, rules.replicated(mesh))
devices = {len(leaf.sharding.device_set) for leaf in jax.tree.leaves(spread)}
four = Painter(one.config, spread, vae=vae)
a, b, c = picture(one), picture(four), picture(one, seed=2)
print(json.dumps([int(abs(a - b).max()), int(abs(a - c).max()), sorted(devices)]))
"""


@pytest.mark.slow
@pytest.mark.multidevice
def test_an_import_paints_the_same_on_one_and_on_four_devices(tmp_path):
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(CHECKPOINT), str(tmp_path / "imported")],
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    difference, other_seed, devices = json.loads(done.stdout.splitlines()[-1])
    assert devices == [4]
    assert difference <= 1 < other_seed
