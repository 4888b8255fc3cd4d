"""Latents encoded ahead of training: the same batches and losses, and refusals of other ones."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from etils import epath

from configs import bagel_debug
from launch import common, encode_latents, import_bagel, make_data
from process_gen.core import configs
from process_gen.core.errors import DataError
from process_gen.core.trajectory import Step, Trajectory, plan_text
from process_gen.data import builders, pipeline
from process_gen.models import functional
from process_gen.sharding.mesh import make_mesh
from process_gen.train import latent_cache, latents, metrics, start, step

CHECKPOINT = Path(__file__).resolve().parents[1] / "parity" / "fixtures" / "checkpoint"


def write_folder(folder, seed=0):
    """One-step and one-shot trajectories, and one without a picture."""
    rng = np.random.default_rng(seed)
    plan = plan_text("a dot", "a dot")
    made = [Trajectory("dot", steps=(Step(plan),))]
    for height, width in ((20, 40), (18, 30), (8, 8), (9, 15), (50, 52)):
        picture = rng.integers(0, 256, (height, width, 3), np.uint8)
        made.append(Trajectory("dot", steps=(Step(plan, picture, "fine"),), final_image=picture))
        made.append(Trajectory("dot", mode="one_shot", final_image=picture[::-1].copy()))
    builders.write_folder(str(folder), made, shards=2)
    return str(folder)


def encode(folder, imported, *flags):
    arguments = ["x", f"--data={folder}", f"--checkpoint={imported}", *flags]
    common.run(encode_latents.main, encode_latents.define_flags, "", arguments)


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    output = tmp_path_factory.mktemp("bagel") / "imported"
    arguments = ["x", f"--source={CHECKPOINT}", f"--output={output}", "--tokenizer=bytes"]
    common.run(import_bagel.main, import_bagel.define_flags, "", arguments)
    return output


@pytest.fixture(scope="module")
def folder(imported, tmp_path_factory):
    made = write_folder(tmp_path_factory.mktemp("data") / "d")
    latent_cache._RECORDS, before = 4, latent_cache._RECORDS  # three shards
    encode(made, imported)
    latent_cache._RECORDS = before
    return made


def test_data_is_made_and_encoded_by_one_command(imported, tmp_path, capsys):
    root = Path(__file__).parents[2]
    out = tmp_path / "data"
    asked = ["x", f"--config={root}/configs/data/strokes.py", f"--out={out}", "--limit=3"]

    def make(checkpoint):
        arguments = [*asked, f"--encode_latents={checkpoint}"]
        common.run(make_data.main, make_data.define_flags, "", arguments)

    with pytest.raises(SystemExit) as stopped:
        make(tmp_path / "nothing")
    assert stopped.value.code == 2 and not out.exists()  # said before there is work to lose
    make(imported)
    assert "/latents: 3 trajectories" in capsys.readouterr().out
    made = json.loads((out / "latents" / "manifest.json").read_text())
    encode(out, imported)  # the same latents: nothing to do
    assert json.loads((out / "latents" / "manifest.json").read_text()) == made


def config_of(imported, folder, **data):
    mapping = bagel_debug.get_config().to_dict()
    mapping["train"] |= {"init_from": str(imported)}
    source = ({"kind": "folder", "path": folder},)
    mapping["data"] |= {"sources": source, "eval_sources": source, "image_size": 0, "rows": 2}
    mapping["data"] |= {"text_len": 160, "und_len": 32, "gen_len": 144, **data}
    return start.adopt(configs.from_mapping(mapping), imported.parent / "nothing")


def prepared(config, count=2):
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    prepare = latents.make_prepare(config, start.frozen_codec(config), mesh)
    batches = pipeline.train_dataset(config)
    return [prepare(next(batches)) for _ in range(count)]


def test_batches_and_losses_are_those_of_encoding_on_the_fly(imported, folder):
    encoded = config_of(imported, folder)
    stored = config_of(imported, folder, stored_latents=True)
    assert start.frozen_codec(stored) is None and start.frozen_codec(encoded) is not None
    pairs = list(zip(prepared(encoded), prepared(stored), strict=True))
    for ours, theirs in pairs:
        assert theirs.latent_BxGxP.dtype == np.float32
        for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    assert all(np.abs(one.latent_BxGxP).max() > 0.1 for one, _ in pairs)
    fns = functional.build(stored.model)
    params = jax.jit(fns.init)(jax.random.key(0))
    evaluate = jax.jit(step.make_eval_step(fns, stored, latents.of_model(stored.model)))

    def loss(batch):
        return metrics.compute(metrics.collect(evaluate(params, batch, jax.random.key(1))))["loss"]

    for ours, theirs in pairs:
        losses = [loss(batch) for batch in (ours, theirs)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    # Partner: latents that are a little off are another loss.
    off = theirs._replace(latent_BxGxP=1.01 * theirs.latent_BxGxP)
    assert abs(loss(off) / losses[1] - 1) > 1e-5
    held_out = [b.latent_BxGxP for b in pipeline.eval_batches(stored)]
    assert held_out and held_out[0].dtype == np.float32


def test_finished_pictures_of_stored_paintings(imported, folder):
    source = ({"kind": "one_shot", "path": folder},)
    encoded = config_of(imported, folder, sources=source)
    stored = config_of(imported, folder, sources=source, stored_latents=True)
    for ours, theirs in zip(prepared(encoded), prepared(stored), strict=True):
        np.testing.assert_array_equal(ours.token_BxT, theirs.token_BxT)
        np.testing.assert_allclose(ours.latent_BxGxP, theirs.latent_BxGxP, rtol=1e-5, atol=1e-5)
        assert np.abs(ours.latent_BxGxP).max() > 0.1


def test_an_interrupted_command_goes_on(imported, folder, tmp_path, capsys):
    again = write_folder(tmp_path / "d")
    done = json.loads((Path(folder) / "latents" / "manifest.json").read_text())
    assert [shard["count"] for shard in done["shards"]] == [4, 4, 3]
    (tmp_path / "d" / "latents").mkdir()
    first = done["shards"][0]["file"]
    (tmp_path / "d" / "latents" / first).write_bytes(
        (Path(folder) / "latents" / first).read_bytes()
    )
    begun = {**done, "shards": done["shards"][:1]}
    (tmp_path / "d" / "latents" / "manifest.json").write_text(json.dumps(begun))
    config = config_of(imported, again, stored_latents=True)
    with pytest.raises(DataError, match="latents of 4 of 11 trajectories; python -m launch.encode"):
        pipeline.train_dataset(config)
    latent_cache._RECORDS, before = 4, latent_cache._RECORDS
    encode(again, imported)
    latent_cache._RECORDS = before
    assert "8 of 11 trajectories" in capsys.readouterr().out
    ended = json.loads((tmp_path / "d" / "latents" / "manifest.json").read_text())
    assert ended == done


def test_a_kill_while_the_manifest_is_written_leaves_the_one_before(tmp_path, monkeypatch):
    file = epath.Path(tmp_path) / "manifest.json"
    latent_cache._publish(file, "one")

    def killed(*_):
        raise SystemExit

    for call in ("fsync", "replace"):  # with all of the new one written, and with it on the disk
        with monkeypatch.context() as patch, pytest.raises(SystemExit):
            patch.setattr(latent_cache.os, call, killed)
            latent_cache._publish(file, "two")
        assert file.read_text() == "one"
    latent_cache._publish(file, "three")  # over what is left beside
    assert file.read_text() == "three" and [p.name for p in file.parent.iterdir()] == [file.name]


def test_latents_of_something_else_are_refused(imported, folder, tmp_path, capsys):
    def refused(config):
        with pytest.raises(DataError) as caught:
            start.frozen_codec(config)
        return str(caught.value)

    assert "longest is 32 there and 16 here" in refused(
        config_of(imported, folder, stored_latents=True, image_size=16)
    )
    bare = write_folder(tmp_path / "bare")
    assert "holds no latents; make them with python -m launch.encode_latents" in refused(
        config_of(imported, bare, stored_latents=True)
    )
    strokes = config_of(imported, folder, stored_latents=True, sources=({"kind": "strokes"},))
    assert "source 'strokes' is no folder" in refused(strokes)
    # Another autoencoder, and other pictures of the same sizes.
    manifest = Path(folder) / "latents" / "manifest.json"
    text = manifest.read_text()
    try:
        for name in ("autoencoder", "data"):
            changed = json.loads(text)
            changed["key"][name] = "0123456789abcdef"
            manifest.write_text(json.dumps(changed))
            config = config_of(imported, folder, stored_latents=True)
            assert f"{name} is '0123456789abcdef' there" in refused(config)
            with pytest.raises(SystemExit):
                encode(folder, imported)
            assert "holds other latents" in capsys.readouterr().err
        manifest.write_text(text[:100])
        assert "is damaged" in refused(config)
    finally:
        manifest.write_text(text)
    with pytest.raises(SystemExit):
        encode(folder, tmp_path / "nowhere")


def test_another_autoencoder_has_another_fingerprint(imported, tmp_path):
    from process_gen.checkpoint import bagel, safetensors_io

    with safetensors_io.open_folder(CHECKPOINT, ("ae",)) as reader:
        tensors = {key: reader.read(key) for key in reader.infos}
    tensors["encoder.conv_in.bias"][0] += 1e-3
    bagel._write_all(tmp_path / "ae.safetensors", tensors)
    assert bagel.vae_fingerprint(CHECKPOINT) == bagel.vae_fingerprint(imported)
    assert bagel.vae_fingerprint(tmp_path) != bagel.vae_fingerprint(imported)


def test_more_pictures_than_a_pass_has_room_for_are_encoded_whole():
    def encoder(placed, room):
        assert placed[-1].start + placed[-1].token_RxCxS[..., 0].size <= room
        array = np.arange(room * 2.0).reshape(room, 2)
        return SimpleNamespace(addressable_data=lambda _: array)

    pictures = [np.zeros((2, 2, 3), np.uint8)] * 3
    items = [latent_cache._Item(pictures), latent_cache._Item(pictures[:1])]
    records = list(latent_cache._encoded(items, encoder, room=8))
    assert len(records) == 2 and len(records[0]) > len(records[1])
