"""Tests of the filmstrips that a run logs, on a model that compiles in no time."""

from __future__ import annotations

import types

import jax
import numpy as np
import pytest

from process_gen.core import configs
from process_gen.models import functional
from process_gen.report import strips
from process_gen.sharding.mesh import make_mesh

CONFIG = configs.from_mapping(
    {
        "model": {
            "width": 16,
            "mlp_width": 16,
            "num_layers": 1,
            "num_heads": 1,
            "num_kv_heads": 1,
            "head_dim": 8,
            "und_encoder": "none",
        },
        "data": {"grammar": {"context_images": "vae"}},
        "sampler": {"batch": 8, "denoise_steps": 2, "max_text": 8, "max_images": 2},
        "train": {"paint_every": 5, "paint_prompts": ["a red circle", "two green stars"]},
    }
)


def state(seed: int):
    """As much of a `TrainState` as is read; heads begin at zero, which would paint all alike."""
    rng = np.random.default_rng(seed)
    params = functional.build(CONFIG.model).init(jax.random.key(0))
    params = jax.tree.map(lambda p: p + rng.normal(0, 0.1, p.shape).astype(p.dtype), params)
    return types.SimpleNamespace(params=params, ema=None)


@pytest.fixture
def compilations(monkeypatch):
    """How many programs were compiled, or taken from the compilation cache."""
    count = []
    before = jax._src.compiler.compile_or_get_cached

    def counting(*args, **kwargs):
        count.append(1)
        return before(*args, **kwargs)

    monkeypatch.setattr("jax._src.compiler.compile_or_get_cached", counting)
    return count


def test_the_same_prompts_with_weights_that_change(compilations):
    paint, some, others = strips.make_strips(CONFIG), state(0), state(1)
    with jax.set_mesh(make_mesh(CONFIG.mesh)):  # as in the loop
        first = paint(5, some)
        assert compilations
        again = paint(10, some)
        compilations.clear()
        later = paint(15, others)
    assert not compilations  # nothing is compiled for other weights
    pictures = [name for name, value in first.items() if isinstance(value, np.ndarray)]
    assert pictures == ["0", "1"]
    for name in pictures:
        assert first[name].dtype == np.uint8 and first[name].ndim == 3
        assert len(np.unique(first[name][..., 0])) > 20  # something is drawn on the page
    numbers = ("images", "finished")
    assert [first[n] for n in numbers] == [again[n] for n in numbers]
    assert first["0"].shape != later["0"].shape or (first["0"] != later["0"]).any()
