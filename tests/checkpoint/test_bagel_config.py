"""What strangers' BAGEL folders state, without reading their weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from etils import epath

from process_gen.checkpoint import bagel, bagel_config, safetensors_io
from process_gen.core.configs import Config
from process_gen.core.errors import CheckpointError

CHECKPOINT = Path(__file__).parents[1] / "parity" / "fixtures" / "checkpoint"
BILLIONTH = "1000000000"


@pytest.fixture
def folder(tmp_path):
    """The JSON files, which a test may damage."""
    for file in CHECKPOINT.glob("*.json"):
        shutil.copy(file, tmp_path)
    return epath.Path(tmp_path)


@pytest.fixture(scope="module")
def infos():
    found = {}
    for stem in ("ema", "ae"):
        with safetensors_io.open_folder(epath.Path(CHECKPOINT), (stem,)) as reader:
            found[stem] = dict(reader.infos)
    return found


def change(folder, name, **changed):
    file = folder / f"{name}.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changed}))


@pytest.mark.parametrize(
    ("name", "key", "value", "where"),
    [
        ("llm_config", "rope_theta", None, "llm_config.json: rope_theta is null"),
        ("llm_config", "rope_theta", "1e6", "llm_config.json: rope_theta is "),
        ("llm_config", "rms_norm_eps", [1], "llm_config.json: rms_norm_eps is "),
        ("config", "vae", 3, "config.json: vae is 3"),
        ("config", "vae", {"scale_factor": "x"}, "config.json, vae: scale_factor is "),
        ("config", "vit_select_layer", "x", "config.json: vit_select_layer is "),
        ("config", "max_latent_size", 0, "config.json: max_latent_size is 0"),
        ("config", "timestep_shift", {}, "config.json: timestep_shift is "),
        ("config", "special_tokens", "x", "config.json: special_tokens is "),
        ("vit_config", "num_attention_heads", 0, "vit_config.json: num_attention_heads is 0"),
        ("vit_config", "num_hidden_layers", 2.5, "vit_config.json: num_hidden_layers is 2.5"),
        ("vit_config", "layer_norm_eps", None, "vit_config.json: layer_norm_eps is null"),
    ],
)
def test_values_of_a_wrong_kind_are_named(folder, name, key, value, where):
    assert bagel_config.read_settings(folder).main["model_type"] == "bagel"
    change(folder, name, **{key: value})
    with pytest.raises(CheckpointError) as error:
        bagel_config.read_settings(folder)
    assert str(folder / where) in str(error.value) and "; wanted is a " in str(error.value)


def test_settings_within_config_json(folder):
    llm = json.loads((folder / "llm_config.json").read_text())
    (folder / "llm_config.json").unlink()
    change(folder, "config", llm_config=llm)
    assert bagel_config.read_settings(folder).llm == llm
    for wrong, words in (
        ("x", 'config.json: llm_config is "x"'),
        ({**llm, "rope_theta": None}, "config.json, llm_config: rope_theta is null"),
    ):
        change(folder, "config", llm_config=wrong)
        with pytest.raises(CheckpointError, match=words):
            bagel_config.read_settings(folder)


def settle(infos, more=""):
    """Sizes of both models; `more` is one more tensor's name, in the file where it belongs."""
    settings = bagel_config.read_settings(epath.Path(CHECKPOINT))
    held = {stem: dict(found) for stem, found in infos.items()}
    if more:
        stem = "ae" if more.startswith("encoder.") else "ema"
        held[stem][more] = next(iter(held[stem].values()))
    vae = bagel_config.vae_sizes(held["ae"], settings, "ae.safetensors")
    return bagel_config.model_config(held["ema"], vae, settings, "ema.safetensors")[0]


@pytest.mark.parametrize(
    "name",
    [
        f"language_model.model.layers.{BILLIONTH}.x",
        "language_model.model.layers.04.x",
        f"language_model.model.layers.{'9' * 5000}.x",
        f"vit_model.vision_model.encoder.layers.{BILLIONTH}.x",
        f"encoder.down.0.block.{BILLIONTH}.x",
    ],
)
def test_a_number_in_a_name_is_no_measure(infos, name):
    """Each entry of such a model was listed, which a billion layers take for ever."""
    with pytest.raises(CheckpointError, match="safetensors: tensor .* is there, but none with "):
        settle(infos, name)


def test_numbers_without_a_gap_are_counted(infos):
    model = settle(infos)
    assert (model.num_layers, model.vit.num_layers, model.vae.blocks) == (3, 2, 2)
    assert settle(infos, "language_model.model.layers.3.x").num_layers == 4


@pytest.mark.parametrize("text", ["{", "[]", '{"model": 3, "train": "x"}'])
def test_a_damaged_working_directory_is_named(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    step = epath.Path(tmp_path / "checkpoints" / "1")
    with pytest.raises(CheckpointError, match="config.json: "):
        bagel.find_official(tmp_path, step, Config())
    (tmp_path / "official").mkdir()
    with pytest.raises(CheckpointError, match="config.json: "):
        bagel.find_official(tmp_path, step, Config())
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="its model.width is None"):
        bagel.find_official(tmp_path, step, Config())
