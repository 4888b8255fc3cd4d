"""Trajectories as a tensorflow-datasets dataset, written and read without TensorFlow.

    builder = Trajectories(config=StrokesConfig(train=1000, held_out=100), data_dir="/data")
    builder.download_and_prepare()
    records = builder.as_data_source("train")

A record has the columns `trajectory` (JSON of `core.trajectory.to_json`), `prompt` and `tag`, all
three UTF-8 bytes, and `steps` (int64). Pictures stay inside the JSON, for tfds' own picture
column needs TensorFlow to encode arrays.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from process_gen.core.configs import SourceConfig
from process_gen.core.errors import DataError
from process_gen.core.trajectory import Trajectory
from process_gen.data.builders import folder_fingerprint, from_line, read_manifest, to_line
from process_gen.data.sources import Source, build_source


@dataclasses.dataclass
class StrokesConfig(tfds.core.BuilderConfig):
    """Generated trajectories, as the splits "train" and "eval".

    Attributes:
      name: part of the path, by which tfds finds prepared data; derived from the rest if empty.
      kind: one of the `strokes` kinds of `data.sources`.
      seed: of "train", like `data.seed`; "eval" is the same for every seed.
      train, held_out: trajectories in the two splits; a split of none is left out.
      options: fields of `strokes.plans.StrokesOptions`.
    """

    name: str = ""
    kind: str = "strokes"
    seed: int = 0
    train: int = 10_000
    held_out: int = 500
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        what = json.dumps([self.kind, self.seed, self.train, self.held_out, dict(self.options)])
        self.name = self.name or f"{self.kind}-{hashlib.sha256(what.encode()).hexdigest()[:12]}"

    def sources(self) -> dict[str, Source]:
        """The trajectories of each split."""

        def source(split: Any, size: int) -> Source:
            config = SourceConfig(kind=self.kind, size=size, options=self.options)
            return build_source(config, self.seed, split)

        sizes = {"train": self.train, "eval": self.held_out}
        return {split: source(split, size) for split, size in sizes.items() if size}


@dataclasses.dataclass
class FolderConfig(tfds.core.BuilderConfig):
    """The trajectories of a folder, in its order, as the split "train".

    Attributes: `name` as above; `folder`, written by `data.builders.write_folder`.
    """

    name: str = ""
    folder: str = ""

    def __post_init__(self) -> None:
        self.name = self.name or f"folder-{folder_fingerprint(read_manifest(self.folder))}"

    def sources(self) -> dict[str, Source]:
        """The trajectories of each split."""
        return {"train": build_source(SourceConfig(kind="folder", path=self.folder), 0)}


class Trajectories(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Writes what a `StrokesConfig` or a `FolderConfig` says, in the order of the source."""

    VERSION = tfds.core.Version("1.0.0")
    # Nothing is downloaded; looking for checksums would need a package that tfds does not ask for.
    url_infos = None

    def __init__(self, *, config: StrokesConfig | FolderConfig, **kwargs: Any):
        """Takes tfds' own arguments; ArrayRecord is the format that needs no TensorFlow."""
        self._config = config
        super().__init__(config=config, **{"file_format": "array_record", **kwargs})

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text()
        features = {"trajectory": text, "prompt": text, "tag": text, "steps": np.int64}
        return tfds.core.DatasetInfo(
            builder=self,
            description="Paintings in steps: plan, sketch, inspection, refinement.",
            features=tfds.features.FeaturesDict(features),
            metadata=tfds.core.MetadataDict(sha256={}, supervise="all"),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        sources = self._config.sources()
        for source in sources.values():
            self.info.metadata["supervise"] = source.supervise
        return {name: self._generate_examples(name, source) for name, source in sources.items()}

    def _generate_examples(self, split: str, source: Source) -> Iterator[tuple[int, Any]]:
        hashed = hashlib.sha256()
        for index in range(len(source)):
            one = source[index]
            line = to_line(one).decode()
            hashed.update(line.encode() + b"\n")
            columns = {"trajectory": line, "prompt": one.prompt, "tag": one.metadata.get("tag", "")}
            yield index, {**columns, "steps": len(one.steps)}
        self.info.metadata["sha256"][split] = hashed.hexdigest()


class Prepared:
    """Random access to one split of a dataset that `Trajectories` has written."""

    def __init__(self, path: str, split: str):
        """Opens the folder with `dataset_info.json`.

        Raises:
          DataError: it is none of ours, or has no such split.
        """
        self._where = f"{path}, split {split}"
        try:
            builder = tfds.builder_from_directory(path)
            self.manifest: Mapping[str, Any] = builder.info.metadata or {}
            self.fingerprint: str = self.manifest["sha256"][split]
            self._records: Any = builder.as_data_source(split)
        except Exception as error:  # tfds raises many unrelated types at a foreign folder
            raise DataError(f"{self._where}: no prepared trajectories: {error!r}") from error

    def __len__(self) -> int:
        """Number of trajectories."""
        return len(self._records)

    def __getitem__(self, index: int) -> Trajectory:
        """Reads one; a `DataError` where there is none or it is damaged."""
        try:
            return from_line(self._records[index]["trajectory"])
        except Exception as error:  # ArrayRecord's native reader raises bare RuntimeError.
            raise DataError(f"{self._where}, record {index}: {error}") from error
