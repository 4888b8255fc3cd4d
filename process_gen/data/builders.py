"""Folders of trajectories on disk: ArrayRecord shards of JSON lines, and a manifest.

    folder/
      manifest.json                              counts, hashes and, when measured, lengths
      trajectories-00000-of-00004.array_record   a record is `core.trajectory.to_json` as UTF-8 JSON

ArrayRecord gives random access without reading what lies before, which a packed plan needs.
"""

from __future__ import annotations

import hashlib
import json
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
FOLDER_FORMAT = 1


def _file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
    names = [f"trajectories-{i:05d}-of-{shards:05d}.array_record" for i in range(shards)]
    counts = [0] * shards
    # The writer knows local files only, so shards are made beside and then copied.
    with tempfile.TemporaryDirectory() as scratch:
        paths = [Path(scratch) / name for name in names]
        writers = [ArrayRecordWriter(str(path), "group_size:1") for path in paths]
        for i, trajectory in enumerate(trajectories):
            line = json.dumps(to_json(trajectory), ensure_ascii=False)
            writers[i % shards].write(line.encode())
            counts[i % shards] += 1
        for writer in writers:
            writer.close()
        manifest: dict[str, Any] = {
            "format": FOLDER_FORMAT,
            "count": sum(counts),
            "shards": [
                {
                    "file": path.name,
                    "count": count,
                    "bytes": path.stat().st_size,
                    "sha256": _file_hash(path),
                }
                for path, count in zip(paths, counts, strict=True)
            ],
            **(extra or {}),
        }
        for path in paths:
            epath.Path(path).copy(target / path.name)
    # The manifest comes last: a folder without one is a broken copy.
    text = json.dumps(manifest, indent=1)
    (target / MANIFEST).write_text(text + "\n")
    return json.loads(text)


def read_manifest(folder: str) -> dict[str, Any]:
    """The manifest of a trajectory folder.

    Raises:
      DataError: there is none, it is damaged, or its shards are missing or of another size.
    """
    path = epath.Path(folder) / MANIFEST
    try:
        manifest = json.loads(path.read_text())
        if manifest["format"] != FOLDER_FORMAT:
            raise DataError(
                f"{path}: folder format {manifest['format']!r}; this code reads {FOLDER_FORMAT}"
            )
        for shard in manifest["shards"]:
            file = path.parent / shard["file"]
            size = file.stat().length
            if size != shard["bytes"]:
                raise DataError(f"{file} has {size} bytes, its manifest says {shard['bytes']}")
        return manifest
    except (OSError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise DataError(f"{folder} is not a trajectory folder: {error!r}") from error


class TrajectoryFolder:
    """Random access to the trajectories of a folder, in the order in which they were written."""

    def __init__(self, folder: str):
        """Opens a folder.

        Raises:
          DataError: see `read_manifest`; or the shards hold another number of records.
        """
        self.folder = folder
        self.manifest = read_manifest(folder)
        shards = self.manifest["shards"]
        paths = [str(epath.Path(folder) / shard["file"]) for shard in shards if shard["count"]]
        self._records = ArrayRecordDataSource(paths) if paths else None
        stored = len(self._records) if self._records is not None else 0
        if stored != self.manifest["count"]:
            raise DataError(
                f"{folder} holds {stored} records, its manifest says {self.manifest['count']}"
            )
        counts = [shard["count"] for shard in shards]
        self._shards = len(shards)
        self._first = np.concatenate([[0], np.cumsum(counts)])

    def __len__(self) -> int:
        """Number of trajectories."""
        return int(self.manifest["count"])

    def __getitem__(self, index: int) -> Trajectory:
        """Reads trajectory `index`.

        Raises:
          DataError: the record is damaged; the text says which one and why.
        """
        if not 0 <= index < len(self) or self._records is None:
            raise DataError(f"{self.folder}: no record {index}, it holds {len(self)}")
        row = int(self._first[index % self._shards]) + index // self._shards
        try:
            return from_json(json.loads(self._records[row]))
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
