"""Folders of trajectories on disk: ArrayRecord shards of JSON lines, and a manifest.

    folder/
      manifest.json                              counts, hashes and, when measured, lengths
      trajectories-00000-of-00004.array_record   a record is `core.trajectory.to_json` as UTF-8 JSON

ArrayRecord gives random access without reading what lies before, which a packed plan needs.
`write_folder` deals records out to its shards in turn (format 1). `curation.engine` gives each
shard a run of consecutive ones (format 2), so that shards can be made apart from each other.
"""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordWriter
from etils import epath

from process_gen.core.errors import DataError
from process_gen.core.trajectory import Trajectory, from_json, to_json

MANIFEST = "manifest.json"
_PLAIN_NAME = re.compile(r"[\w-][\w.-]*")
DEALT, CONSECUTIVE = 1, 2  # formats, by how records are spread over shards


def to_line(trajectory: Trajectory) -> bytes:
    """A record.

    Raises:
      DataError: a text holds half a surrogate pair, which UTF-8 cannot say.
    """
    try:
        return json.dumps(to_json(trajectory), ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise DataError(f"a text is no valid Unicode: {error}") from error


def from_line(data: bytes) -> Trajectory:
    """Reads what `to_line` wrote, or what somebody else did.

    Raises:
      DataError: no JSON, or no UTF-8.
      TrajectoryError: see `core.trajectory.from_json`.
    """
    try:
        record = json.loads(data)
    except (ValueError, RecursionError) as error:  # of UTF-8 too
        raise DataError(f"no JSON: {error}") from error
    return from_json(record)


def open_shard(path: Path) -> ArrayRecordWriter:
    """A local shard to write records to; `close` it in the end."""
    return ArrayRecordWriter(str(path), "group_size:1")


def shard_name(number: int, shards: int) -> str:
    """File name of a shard."""
    return f"trajectories-{number:05d}-of-{shards:05d}.array_record"


def shard_entry(path: Path, count: int) -> dict[str, Any]:
    """What a manifest says of a closed local shard with `count` records."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"file": path.name, "count": count, "bytes": path.stat().st_size, "sha256": digest}


def write_folder(
    folder: str,
    trajectories: Iterable[Trajectory],
    shards: int = 1,
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Writes a trajectory folder; record i goes to shard ``i % shards``.

    Args:
      folder: new or empty; may be remote.
      trajectories: validated ones.
      shards: number of shard files.
      extra: further fields of the manifest.

    Returns:
      The manifest.

    Raises:
      DataError: the folder holds something already, or `shards` is not positive.
    """
    if shards < 1:
        raise DataError(f"shards must be at least 1, got {shards}")
    target = epath.Path(folder)
    if target.exists() and any(target.iterdir()):
        raise DataError(f"{folder} is not empty; give a new folder")
    target.mkdir(parents=True, exist_ok=True)
    names = [shard_name(i, shards) for i in range(shards)]
    counts = [0] * shards
    # The writer knows local files only, so shards are made beside and then copied.
    with tempfile.TemporaryDirectory() as scratch:
        paths = [Path(scratch) / name for name in names]
        writers = [open_shard(path) for path in paths]
        for i, trajectory in enumerate(trajectories):
            writers[i % shards].write(to_line(trajectory))
            counts[i % shards] += 1
        for writer in writers:
            writer.close()
        manifest: dict[str, Any] = {
            "format": DEALT,
            "count": sum(counts),
            "shards": [shard_entry(path, n) for path, n in zip(paths, counts, strict=True)],
            **(extra or {}),
        }
        for path in paths:
            epath.Path(path).copy(target / path.name)
    # The manifest comes last: a folder without one is a broken copy.
    text = json.dumps(manifest, indent=1)
    (target / MANIFEST).write_text(text + "\n")
    return json.loads(text)


def read_manifest(folder: str, strict: bool = True) -> dict[str, Any]:
    """The manifest of a trajectory folder.

    Args:
      folder: written by `write_folder`.
      strict: whether all shards must be there and of the right size.

    Raises:
      DataError: there is none, or it is damaged; under `strict`, a shard is too.
    """
    path = epath.Path(folder) / MANIFEST
    try:
        manifest = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{folder} is not a trajectory folder: {error!r}") from error
    if wrong := wrong_manifest(manifest):
        raise DataError(f"{path}: {wrong}")
    for shard in manifest["shards"] if strict else ():
        if wrong := _wrong_size(path.parent / shard["file"], shard["bytes"]):
            raise DataError(wrong)
    return manifest


def wrong_manifest(manifest: Any, formats: Sequence[int] = (DEALT, CONSECUTIVE)) -> str:
    """What is wrong with a decoded manifest, which a stranger may have written; empty if nothing.

    Files are plain names, so that a folder reads nothing outside of it.

    Args:
      manifest: any JSON value.
      formats: those that the caller reads.
    """

    def whole(value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 62

    if not isinstance(manifest, dict):
        return "no JSON object"
    kind = manifest.get("format")
    if kind not in formats or isinstance(kind, bool):
        return f"folder format {kind!r}; this code reads {' and '.join(map(str, formats))}"
    shards = manifest.get("shards")
    if not whole(manifest.get("count")) or not isinstance(shards, list) or not shards:
        return "'count' is no whole number, or 'shards' no list of files"
    for number, shard in enumerate(shards):
        if not isinstance(shard, dict) or not isinstance(shard.get("sha256"), str):
            return f"shard {number} has no 'sha256'"
        name = shard.get("file")
        if not isinstance(name, str) or not _PLAIN_NAME.fullmatch(name):
            return f"shard {number}: {name!r} is no plain file name"
        if not whole(shard.get("count")) or not whole(shard.get("bytes")):
            return f"shard {number}: 'count' and 'bytes' must be whole numbers"
        # A record takes more than a byte; else a few digits here cost any amount of memory.
        if shard["count"] > shard["bytes"]:
            return f"shard {number}: {shard['count']} records in {shard['bytes']} bytes"
    return ""


def _wrong_size(file: epath.Path, wanted: int) -> str:
    """What is wrong with a shard's size; empty when nothing is."""
    if not file.exists():
        return f"{file} is missing"
    size = file.stat().length
    return f"{file} has {size} bytes, its manifest says {wanted}" if size != wanted else ""


def _open_shard(file: epath.Path, shard: Mapping[str, Any]) -> ArrayRecordDataSource | str:
    """An opened shard, or what is wrong with it."""
    if wrong := _wrong_size(file, shard["bytes"]):
        return wrong
    try:
        records = ArrayRecordDataSource([str(file)])
        count = len(records)
    except Exception as error:  # ArrayRecord's native reader raises bare RuntimeError.
        return f"{file} is damaged: {error}"
    if count != shard["count"]:
        return f"{file} holds {count} records, its manifest says {shard['count']}"
    return records


class TrajectoryFolder:
    """Random access to the trajectories of a folder, in the order in which they were written.

    Attributes:
      folder: its path.
      manifest: what its manifest says.
      damaged: what is wrong with shards that cannot be read, by file name; empty under `strict`.
    """

    def __init__(self, folder: str, strict: bool = True):
        """Opens a folder.

        Args:
          folder: written by `write_folder`.
          strict: whether a shard that cannot be read is an error here, or each of its records is
            one when it is asked for.

        Raises:
          DataError: see `read_manifest`; or the shards hold another number of records.
        """
        self.folder = folder
        self.manifest = read_manifest(folder, strict)
        opened = {
            shard["file"]: _open_shard(epath.Path(folder) / shard["file"], shard)
            for shard in self.manifest["shards"]
            if shard["count"]
        }
        self.damaged = {file: what for file, what in opened.items() if isinstance(what, str)}
        if strict and self.damaged:
            raise DataError(next(iter(self.damaged.values())))
        counted = sum(shard["count"] for shard in self.manifest["shards"])
        if counted != self.manifest["count"]:
            said = self.manifest["count"]
            raise DataError(f"{folder}: its manifest says {said} records, its shards {counted}")
        self._shards = [opened.get(shard["file"], "") for shard in self.manifest["shards"]]
        self._dealt = self.manifest["format"] == DEALT
        counts = [shard["count"] for shard in self.manifest["shards"]]
        self._first = np.concatenate([[0], np.cumsum(counts)])

    def __len__(self) -> int:
        """Number of trajectories."""
        return int(self.manifest["count"])

    def __getitem__(self, index: int) -> Trajectory:
        """Reads trajectory `index`.

        Raises:
          DataError: the record is damaged; the text says which one and why.
        """
        if not 0 <= index < len(self):
            raise DataError(f"{self.folder}: no record {index}, it holds {len(self)}")
        if self._dealt:
            number, row = index % len(self._shards), index // len(self._shards)
        else:
            number = int(np.searchsorted(self._first, index, side="right")) - 1
            row = index - int(self._first[number])
        shard = self._shards[number]
        if isinstance(shard, str):
            raise DataError(f"{self.folder}, record {index}: {shard}")
        try:
            return from_line(shard[row])
        except Exception as error:  # ArrayRecord's native reader raises bare RuntimeError.
            raise DataError(f"{self.folder}, record {index}: {error}") from error


def length_summary(length_Nx3: np.ndarray) -> dict[str, Any]:
    """Mean, largest value and a ten-bin histogram of T, V and G, for manifests and logs."""
    summary: dict[str, Any] = {}
    for name, column in zip(("text", "und", "gen"), length_Nx3.T, strict=True):
        counts, edges = np.histogram(column, bins=10)
        summary[name] = {
            "mean": round(float(column.mean()), 2),
            "max": int(column.max()),
            "histogram": counts.tolist(),
            "edges": [round(float(edge), 1) for edge in edges],
        }
    return summary


def folder_fingerprint(manifest: Mapping[str, Any]) -> str:
    """Hash of the records, whatever else the manifest says."""
    shards: Sequence[Mapping[str, Any]] = manifest["shards"]
    parts = [(shard["sha256"], shard["count"]) for shard in shards]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
