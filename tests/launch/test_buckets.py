"""Data, training, checkpoints, resuming and painting on gs://, against an emulator of the service.

Files go through gcsfs, arrays of checkpoints through TensorStore's own driver, and records through
that of ArrayRecord: the clients that a real bucket would meet.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from process_gen.checkpoint import manager

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

CONFIG = """
from configs import strokes_tiny

def get_config(root):
    config = strokes_tiny.get_config("debug")
    folder = dict(kind="folder", path=f"{root}/data")
    config.data.update(dict(sources=(folder,), eval_sources=(folder,), und_len=0, prefetch=0))
    config.data.grammar.context_images = "vae"
    config.model.update(dict(width=16, mlp_width=32, und_encoder="none"))
    config.train.update(dict(steps=4, log_every=1, eval_every=2, save_every=2))
    config.optimizer.update(dict(name="adamw", schedule="constant"))
    config.sampler.update(dict(batch=2, denoise_steps=2, one_shot_steps=2, max_text=8))
    return config
"""

# One process for all commands; then everything is fetched for the test to look at.
SCRIPT = """
import json, sys
from etils import epath
from launch import common, make_data, sample, train

root, config, local = sys.argv[1:]
base = epath.Path(root)
base.mkdir(parents=True, exist_ok=True)
(base / "prompts.txt").write_text("a red circle\\na blue square\\n")
call = lambda module, *args: common.run(module.main, module.define_flags, "", ["x", *args])
call(make_data, "--config=configs/data/strokes.py", "--limit=20", "--show=2", f"--out={root}/data")
training = (f"--config={config}:{root}", f"--workdir={root}/run")
call(train, *training, "--config.train.steps=2")
# What a save that was cut off leaves behind in a bucket.
for name in ("meta/data.json", "_CHECKPOINT_METADATA"):
    half = base / "run/checkpoints/3" / name
    if "://" in root:
        half.parent.mkdir(parents=True, exist_ok=True)
        half.write_text("{}")
call(train, *training)
call(sample, f"--checkpoint={root}/run", f"--prompts={root}/prompts.txt", f"--out={root}/painted")
if "://" in root:
    import fsspec
    files = fsspec.filesystem("gs", use_listings_cache=False)
    files.get(root.removeprefix("gs://"), local, recursive=True)
"""


@pytest.fixture(scope="module")
def service():
    """Environment of a process that shall find the emulator."""
    pytest.importorskip("gcsfs")
    pytest.importorskip("gcp_storage_emulator")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    program = (
        "from gcp_storage_emulator.server import create_server; "
        f"create_server('localhost', {port}, in_memory=True, default_bucket='bucket').run()"
    )
    emulator = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    url = f"http://localhost:{port}"
    clients = dict.fromkeys(
        ("STORAGE_EMULATOR_HOST", "TENSORSTORE_GCS_HTTP_URL", "CLOUD_STORAGE_EMULATOR_ENDPOINT"),
        url,
    )
    yield {**os.environ, **clients, "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none"}
    emulator.kill()
    emulator.wait()


def run(root, config, local, env):
    arguments = [sys.executable, "-c", SCRIPT, str(root), str(config), str(local)]
    done = subprocess.run(
        arguments, env={**env, "PYTHONPATH": os.getcwd()}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def untimed(file):
    """The objects of a file of JSON lines, without what the clock says."""
    timed = ("seconds", "steps_per_second", "eta_seconds")
    lines = map(json.loads, file.read_text().splitlines())
    return [{k: v for k, v in line.items() if k not in timed} for line in lines]


def test_a_bucket_holds_what_a_disk_would(service, tmp_path):
    config = tmp_path / "config.py"
    config.write_text(CONFIG)
    disk, fetched = tmp_path / "disk", tmp_path / "fetched"
    run(disk, config, disk, os.environ)
    printed = run("gs://bucket/base", config, fetched, service)
    assert "from step 2 of 4" in printed  # and not from the cut-off checkpoint of step 3
    # The same bytes of data, the same losses, the same weights, the same paintings.
    assert (fetched / "data/manifest.json").read_bytes() == (
        disk / "data/manifest.json"
    ).read_bytes()
    for name, count in (("run/metrics.jsonl", 6), ("painted/trajectories.jsonl", 2)):
        assert (
            untimed(fetched / name) == untimed(disk / name) and len(untimed(disk / name)) == count
        )
    assert (fetched / "painted" / "report.html").stat().st_size > 10_000
    assert list((fetched / "run" / "tensorboard").iterdir())
    weights = [manager.load_for_sampling(root / "run", step=4)[1] for root in (disk, fetched)]
    jax.tree.map(np.testing.assert_array_equal, *weights)
