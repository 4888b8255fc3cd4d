"""Starting from a Qwen2 folder: both experts hold its weights, every tensor is accounted for."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from launch.import_qwen import draw
from process_gen.checkpoint import bagel, manager, qwen
from process_gen.core.configs import Config, ModelConfig
from process_gen.core.encoder_sizes import VaeSizes, VitSizes
from process_gen.core.errors import CheckpointError
from process_gen.models.shapes import BAGEL

CHECKPOINT = Path(__file__).parents[1] / "parity" / "fixtures" / "checkpoint"
BASE = Config(
    model=ModelConfig(
        codec="flux",
        patch=2,
        codec_channels=4,
        latent_grid=8,
        und_encoder="siglip",
        und_patch=14,
        und_grid=8,
        prediction="velocity",
        layers="scan",
        vit=VitSizes(32, 64, 2, 4),
        vae=VaeSizes(32, (1, 2), latent_channels=4),
    )
)
STATED = {
    "model_type": "qwen2",
    "num_attention_heads": 4,
    "rope_theta": 1e6,
    "rms_norm_eps": 1e-6,
}


@pytest.fixture
def source(tmp_path):
    """A Qwen2 folder, made of the understanding half of the parity checkpoint."""
    folder = tmp_path / "qwen"
    folder.mkdir()
    tensors = {
        key.removeprefix("language_model."): array
        for key, array in load_file(CHECKPOINT / "ema.safetensors").items()
        if key.startswith("language_model.") and "moe_gen" not in key
        if ".q_norm" not in key and ".k_norm" not in key
    }
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(STATED))
    return folder


def _import(source, output, base=BASE, vae=CHECKPOINT / "ae.safetensors"):
    def drawn(model, paths):
        return draw(model, paths, 0)

    return qwen.import_folder(source, output, base, BAGEL, drawn, lambda rows: ("{}", "print"), vae)


def test_both_experts_hold_the_source(source, tmp_path):
    config = _import(source, tmp_path / "D")
    assert (config.model.width, config.model.num_layers, config.model.num_kv_heads) == (64, 3, 2)
    _, params, _ = manager.load_for_sampling(tmp_path / "D")
    tensors = load_file(source / "model.safetensors")
    wanted = tensors["model.layers.1.mlp.down_proj.weight"].T
    for expert in ("und", "gen"):
        layer = params["layers"][expert]
        np.testing.assert_array_equal(layer["mlp"]["down"]["kernel"][1], wanted)
        np.testing.assert_array_equal(layer["attention"]["q_norm"]["scale"], np.ones((3, 16)))
        scale = params["final_norm"][expert]["scale"]
        np.testing.assert_array_equal(scale, tensors["model.norm.weight"])
    assert not np.any(params["latent_out"]["kernel"]) and np.any(params["latent_in"]["kernel"])
    assert np.std(params["und_encoder"]["patch_in"]["kernel"]) > 0
    # What comes out is a BAGEL folder like any other.
    bagel.export_folder(tmp_path / "D", tmp_path / "out")
    again, notes = bagel.import_folder(
        tmp_path / "out", tmp_path / "E", BAGEL, lambda *_: ("{}", "print")
    )
    assert notes == [] and again.model == config.model


def test_tied_embeddings(source, tmp_path):
    file = source / "model.safetensors"
    tensors = load_file(file)
    del tensors["lm_head.weight"]
    save_file(tensors, file)
    with pytest.raises(CheckpointError, match="1 missing: lm_head.weight"):
        _import(source, tmp_path / "D")
    (source / "config.json").write_text(json.dumps({**STATED, "tie_word_embeddings": True}))
    _import(source, tmp_path / "D")
    _, params, _ = manager.load_for_sampling(tmp_path / "D")
    np.testing.assert_array_equal(params["lm_head"]["kernel"].T, params["embed"]["table"])


def test_refusals(source, tmp_path):
    def refused(words, **changed):
        with pytest.raises(CheckpointError, match=words):
            _import(source, tmp_path / "D", **changed)
        assert not (tmp_path / "D").exists()

    refused("belongs to 'flux' only", vae=None)
    wrong = dataclasses.replace(BASE.model, vae=VaeSizes(64, (1, 2), latent_channels=4))
    refused("ae.safetensors.*of another shape", base=dataclasses.replace(BASE, model=wrong))
    (source / "config.json").write_text(json.dumps({**STATED, "model_type": "llama"}))
    refused("model_type is 'llama'")
    for yarn in ("rope_scaling", "rope_parameters"):
        (source / "config.json").write_text(json.dumps({**STATED, yarn: {"rope_type": "yarn"}}))
        refused(f"{yarn} is .*yarn")
    for heads, words in (
        (0, "is 0; wanted is a whole number from 1"),
        (7, "is 7, which the 64 rows"),
    ):
        (source / "config.json").write_text(json.dumps({**STATED, "num_attention_heads": heads}))
        refused(f"config.json: num_attention_heads {words}")
    (source / "config.json").write_text(json.dumps(STATED))
    file = source / "model.safetensors"
    tensors = load_file(file)
    save_file({**tensors, "model.extra": np.zeros(2, np.float32)}, file)
    refused("1 unknown: model.extra")
    del tensors["model.embed_tokens.weight"]
    save_file(tensors, file)
    refused("is this a Qwen2 model")
