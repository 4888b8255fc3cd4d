"""Faults of stored data, as real files: each is a counted skip with its place, or an error."""

from __future__ import annotations

import json

import numpy as np
import pytest

from process_gen.core.batch import NO_COPY, NO_LABEL
from process_gen.core.configs import SourceConfig, from_mapping
from process_gen.core.errors import ConfigError, DataError
from process_gen.core.trajectory import to_json
from process_gen.data.builders import (
    TrajectoryFolder,
    read_manifest,
    write_folder,
)
from process_gen.data.pipeline import train_dataset
from process_gen.data.sources import build_source
from tests.data.damage import BAD_RECORDS, folder_of, paintings, record


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def dataset(folder, **data):
    sources = [{"kind": "folder", "path": str(folder)}]
    return train_dataset(from_mapping({"data": {"sources": sources, "rows": 1, **data}}))


def an_epoch(iterator):
    return [next(iterator) for _ in range(len(iterator.plan(0)))]


# ---- shards --------------------------------------------------------------------------------------

CUTS = (0, 1, 1000, 65_535, 65_536, 70_000, -40_000, -1000, -8, -1)


@pytest.mark.parametrize("cut", CUTS)
def test_a_cut_shard_costs_its_records(tmp_path, cut):
    manifest = write_folder(str(tmp_path / "data"), paintings(30), shards=3)
    shard = tmp_path / "data" / manifest["shards"][1]["file"]
    shard.write_bytes(shard.read_bytes()[:cut])
    iterator = dataset(tmp_path / "data", text_len=900, und_len=200, gen_len=400)
    an_epoch(iterator)
    assert iterator.skipped.counts == {"unreadable": 10}
    assert set(iterator.plan(0).bad_Kx2[:, 1]) == set(range(1, 30, 3))
    assert all(
        shard.name in text
        and f"record {1 + 3 * i}: " in text
        and "bytes, its manifest says" in text
        for i, text in enumerate(iterator.skipped.examples)
    )
    with pytest.raises(
        DataError, match="10 records cannot be used; the first: .*record 1: .*bytes"
    ):
        next(dataset(tmp_path / "data", strict=True))


@pytest.mark.parametrize("cut", CUTS[:-1])
def test_a_cut_shard_of_the_promised_size_costs_its_records(tmp_path, cut):
    """As a file system leaves it that made room for a file and did not write it to the end."""
    manifest = write_folder(str(tmp_path / "data"), paintings(9), shards=3)
    shard = tmp_path / "data" / manifest["shards"][1]["file"]
    data = shard.read_bytes()
    shard.write_bytes(data[:cut].ljust(len(data), b"\0"))
    folder = TrajectoryFolder(str(tmp_path / "data"), strict=False)
    lost = []
    for index in range(9):
        try:
            folder[index]
        except DataError as error:
            lost.append(index)
            assert f"record {index}: " in str(error)
    assert set(lost) <= {1, 4, 7}  # what lies in the part that was written can be read
    assert (lost == [1, 4, 7]) == bool(folder.damaged)
    if cut in (0, 1, 1000):
        assert lost == [1, 4, 7]


def test_a_missing_shard_and_a_wrong_count(tmp_path):
    manifest = write_folder(str(tmp_path / "data"), paintings(6), shards=3)
    (tmp_path / "data" / manifest["shards"][0]["file"]).unlink()
    manifest["shards"][2]["count"], manifest["count"] = 3, 7
    (tmp_path / "data" / "manifest.json").write_text(json.dumps(manifest))
    folder = TrajectoryFolder(str(tmp_path / "data"), strict=False)
    assert sorted(folder.damaged) == [manifest["shards"][i]["file"] for i in (0, 2)]
    assert folder[1].prompt and len(folder) == 7
    for index, what in ((0, "is missing"), (2, "holds 2 records, its manifest says 3")):
        with pytest.raises(DataError, match=what):
            folder[index]
    with pytest.raises(DataError, match="is missing"):
        TrajectoryFolder(str(tmp_path / "data"))


def test_a_run_whose_shard_was_cut_goes_on_without_its_records(tmp_path):
    manifest = write_folder(str(tmp_path / "data"), paintings(24), shards=3)
    begun = dataset(tmp_path / "data")
    next(begun)
    state, packs = begun.get_state(), len(begun.plan(0))
    shard = tmp_path / "data" / manifest["shards"][0]["file"]
    shard.write_bytes(shard.read_bytes()[:-1])
    resumed = dataset(tmp_path / "data")
    resumed.set_state(state)
    for _ in range(packs - 1):
        next(resumed)
    seen = {index for number in range(1, packs) for _, index in resumed.plan(0)[number]}
    left_out = {k: n for k, n in resumed.counters().items() if k.startswith("skipped")}
    assert left_out == {"skipped_failed": float(len(seen & set(range(0, 24, 3))))}
    assert read_manifest(str(tmp_path / "data"), strict=False) == manifest


# ---- records -------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", BAD_RECORDS)
def test_a_bad_record_is_counted_with_its_place(tmp_path, what):
    data, reason = BAD_RECORDS[what]
    good = record(lambda made: None)
    folder_of(tmp_path / "data", [good, data, good])
    iterator = dataset(tmp_path / "data")
    batches = an_epoch(iterator)
    assert iterator.skipped.counts == {"unreadable": 1}
    (example,) = iterator.skipped.examples
    assert "folder (source 0), record 1: " in example and reason in example
    assert any((batch.label_BxT != NO_LABEL).any() for batch in batches)
    with pytest.raises(DataError, match="1 records cannot be used; the first: .*record 1: "):
        next(dataset(tmp_path / "data", strict=True))


def test_a_folder_of_nothing_usable_is_an_error(tmp_path):
    folder_of(tmp_path / "data", [b"{}", b"[]"])
    with pytest.raises(DataError, match="2 unreadable"):
        next(dataset(tmp_path / "data"))


# ---- one-shot pairs ------------------------------------------------------------------------------


def test_stored_paintings_serve_as_one_shot_pairs(tmp_path):
    stored = paintings(12) + paintings(2, "strokes_plans") + paintings(4, "strokes_one_shot")
    write_folder(str(tmp_path / "data"), stored)
    source = build_source(SourceConfig("one_shot", path=str(tmp_path / "data")), 0)
    folder = build_source(SourceConfig("folder", path=str(tmp_path / "data")), 0)
    assert source.fingerprint != folder.fingerprint and len(source) == 18
    for index in (0, 5, 15):
        pair = source[index]
        assert pair.mode == "one_shot" and pair.prompt == stored[index].prompt and not pair.steps
        assert np.array_equal(pair.final_image, stored[index].final_image)
    with pytest.raises(DataError, match="record 12: no one-shot pair: it has no picture"):
        source[12]
    made = {"sources": [{"kind": "one_shot", "path": str(tmp_path / "data")}], "rows": 1}
    iterator = train_dataset(from_mapping({"data": made}))
    batch = next(iterator)
    assert (batch.copy_BxG != NO_COPY).any() and (batch.label_stage_BxT != 1).all()
    assert iterator.skipped.counts == {"unreadable": 2}


def test_rejected_and_unfinished_paintings_are_no_pairs(tmp_path):
    cut = paintings(40, "strokes_critique")
    rejected = next(t for t in cut if t.steps[-1].rejected)
    stopped = to_json(paintings(1)[0]) | {"finish_reason": "stopped"}
    records = [json.dumps(x).encode() for x in (to_json(rejected), stopped)]
    folder_of(tmp_path / "data", records)
    source = build_source(SourceConfig("one_shot", path=str(tmp_path / "data")), 0)
    for index, what in ((0, "its last sketch was rejected"), (1, "not finished but 'stopped'")):
        with pytest.raises(DataError, match=what):
            source[index]


# ---- augmentations -------------------------------------------------------------------------------


def test_augmented_sources_draw_anew_each_epoch(tmp_path):
    asked = paintings(6, "strokes_one_shot")
    write_folder(str(tmp_path / "data"), asked)

    def batches(augment, n=4):
        source = {"kind": "folder", "path": str(tmp_path / "data"), "augment": augment}
        made = {"sources": [source], "rows": 1, "grammar": {"text_dropout": 0.0}}
        iterator = train_dataset(from_mapping({"data": made}))
        return [next(iterator) for _ in range(n)], iterator.plan(0).hash

    plain, plan = batches([])
    flipped, other = batches(["flip"])
    again, _ = batches(["flip"])
    assert plan != other
    for a, b in zip(flipped, again, strict=True):
        assert np.array_equal(a.latent_BxGxP, b.latent_BxGxP)
    pairs = zip(plain, flipped, strict=True)
    assert any(not np.array_equal(a.latent_BxGxP, b.latent_BxGxP) for a, b in pairs)
    pixels = [np.sort(x.latent_BxGxP, axis=None) for x in (*plain, *flipped)]
    assert all(np.array_equal(pixels[0], x) for x in pixels)  # the same pixels, elsewhere
    places = {x.latent_BxGxP.tobytes() for x in flipped}
    assert len(places) == len(flipped)
    with pytest.raises(DataError, match="unknown augmentation"):
        batches(["rotate"])


FLUX = {"codec": "flux", "codec_channels": 16, "patch": 2}


def test_mirrored_pictures_have_no_stored_latents(tmp_path):
    write_folder(str(tmp_path / "data"), paintings(2))
    source = {"kind": "folder", "path": str(tmp_path / "data"), "augment": ["flip"]}
    made = {"data": {"sources": [source], "stored_latents": True}, "model": FLUX}
    with pytest.raises(ConfigError, match=r"augment=\['flip'\] changes pictures"):
        train_dataset(from_mapping(made))
