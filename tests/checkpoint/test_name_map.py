"""The table of names: both sides accounted for, layouts, and the counts of the released files."""

from __future__ import annotations

from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest

from process_gen.checkpoint import name_map, safetensors_io
from process_gen.core.configs import ModelConfig
from process_gen.core.encoder_sizes import VitSizes
from process_gen.core.errors import CheckpointError
from process_gen.models import functional, layers

CHECKPOINT = Path(__file__).parents[1] / "parity" / "fixtures" / "checkpoint"
RELEASED = ModelConfig(
    vocab_size=152064,
    width=3584,
    mlp_width=18944,
    num_layers=28,
    num_heads=28,
    num_kv_heads=4,
    head_dim=128,
    codec="flux",
    patch=2,
    codec_channels=16,
    latent_grid=64,
    und_encoder="siglip",
    und_patch=14,
    und_grid=70,
    time_features=256,
    layers="scan",
)
TINY = ModelConfig(
    vocab_size=320,
    width=64,
    mlp_width=128,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    patch=2,
    codec_channels=4,
    latent_grid=8,
    und_encoder="siglip",
    und_patch=14,
    und_grid=8,
    time_features=256,
    vit=VitSizes(32, 64, 2, 4),
)


def _entries(cfg: ModelConfig) -> list[name_map.Entry]:
    return name_map.model_entries(jax.eval_shape(functional.build(cfg).init, jax.random.key(0)))


def _held() -> dict[str, tuple[int, ...]]:
    with safetensors_io.open_folder(CHECKPOINT, ("ema",)) as reader:
        held = {key: info.shape for key, info in reader.infos.items()}
    for key in name_map.TABLES.values():
        del held[key]
    return held


def test_released_sizes():
    """The counts, and one shape of every kind, of the released `ema.safetensors`."""
    shapes = {entry.key: entry.shape for entry in _entries(RELEASED)}
    side, width = RELEASED.latent_grid, RELEASED.width
    shapes["latent_pos_embed.pos_embed"] = (side**2, width)
    shapes["vit_pos_embed.pos_embed"] = (RELEASED.und_grid**2, width)
    assert len(shapes) == 1223
    assert sum(int(np.prod(shape, dtype=np.int64)) for shape in shapes.values()) == 14_607_260_128
    layer, vit = "language_model.model.layers.27.", "vit_model.vision_model."
    for key, shape in {
        "language_model.model.embed_tokens.weight": (152064, 3584),
        "language_model.lm_head.weight": (152064, 3584),
        "language_model.model.norm_moe_gen.weight": (3584,),
        layer + "self_attn.k_proj_moe_gen.weight": (512, 3584),
        layer + "self_attn.k_proj_moe_gen.bias": (512,),
        layer + "self_attn.q_norm.weight": (128,),
        layer + "self_attn.o_proj.weight": (3584, 3584),
        layer + "mlp_moe_gen.down_proj.weight": (3584, 18944),
        layer + "post_attention_layernorm_moe_gen.weight": (3584,),
        "time_embedder.mlp.0.weight": (3584, 256),
        "time_embedder.mlp.2.bias": (3584,),
        "vae2llm.weight": (3584, 64),
        "llm2vae.weight": (64, 3584),
        "connector.fc1.weight": (3584, 1152),
        "connector.fc2.weight": (3584, 3584),
        vit + "embeddings.patch_embedding.weight": (1152, 588),
        vit + "embeddings.position_embedding.weight": (4900, 1152),
        vit + "encoder.layers.25.mlp.fc1.weight": (4304, 1152),
        vit + "encoder.layers.25.self_attn.out_proj.bias": (1152,),
        vit + "post_layernorm.bias": (1152,),
    }.items():
        assert shapes[key] == shape, key
    assert vit + "encoder.layers.26.layer_norm1.weight" not in shapes


def test_fixture_is_accounted_for():
    name_map.check(_entries(TINY), _held(), "ema.safetensors")


def test_whatever_does_not_fit_is_named():
    entries, held = _entries(TINY), _held()
    held["language_model.model.layers.3.mlp.up_proj.weight"] = (128, 64)
    held["llm2vae.bias"] = (17,)
    del held["connector.fc1.weight"]
    with pytest.raises(CheckpointError) as caught:
        name_map.check(entries, held, "ema.safetensors")
    text = str(caught.value)
    assert "1 missing: connector.fc1.weight" in text
    assert "1 unknown: language_model.model.layers.3.mlp.up_proj.weight" in text
    assert "1 of another shape: llm2vae.bias (is [17], should be [16])" in text
    with pytest.raises(CheckpointError, match=r"missing: .* and \d+ more"):
        name_map.check(entries, {}, "ema.safetensors")
    with pytest.raises(CheckpointError, match="parameter extra/kernel has no counterpart"):
        name_map.model_entries({"extra": {"kernel": np.zeros(2)}})


@pytest.mark.parametrize(
    ("layout", "shape"),
    [("same", (5,)), ("linear", (2, 3)), ("conv", (3, 3, 4, 5)), ("pointwise", (4, 5))],
)
def test_layouts_are_inverse(layout, shape):
    ours = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    official = name_map.to_official(ours, layout)
    assert official.shape == name_map.official_shape(shape, layout)
    np.testing.assert_array_equal(name_map.from_official(official, layout), ours)
    if layout == "conv":
        assert official[4, 2, 1, 0] == ours[1, 0, 2, 4]
    if layout == "linear":
        assert official[2, 1] == ours[1, 2]


def test_paths_round_trip():
    tree = {"a": {"b": 1, "c": {"d": 2}}, "e": 3}
    assert name_map.flatten(tree) == {"a/b": 1, "a/c/d": 2, "e": 3}
    assert name_map.unflatten(name_map.flatten(tree)) == tree
    grouped = name_map.by_path(_entries(TINY))
    numbers = [e.layer for e in grouped["layers/gen/mlp/up/kernel"]]
    assert numbers == [0, 1, 2] and [e.layer for e in grouped["embed/table"]] == [None]


def test_position_tables():
    computed = layers.sincos_table(8, 64)
    for stored in (computed, computed.astype(ml_dtypes.bfloat16)):
        name_map.check_table("latent_pos_embed.pos_embed", stored, computed, "ema")
    row_first = computed.reshape(8, 8, 64).swapaxes(0, 1).reshape(64, 64)
    with pytest.raises(CheckpointError, match="is not the sine-cosine table"):
        name_map.check_table("latent_pos_embed.pos_embed", row_first, computed, "ema")
    with pytest.raises(CheckpointError, match="is not the sine-cosine table"):
        name_map.check_table("x", np.full_like(computed, np.nan), computed, "ema")
    with pytest.raises(CheckpointError, match=r"is \[36, 64\], the model's \[64, 64\]"):
        name_map.check_table("x", computed[:36], computed, "ema")
    with safetensors_io.open_folder(CHECKPOINT, ("ema",)) as reader:
        for key in name_map.TABLES.values():
            name_map.check_table(key, reader.read(key), computed, "ema")
