"""Import and export of a BAGEL folder: bit for bit, and refusals that leave nothing behind."""

from __future__ import annotations

import dataclasses
import json
import pickle
import shutil
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from etils import epath
from safetensors.numpy import load_file, save_file

from process_gen.checkpoint import bagel, manager
from process_gen.core.errors import CheckpointError
from process_gen.models.shapes import BAGEL

CHECKPOINT = Path(__file__).parents[1] / "parity" / "fixtures" / "checkpoint"
TABLES = ("latent_pos_embed.pos_embed", "vit_pos_embed.pos_embed")


def _import(source: Path, output: Path, **options):
    return bagel.import_folder(source, output, BAGEL, lambda *_: ("{}", "print"), **options)


def _same(left: Path, right: Path) -> bool:
    one, two = load_file(left), load_file(right)
    return one.keys() == two.keys() and all(
        one[k].dtype == two[k].dtype and one[k].tobytes() == two[k].tobytes() for k in one
    )


@pytest.fixture
def source(tmp_path):
    """A copy that a test may damage."""
    folder = tmp_path / "source"
    shutil.copytree(CHECKPOINT, folder)
    return folder


def _rewrite(file: Path, change) -> None:
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("import") / "D"
    config, notes = _import(CHECKPOINT, folder)
    return folder, config, notes


def test_round_trip_is_bit_identical(imported, tmp_path):
    folder, config, notes = imported
    assert notes == [] and config.model.vit.num_layers == 2
    assert bagel.export_folder(folder, tmp_path / "out") == 139
    for name in sorted(p.name for p in CHECKPOINT.iterdir()):
        assert (tmp_path / "out" / name).read_bytes() == (CHECKPOINT / name).read_bytes(), name
    assert not (tmp_path / "out" / "position_tables.safetensors").exists()


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("checkpoints/0/params/d", "params/d/.* has other contents than were written"),
        ("official/ae.safetensors", "ae.safetensors has other contents than were written"),
    ],
)
def test_an_import_with_a_bit_flipped_is_refused(imported, where, words, tmp_path):
    folder, config, _ = imported
    copy = tmp_path / "D"
    shutil.copytree(folder, copy)

    def read():
        found = manager.load_for_sampling(copy)
        bagel.find_official(copy, epath.Path(copy / "checkpoints" / "0"), found[0])

    read()  # what is whole is taken
    bagel.export_folder(copy, tmp_path / "before")
    place = copy / where
    files = [p for p in place.rglob("*") if p.is_file()] or [place]
    file = max(files, key=lambda p: p.stat().st_size)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(CheckpointError, match=words):
        read()
    with pytest.raises(CheckpointError, match=words):
        bagel.export_folder(copy, tmp_path / "after")
    assert not (tmp_path / "after").exists()


def test_import_is_an_ordinary_checkpoint(imported):
    folder, config, _ = imported
    loaded, params, meta = manager.load_for_sampling(folder)
    assert loaded == config and meta["step"] == 0 and meta["tokenizer"] == "print"
    official = load_file(CHECKPOINT / "ema.safetensors")
    key = "language_model.model.layers.2.mlp_moe_gen.gate_proj.weight"
    np.testing.assert_array_equal(
        params["layers"]["gen"]["mlp"]["gate"]["kernel"][2].T, official[key]
    )
    vae = bagel.load_vae(folder, config.model.vae, BAGEL)
    kernel = load_file(CHECKPOINT / "ae.safetensors")["encoder.conv_in.weight"]
    np.testing.assert_array_equal(vae["encoder"]["conv_in"]["kernel"].transpose(3, 2, 0, 1), kernel)


def _bf16_without_tables(tensors):
    for key in TABLES:
        del tensors[key]
    for key in tensors:
        tensors[key] = tensors[key].astype(ml_dtypes.bfloat16)


def _no_vit(tensors):
    for key in list(tensors):
        if key.startswith(("vit_", "connector.")):
            del tensors[key]


@pytest.mark.parametrize("change", [_bf16_without_tables, _no_vit])
def test_other_forms_of_the_file(source, tmp_path, change):
    _rewrite(source / "ema.safetensors", change)
    config, notes = _import(source, tmp_path / "D")
    bagel.export_folder(tmp_path / "D", tmp_path / "out")
    assert _same(tmp_path / "out" / "ema.safetensors", source / "ema.safetensors")
    assert config.model.param_dtype == ("bfloat16" if change is _bf16_without_tables else "float32")
    assert config.model.und_encoder == ("none" if change is _no_vit else "siglip")


def test_sharded_and_preferred_files(source, tmp_path):
    tensors = load_file(source / "ema.safetensors")
    (source / "ema.safetensors").unlink()
    halves = sorted(tensors)[:60], sorted(tensors)[60:]
    weight_map = {}
    for i, keys in enumerate(halves):
        name = f"model-0000{i + 1}-of-00002.safetensors"
        save_file({key: tensors[key] for key in keys}, source / name)
        weight_map |= dict.fromkeys(keys, name)
    index = source / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    _import(source, tmp_path / "D")
    bagel.export_folder(tmp_path / "D", tmp_path / "out")
    assert _same(tmp_path / "out" / "ema.safetensors", CHECKPOINT / "ema.safetensors")
    with pytest.raises(CheckpointError, match="holds no ema.safetensors"):
        _import(source, tmp_path / "E", weights="ema")


def test_sizes_come_from_the_tensors(source, tmp_path):
    for name, change in (("config", {"max_latent_size": 4}), ("llm_config", {"hidden_size": 65})):
        stated = json.loads((source / f"{name}.json").read_text())
        (source / f"{name}.json").write_text(json.dumps({**stated, **change}))
    config, notes = _import(source, tmp_path / "D")
    assert (config.model.latent_grid, config.model.width) == (8, 64)
    assert len(notes) == 2 and "max_latent_size says 4, the tensors say 8" in notes[1]


def _change_json(name: str, **change):
    def damage(folder: Path) -> None:
        stated = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**stated, **change}))

    return damage


def _drop_json(name: str, key: str):
    def damage(folder: Path) -> None:
        stated = json.loads((folder / name).read_text())
        del stated[key]
        (folder / name).write_text(json.dumps(stated))

    return damage


def _change(file: str, change):
    return lambda folder: _rewrite(folder / file, change)


def _drop(key: str):
    return lambda tensors: tensors.pop(key)


def _add(key: str, like: str):
    return lambda tensors: tensors.update({key: tensors[like].copy()})


def _reshape(tensors):
    tensors["llm2vae.bias"] = np.zeros(15, np.float32)


def _one_bf16(tensors):
    key = "language_model.model.layers.1.mlp.up_proj.weight"
    tensors[key] = tensors[key].astype(ml_dtypes.bfloat16)


def _row_first(tensors):
    table = tensors["latent_pos_embed.pos_embed"]
    tensors["latent_pos_embed.pos_embed"] = table.reshape(8, 8, -1).swapaxes(0, 1).reshape(64, -1)


def _truncate(folder: Path) -> None:
    file = folder / "ema.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


def _pickle(folder: Path) -> None:
    (folder / "ae.safetensors").write_bytes(pickle.dumps({}))


YARN = {"rope_theta": 1e6, "rope_type": "yarn", "factor": 4.0}
CONNECTOR = "connector.fc1.weight"


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_change("ema.safetensors", _drop(CONNECTOR)), f"1 missing: {CONNECTOR}"),
        (_change("ema.safetensors", _drop("vae2llm.weight")), "vae2llm.weight is missing"),
        (_change("ema.safetensors", _add("extra.weight", CONNECTOR)), "1 unknown: extra.weight"),
        (_change("ema.safetensors", _reshape), r"llm2vae.bias \(is \[15\], should be \[16\]\)"),
        (_change("ema.safetensors", _one_bf16), "layers are stored together and need one type"),
        (_change("ema.safetensors", _row_first), "is not the sine-cosine table"),
        (_change("ae.safetensors", _drop("decoder.conv_out.bias")), "decoder.conv_out.bias"),
        (_truncate, "ema.safetensors: damaged"),
        (_pickle, "ae.safetensors: this is a pickle"),
        (lambda folder: (folder / "ae.safetensors").unlink(), "holds no ae.safetensors"),
        (lambda folder: (folder / "llm_config.json").unlink(), "has no llm_config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json: no JSON object"),
        (_change_json("vit_config.json", hidden_act="gelu"), "hidden_act is 'gelu'"),
        (_change_json("config.json", interpolate_pos=True), "interpolate_pos is True"),
        (_drop_json("llm_config.json", "rope_theta"), "llm_config.json: rope_theta is missing"),
        (_drop_json("llm_config.json", "rms_norm_eps"), "llm_config.json: rms_norm_eps is missing"),
        (_change_json("llm_config.json", rope_parameters=YARN), "rope_parameters is .*yarn"),
    ],
)
def test_refusals_name_the_fault_and_leave_nothing(source, tmp_path, damage, words):
    damage(source)
    with pytest.raises(CheckpointError, match=words):
        _import(source, tmp_path / "D")
    assert [p.name for p in tmp_path.iterdir()] == ["source"]


def test_a_tokenizer_that_refuses_leaves_nothing(tmp_path):
    def refuse(settings, rows):
        assert rows == 320 and settings.main["model_type"] == "bagel"
        raise CheckpointError("no tokenizer")

    with pytest.raises(CheckpointError, match="no tokenizer"):
        bagel.import_folder(CHECKPOINT, tmp_path / "D", BAGEL, refuse)
    assert list(tmp_path.iterdir()) == []


def test_existing_folders_are_not_touched(imported, tmp_path):
    for run in (
        lambda: _import(CHECKPOINT, tmp_path),
        lambda: bagel.export_folder(imported[0], tmp_path),
    ):
        with pytest.raises(CheckpointError, match="exists already"):
            run()


def test_export_of_a_run(imported, tmp_path):
    """A run's averaged weights, with the frozen parts of the import that it started from."""
    folder, config, _ = imported
    _, params, _ = manager.load_for_sampling(folder)
    run = dataclasses.replace(config, train=dataclasses.replace(config.train, steps=2))
    ema = {**params, "lm_head": {"kernel": params["lm_head"]["kernel"] * 1.5}}
    with manager.CheckpointManager(tmp_path / "run", run) as saver:
        saver.save(2, {"params": params, "ema": ema}, {}, {})
    with pytest.raises(CheckpointError, match="name it with --origin"):
        bagel.export_folder(tmp_path / "run", tmp_path / "out")
    bagel.export_folder(tmp_path / "run", tmp_path / "out", origin=folder, dtype="bfloat16")
    got = load_file(tmp_path / "out" / "ema.safetensors")
    original = load_file(CHECKPOINT / "ema.safetensors")
    key = "language_model.lm_head.weight"
    np.testing.assert_array_equal(got[key], (original[key] * 1.5).astype(ml_dtypes.bfloat16))
    assert {a.dtype for a in got.values()} == {np.dtype(ml_dtypes.bfloat16)}
    bagel.export_folder(tmp_path / "run", tmp_path / "plain", origin=folder, weights="params")
    assert _same(tmp_path / "plain" / "ema.safetensors", CHECKPOINT / "ema.safetensors")
    wrong = json.loads((folder / "config.json").read_text())
    wrong["model"]["width"] = 128
    shutil.copytree(folder, tmp_path / "other")
    (tmp_path / "other" / "config.json").write_text(json.dumps(wrong))
    with pytest.raises(CheckpointError, match="did not start from there"):
        bagel.export_folder(tmp_path / "run", tmp_path / "no", origin=tmp_path / "other")
