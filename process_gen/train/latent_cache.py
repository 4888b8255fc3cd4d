"""Encodes the pictures of a trajectory folder once, ahead of training (`data.stored_latents`)."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import grain
import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from etils import epath
from jax.sharding import Mesh

from process_gen.core.configs import Config
from process_gen.core.errors import DataError, ProcessGenError
from process_gen.core.patches import patchify
from process_gen.data.builders import MANIFEST, TrajectoryFolder
from process_gen.data.images import Resize
from process_gen.data.pictures import picture_rule
from process_gen.data.stored_latents import (
    FOLDER,
    FORMAT,
    StoredLatents,
    differences,
    key_of,
    read_latents_manifest,
    to_record,
)
from process_gen.models.flux_codec import FluxCodec
from process_gen.train.picture_encoder import Picture, PictureEncoder

_RECORDS = 256  # trajectories of a shard: what an interruption costs at most
_THREADS = 4  # that read and resize pictures
_PICTURES = 16  # of the largest size that are encoded together


class _Item(NamedTuple):
    """The pictures of one trajectory as uint8 tokens ``[rows, columns, S]``."""

    tokens: list[np.ndarray]


class _Pictures:
    """The resized pictures of a folder, by trajectory; what grain's threads read."""

    def __init__(self, folder: str, rule: Resize):
        self._folder, self._rule = TrajectoryFolder(folder), rule

    def __len__(self) -> int:
        return len(self._folder)

    def __getitem__(self, index: int) -> _Item:
        try:
            images = self._folder[index].all_images
        except ProcessGenError:  # training leaves the trajectory out, and counts it
            return _Item([])
        resized = [self._rule.resized(image) for image in images]
        side = self._rule.stride
        return _Item(
            [
                patchify(image, side).reshape(image.shape[0] // side, image.shape[1] // side, -1)
                for image in resized
            ]
        )


def encode_folder(
    folder: str,
    config: Config,
    vae_params: Any,
    fingerprint: str,
    mesh: Mesh,
    report: Callable[[int, int], None] = lambda done, count: None,
) -> dict[str, Any]:
    """Writes the latents of every picture of a trajectory folder, into the folder.

    Goes on where it was interrupted. Texts and pictures are left as they are.

    Args:
      folder: of trajectories.
      config: `model` and `data.image_size` are those that training will have.
      vae_params: of the autoencoder, host arrays.
      fingerprint: of the autoencoder; training with another one will be refused.
      mesh: of one process; each of its devices encodes a picture at a time.
      report: called after each shard with the trajectories done so far and their number.

    Returns:
      The manifest of the latents.

    Raises:
      DataError: no trajectory folder, or it holds latents of another autoencoder or other sizes.
    """
    key, rule = key_of(config, folder, fingerprint), picture_rule(config).latent
    assert rule is not None  # `key_of` has refused it
    pictures = _Pictures(folder, rule)
    target = epath.Path(folder) / FOLDER
    manifest = read_latents_manifest(folder)
    if manifest is None:
        target.mkdir(parents=True, exist_ok=True)
        facts = dataclasses.asdict(key)
        manifest = {"format": FORMAT, "key": facts, "count": len(pictures), "shards": []}
    elif wrong := differences(manifest["key"], key):
        raise DataError(f"{target} holds other latents: {wrong}; delete it to make them anew")
    codec = FluxCodec(config.model.vae, config.model.patch)
    longest = -(-rule.longest // codec.side)
    encoder = PictureEncoder(codec, vae_params, longest, mesh)
    shards = math.ceil(len(pictures) / _RECORDS)
    for number in range(len(manifest["shards"]), shards):
        first, stop = number * _RECORDS, min((number + 1) * _RECORDS, len(pictures))
        records = _encoded(_read(pictures, first, stop), encoder, _PICTURES * longest**2)
        entry = _write_shard(target / f"latents-{number:05d}-of-{shards:05d}.array_record", records)
        manifest["shards"].append(entry)
        _publish(target / MANIFEST, json.dumps(manifest, indent=1) + "\n")
        report(stop, len(pictures))
    StoredLatents(folder, config, fingerprint)
    return manifest


def _publish(file: epath.Path, text: str) -> None:
    """Writes a file beside its place and renames it, so that a kill leaves the old one or this."""
    if "://" in os.fspath(file):  # object stores show a file when its upload is complete
        file.write_text(text)
        return
    beside = Path(f"{os.fspath(file)}.unfinished")
    with beside.open("w") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(beside, file)


def _read(pictures: _Pictures, first: int, stop: int) -> Iterator[_Item]:
    options = grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=2 * _THREADS)
    return iter(grain.MapDataset.source(pictures)[first:stop].to_iter_dataset(options))


def _encoded(items: Iterable[_Item], encoder: PictureEncoder, room: int) -> Iterator[bytes]:
    """A record for each item; as many as `room` has tokens for pass together, or a larger one."""
    waiting: list[_Item] = []
    used = 0
    for item in items:
        needed = sum(token_RxCxS[..., 0].size for token_RxCxS in item.tokens)
        if waiting and used + needed > room:
            yield from _encode(waiting, encoder, max(room, used))
            waiting, used = [], 0
        waiting.append(item)
        used += needed
    if waiting:
        yield from _encode(waiting, encoder, max(room, used))


def _encode(items: list[_Item], encoder: PictureEncoder, room: int) -> Iterator[bytes]:
    placed: list[Picture] = []
    at = 0
    for token_RxCxS in (tokens for item in items for tokens in item.tokens):
        placed.append(Picture(token_RxCxS, at))
        at += token_RxCxS[..., 0].size
    moments_MxF = np.asarray(encoder(placed, room).addressable_data(0))
    rest = iter(placed)
    for item in items:
        found = []
        for token_RxCxS, start in (next(rest) for _ in item.tokens):
            rows, columns, _ = token_RxCxS.shape
            one = moments_MxF[start : start + rows * columns]
            found.append(one.reshape(rows, columns, -1))
        yield to_record(found)


def _write_shard(file: epath.Path, records: Iterable[bytes]) -> dict[str, Any]:
    """Writes a shard beside and copies it, for the writer knows local files only."""
    with tempfile.TemporaryDirectory() as scratch:
        local = Path(scratch) / file.name
        writer = ArrayRecordWriter(str(local), "group_size:1")
        count = 0
        for record in records:
            writer.write(record)
            count += 1
        writer.close()
        with local.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        entry = {"file": file.name, "count": count, "bytes": local.stat().st_size, "sha256": digest}
        epath.Path(local).copy(file, overwrite=True)
    return entry
