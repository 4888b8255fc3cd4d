"""A painter that never learned anything, as a checkpoint on disk, and one that follows a script."""

from __future__ import annotations

import numpy as np
import pytest

from tests.launch.scripted_painter import Scripted

MODEL = {
    "width": 16,
    "mlp_width": 16,
    "num_layers": 1,
    "num_heads": 1,
    "num_kv_heads": 1,
    "head_dim": 8,
    "und_encoder": "none",
}
SAMPLER = {
    "batch": 2,
    "denoise_steps": 2,
    "one_shot_steps": 2,
    "one_shot_guidance": 1.0,
    "max_text": 8,
    "max_images": 2,
}


@pytest.fixture(scope="session")
def untrained(tmp_path_factory):
    """A working directory with one checkpoint of a model that compiles in no time."""
    import jax

    from process_gen.checkpoint import manager
    from process_gen.core import configs
    from process_gen.models import functional

    grammar = {"context_images": "vae"}
    sections = {"model": MODEL, "sampler": SAMPLER, "data": {"grammar": grammar}}
    config = configs.from_mapping(sections)
    workdir = tmp_path_factory.mktemp("untrained")
    params = functional.build(config.model).init(jax.random.key(0))
    # Heads begin at zero, which would make all pictures alike.
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda p: p + rng.normal(0, 0.1, p.shape).astype(p.dtype), params)
    with manager.CheckpointManager(workdir, config) as checkpoints:
        checkpoints.save(3, {"params": params}, {"plan_hash": None}, {})
    lines = [f'{{"step": {i}, "split": "train", "loss": {2 / i}}}\n' for i in (1, 2, 3)]
    (workdir / "metrics.jsonl").write_text("".join(lines))
    return workdir


@pytest.fixture
def scripted():
    """A painter that needs no device."""
    return Scripted()
