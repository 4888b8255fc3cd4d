"""SigLIP-NaViT and the connector against the reference's arrays."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from process_gen.checkpoint import name_map, safetensors_io
from process_gen.core.batch import table_ids
from process_gen.core.configs import ModelConfig
from process_gen.core.encoder_sizes import VitSizes
from process_gen.core.patches import patchify
from process_gen.models import layers, vit

nnx.use_eager_sharding(False)
FIXTURES = Path(__file__).parents[1] / "parity" / "fixtures"
WIDTH = 64
CFG = ModelConfig(
    width=WIDTH,
    und_patch=14,
    und_grid=8,
    vit=VitSizes(width=32, mlp_width=64, num_layers=2, num_heads=4),
)
TOLERANCE = 5e-5


class Both(nnx.Module):
    """Encoder and connector under the names of the whole model."""

    def __init__(self, cfg: ModelConfig):
        self.und_encoder = vit.SiglipVit(cfg, rngs=nnx.Rngs(0))
        self.connector = vit.connector(
            cfg.vit.width, WIDTH, rngs=nnx.Rngs(1), param_dtype="float32"
        )

    def __call__(self, patches, ids, images):
        encoded = self.und_encoder(patches, ids, images)
        return encoded, self.connector(encoded)


def _build(cfg: ModelConfig):
    graph, abstract = nnx.split(nnx.eval_shape(lambda: Both(cfg)))

    def run(params, *args):
        state = jax.tree.map(lambda v: v, abstract)
        nnx.replace_by_pure_dict(state, params)
        return nnx.merge(graph, state)(*args)

    return jax.jit(run), nnx.to_pure_dict(abstract)


@pytest.fixture(scope="module")
def case():
    return dict(np.load(FIXTURES / "d_vit.npz"))


@pytest.fixture(scope="module")
def params():
    grouped = name_map.by_path(name_map.model_entries(_build(CFG)[1]))
    with safetensors_io.open_folder(FIXTURES / "checkpoint", ("ema",)) as reader:
        flat = {}
        for path, entries in grouped.items():
            arrays = [name_map.from_official(reader.read(e.key), e.layout) for e in entries]
            flat[path] = arrays[0] if entries[0].layer is None else np.stack(arrays)
    return name_map.unflatten(flat)


@pytest.fixture(scope="module")
def inputs(case):
    """Both images in one row, between and after them padding."""
    patches, ids, images = [], [], []
    for k in range(int(case["in.num_images"])):
        image = np.moveaxis(case[f"in.image_{k}"], 0, -1)
        cut = patchify(image, CFG.und_patch)
        np.testing.assert_array_equal(cut, case[f"out.tokens_{k}"])
        table = table_ids(*image.shape[:2], CFG.und_patch, CFG.und_grid)
        np.testing.assert_array_equal(table, case[f"out.position_ids_{k}"])
        patches += [cut, np.full((3, cut.shape[1]), 7.0, np.float32)]
        ids += [table, np.zeros(3, np.int32)]
        images += [np.full(len(cut), k, np.int32), np.full(3, -1, np.int32)]
    return tuple(np.concatenate(x)[None] for x in (patches, ids, images))


def _error(got, wanted) -> float:
    return float(np.abs(np.asarray(got) - wanted).max() / np.abs(wanted).max())


def _errors(case, got, inputs):
    encoded, connected = (np.asarray(x)[0] for x in got)
    table = layers.sincos_table(CFG.und_grid, WIDTH)
    _, ids, images = (x[0] for x in inputs)
    errors = []
    for k in range(2):
        mine = images == k
        errors += [
            _error(encoded[mine], case[f"out.vit_{k}"]),
            _error(connected[mine], case[f"out.connector_{k}"]),
            _error(connected[mine] + table[ids[mine]], case[f"out.features_{k}"]),
        ]
    mine = images >= 0
    features = connected[mine] + table[ids[mine]]
    errors.append(_error(features, case["out.features_packed"]))
    return max(errors)


def test_packed_images_match_the_reference(case, params, inputs):
    for attention in ("dense", "rows", "chunked"):
        run, _ = _build(dataclasses.replace(CFG, attention=attention))
        assert _errors(case, run(params, *inputs), inputs) < TOLERANCE
    table = layers.sincos_table(CFG.und_grid, WIDTH)
    assert _error(table, case["out.vit_pos_embed_table"]) < 1e-6


def test_wrong_conventions_are_noticed(case, params, inputs, monkeypatch):
    run, _ = _build(CFG)
    patches, ids, images = inputs
    joined = np.where(images >= 0, 0, images)
    assert _errors(case, run(params, patches, ids, joined), inputs) > TOLERANCE
    changed = jax.tree.map(np.array, params)
    changed["und_encoder"]["layers"]["attention"]["v"]["kernel"][1] *= 1.01
    assert _errors(case, run(changed, *inputs), inputs) > TOLERANCE
    gelu = jax.nn.gelu
    monkeypatch.setattr(jax.nn, "gelu", lambda x, approximate: gelu(x, approximate=False))
    run, _ = _build(CFG)
    assert _errors(case, run(params, *inputs), inputs) > TOLERANCE


def test_recomputing_layers_keeps_the_gradient(params, inputs):
    def gradient(cfg):
        run, _ = _build(cfg)
        seen = inputs[2][..., None] >= 0
        return jax.jit(jax.grad(lambda p: (run(p, *inputs)[1] * seen).sum()))(params)

    plain = gradient(CFG)
    again = gradient(dataclasses.replace(CFG, remat="full"))
    for one, two in zip(jax.tree.leaves(plain), jax.tree.leaves(again), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-4)
    assert np.abs(plain["und_encoder"]["patch_in"]["kernel"]).max() > 0
