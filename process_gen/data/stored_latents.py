"""What a frozen autoencoder makes of the pictures of a trajectory folder, kept beside them.

    folder/latents/
      manifest.json                          whose pictures, which autoencoder, which sizes; shards
      latents-00000-of-00004.array_record    a record for each trajectory, in order

A record is a safetensors file in memory: for each picture of the trajectory, given ones first,
under its number, mean and log-variance of its latent tokens, ``float32[rows, columns, 2P]``
(float32, so that training on them equals encoding again). `train.latent_cache` writes them.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource
from etils import epath
from safetensors import numpy as safetensors

from process_gen.core.configs import Config, SourceConfig
from process_gen.core.errors import DataError
from process_gen.core.grammar import Kind, Segment
from process_gen.core.trajectory import Trajectory
from process_gen.data.builders import (
    MANIFEST,
    folder_fingerprint,
    read_manifest,
    wrong_manifest,
)
from process_gen.data.pictures import picture_rule

FOLDER = "latents"
FORMAT = 1
COMMAND = "python -m launch.encode_latents"


@dataclasses.dataclass(frozen=True)
class Key:
    """What stored latents depend on; kept in their manifest.

    Attributes:
      data: fingerprint of the trajectory folder.
      autoencoder: fingerprint of its weights.
      longest, shortest, stride, max_pixels: the rule by which pictures were resized.
      features: of a token, mean and log-variance.
    """

    data: str
    autoencoder: str
    longest: int
    shortest: int
    stride: int
    max_pixels: int
    features: int


def key_of(config: Config, folder: str, autoencoder: str) -> Key:
    """The key of a folder's latents under the sizes of a config.

    Raises:
      DataError: no trajectory folder, or a codec without an autoencoder.
    """
    rule = picture_rule(config).latent
    if rule is None or config.model.codec != "flux":
        raise DataError(f"latents are stored for model.codec='flux', not {config.model.codec!r}")
    return Key(
        data=folder_fingerprint(read_manifest(folder)),
        autoencoder=autoencoder,
        **dataclasses.asdict(rule),
        features=2 * config.model.latent_features,
    )


def to_record(moments: Sequence[np.ndarray]) -> bytes:
    """A record of ``float32[rows, columns, 2P]`` arrays."""
    return safetensors.save({str(i): np.ascontiguousarray(x) for i, x in enumerate(moments)})


def read_latents_manifest(folder: str) -> dict[str, Any] | None:
    """The manifest beside a trajectory folder's pictures; None where there is none.

    Raises:
      DataError: it is damaged or of another format.
    """
    path = epath.Path(folder) / FOLDER / MANIFEST
    if not path.exists():
        return None
    try:
        manifest = json.loads(path.read_bytes())
        if wrong := wrong_manifest(manifest, (FORMAT,)):
            raise DataError(f"{path}: {wrong}; delete its folder")
        Key(**manifest["key"])
        for shard in manifest["shards"]:
            file = path.parent / shard["file"]
            if (size := file.stat().length) != shard["bytes"]:
                raise DataError(f"{file} has {size} bytes, its manifest says {shard['bytes']}")
    except DataError:
        raise
    except (OSError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise DataError(f"{path} is damaged: {error!r}; delete its folder") from error
    return manifest


def differences(found: Mapping[str, Any], wanted: Key) -> str:
    """What sets a manifest's key apart from the wanted one, in words; empty where nothing does."""
    both = dataclasses.asdict(wanted)
    return ", ".join(
        f"{name} is {found[name]!r} there and {value!r} here"
        for name, value in both.items()
        if found[name] != value
    )


class ByIndex(Protocol):
    """Moments of the painted pictures of a source's trajectories."""

    def __getitem__(self, index: int, /) -> list[np.ndarray]: ...


class StoredLatents:
    """Random access to the latents of a trajectory folder."""

    def __init__(self, folder: str, config: Config, autoencoder: str | None = None):
        """Opens them.

        Args:
          folder: of trajectories.
          config: of the run, whose picture sizes must be those that were encoded.
          autoencoder: fingerprint that they must have; None leaves it unchecked.

        Raises:
          DataError: there are none, they are not complete, or they are of other pictures, another
            autoencoder or other sizes.
        """
        self.folder = folder
        manifest = read_latents_manifest(folder)
        if manifest is None:
            raise DataError(
                f"{folder} holds no latents; make them with {COMMAND}, or set "
                "data.stored_latents=False"
            )
        wanted = key_of(config, folder, autoencoder or manifest["key"]["autoencoder"])
        if wrong := differences(manifest["key"], wanted):
            raise DataError(
                f"the latents in {folder} do not belong to this run: {wrong}; make them anew "
                f"with {COMMAND}, or set data.stored_latents=False"
            )
        shards = manifest["shards"]
        count = sum(shard["count"] for shard in shards)
        if count != manifest["count"]:
            raise DataError(
                f"{folder} holds the latents of {count} of {manifest['count']} trajectories; "
                f"{COMMAND} goes on where it stopped"
            )
        where = epath.Path(folder) / FOLDER
        try:
            self._records = ArrayRecordDataSource([str(where / shard["file"]) for shard in shards])
            held = len(self._records)
        except Exception as error:  # ArrayRecord's native reader raises bare RuntimeError.
            raise DataError(f"{where} is damaged: {error}; delete it") from error
        if held != count:
            raise DataError(f"{where} holds {held} records, its manifest says {count}; delete it")

    def __getitem__(self, index: int) -> list[np.ndarray]:
        """Moments of the pictures of trajectory `index`, ``float32[rows, columns, 2P]``.

        Raises:
          DataError: the record is damaged.
        """
        try:
            found = safetensors.load(self._records[index])
            return [found[str(i)] for i in range(len(found))]
        except Exception as error:  # two native readers, each with errors of its own
            raise DataError(f"{self.folder}, latents of record {index}: {error}") from error


class _Finished:
    """Of the last picture of every trajectory only; source "one_shot" shows no other."""

    def __init__(self, latents: StoredLatents):
        self._latents = latents

    def __getitem__(self, index: int) -> list[np.ndarray]:
        return self._latents[index][-1:]


_KINDS: Mapping[str, Callable[[StoredLatents], ByIndex]] = {
    "folder": lambda latents: latents,
    "one_shot": _Finished,
}


def open_all(
    config: Config, sources: Sequence[SourceConfig], autoencoder: str | None = None
) -> list[ByIndex]:
    """The latents of every source of a run; see `StoredLatents`.

    Raises:
      DataError: a source is no folder, or has none that belong to the run.
    """
    for source in sources:
        if source.kind not in _KINDS:
            raise DataError(f"data.stored_latents: source {source.kind!r} is no folder, has none")
    return [_KINDS[s.kind](StoredLatents(s.path, config, autoencoder)) for s in sources]


def attach(
    segments: Sequence[Segment], trajectory: Trajectory, moments: Sequence[np.ndarray]
) -> list[Segment]:
    """The segments of a trajectory, those with latent tokens with what is stored of them.

    Raises:
      DataError: the pictures are not those that were encoded.
    """
    images = trajectory.all_images
    if len(images) != len(moments):
        raise DataError(f"{len(images)} pictures, but latents of {len(moments)}")
    of = {id(image): one for image, one in zip(images, moments, strict=True)}
    return [
        dataclasses.replace(segment, encoded=of[id(segment.image)])
        if segment.kind in (Kind.NOISED, Kind.CLEAN)
        else segment
        for segment in segments
    ]
