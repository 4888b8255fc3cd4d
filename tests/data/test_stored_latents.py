from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from process_gen.core.configs import GrammarConfig, from_mapping
from process_gen.core.errors import DataError
from process_gen.core.grammar import Kind, to_segments
from process_gen.core.trajectory import Trajectory, Turn
from process_gen.data.builders import open_shard, shard_entry, write_folder
from process_gen.data.stored_latents import StoredLatents, attach, key_of, to_record
from tests.data.damage import paintings

IMAGES = [np.full((8, 8, 3), value, np.uint8) for value in range(3)]
MOMENTS = [np.full((1, 1, 4), value, np.float32) for value in range(3)]
TURNS = (
    Turn(False, image=IMAGES[0]),
    Turn(False, text="blue"),
    Turn(True, image=IMAGES[1]),
    Turn(False, text="round"),
    Turn(True, image=IMAGES[2]),
)


@pytest.mark.parametrize(
    "trajectory",
    [
        Trajectory("blue", mode="edit", inputs=(IMAGES[0],), final_image=IMAGES[1]),
        Trajectory("blue", mode="edit", turns=TURNS),
    ],
)
def test_given_pictures_have_latents_too(trajectory):
    moments = MOMENTS[: len(trajectory.all_images)]
    segments = attach(to_segments(trajectory, GrammarConfig()), trajectory, moments)
    for segment in segments:
        if segment.kind in (Kind.CLEAN, Kind.NOISED):
            assert segment.encoded.max() == segment.image.max()  # each picture its own
        else:
            assert segment.encoded is None
    with pytest.raises(DataError, match="latents of"):
        attach(segments, trajectory, moments[1:])


def stored(path):
    """A folder of two trajectories with latents of no picture; its config and its manifest."""
    write_folder(str(path), paintings(2))
    config = from_mapping({"model": {"codec": "flux", "codec_channels": 16, "patch": 2}})
    (path / "latents").mkdir()
    shard = path / "latents" / "latents-00000-of-00001.array_record"
    writer = open_shard(shard)
    for _ in range(2):
        writer.write(to_record([]))
    writer.close()
    key = dataclasses.asdict(key_of(config, str(path), "abc"))
    manifest = {"format": 1, "key": key, "count": 2, "shards": [shard_entry(shard, 2)]}
    (path / "latents" / "manifest.json").write_text(json.dumps(manifest))
    return config, manifest


def changed(manifest, **shard):
    return json.dumps({**manifest, "shards": [{**manifest["shards"][0], **shard}]}).encode()


DAMAGE = {
    "wrong UTF-8": (lambda m: b'{"format": "\xff"}', "utf-8"),
    "brackets": (lambda m: b"[" * 100_000, "recursion"),
    "a list": (lambda m: b"[]", "no JSON object"),
    "another format": (lambda m: json.dumps({**m, "format": 2}).encode(), "this code reads 1;"),
    "no key": (lambda m: json.dumps({**m, "key": 1}).encode(), "is damaged"),
    "no count": (lambda m: json.dumps({**m, "count": None}).encode(), "no whole number"),
    "a count in letters": (lambda m: changed(m, count="2"), "must be whole numbers"),
    "another folder": (lambda m: changed(m, file="../../other"), "no plain file name"),
    "no shard": (lambda m: changed(m, file="other"), "is damaged"),
    "another size": (lambda m: changed(m, bytes=9), "bytes, its manifest says 9"),
    "fewer records": (
        lambda m: changed({**m, "count": 1}, count=1),
        "holds 2 records, its manifest says 1",
    ),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_manifest_is_named(tmp_path, what):
    config, manifest = stored(tmp_path / "data")
    assert StoredLatents(str(tmp_path / "data"), config)[1] == []  # partner
    damage, reason = DAMAGE[what]
    (tmp_path / "data" / "latents" / "manifest.json").write_bytes(damage(manifest))
    with pytest.raises(DataError, match=f"latents.*{reason}"):
        StoredLatents(str(tmp_path / "data"), config)


def test_a_shard_that_is_none_is_named(tmp_path):
    config, manifest = stored(tmp_path / "data")
    shard = manifest["shards"][0]
    (tmp_path / "data" / "latents" / shard["file"]).write_bytes(bytes(shard["bytes"]))
    with pytest.raises(DataError, match="latents is damaged"):
        StoredLatents(str(tmp_path / "data"), config)
