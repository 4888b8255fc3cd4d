"""Where trajectories come from: sources by name, each a sequence with a fingerprint.

A source is anything with `Source`'s six members; `KINDS` maps the names that a config may use to
functions that build one. Adding your own takes a class and a line in that table (docs/data.md).
"""

from __future__ import annotations

import dataclasses
import hashlib
import typing
from collections.abc import Callable
from typing import Any, Literal, Protocol

import numpy as np

from process_gen.core.configs import SourceConfig
from process_gen.core.errors import DataError
from process_gen.core.grammar import Supervise
from process_gen.core.trajectory import Trajectory
from process_gen.data.builders import TrajectoryFolder, folder_fingerprint
from process_gen.strokes.plans import (
    StrokesOptions,
    critique_only,
    one_shot,
    outline_at,
    text_only,
    trajectory_at,
)

Split = Literal["train", "eval"]


class Source(Protocol):
    """A sequence of trajectories.

    Attributes:
      fingerprint: hash of what the indices mean; changes whenever a trajectory would.
      fresh: True when any index >= 0 is valid and each epoch takes new ones (generated data); False
        when indices end at ``len`` and are read again (stored data).
      supervise: what carries a loss, see `core.grammar.to_segments`.
    """

    fingerprint: str
    fresh: bool
    supervise: Supervise

    def __len__(self) -> int:
        """Trajectories an epoch."""
        ...

    def __getitem__(self, index: int) -> Trajectory:
        """The trajectory; a `ProcessGenError` for a record that cannot be used."""
        ...

    def outline(self, index: int) -> Trajectory:
        """The same texts and picture sizes, pictures perhaps blank; for measuring lengths."""
        ...


class Records(Protocol):
    """Opened storage of trajectories."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Trajectory: ...


@dataclasses.dataclass(frozen=True)
class Generated:
    """Trajectories that a function makes from an index.

    Attributes:
      make, sketch: index -> trajectory, and its outline.
      size: trajectories an epoch.
      fingerprint, fresh, supervise: see `Source`.
    """

    make: Callable[[int], Trajectory]
    sketch: Callable[[int], Trajectory]
    size: int
    fingerprint: str
    supervise: Supervise = "all"
    fresh: bool = True

    def __len__(self) -> int:
        """Trajectories an epoch."""
        return self.size

    def __getitem__(self, index: int) -> Trajectory:
        """The trajectory with this number."""
        return self.make(index)

    def outline(self, index: int) -> Trajectory:
        """Its texts and picture sizes."""
        return self.sketch(index)


class Stored:
    """Trajectories that something else keeps, such as a folder on disk."""

    fresh = False

    def __init__(self, records: Records, where: str, fingerprint: str, supervise: Any):
        """Takes opened records; `supervise` is checked, for it comes from a file or a config.

        Raises:
          DataError: there are none, or an unknown way of supervising.
        """
        if supervise not in typing.get_args(Supervise):
            wanted = " or ".join(typing.get_args(Supervise))
            raise DataError(f"{where}: supervise is {supervise!r}, wanted {wanted}")
        if not len(records):
            raise DataError(f"{where} holds no trajectories")
        self._records = records
        self.supervise: Supervise = supervise
        self.fingerprint = fingerprint

    def __len__(self) -> int:
        """Number of trajectories."""
        return len(self._records)

    def __getitem__(self, index: int) -> Trajectory:
        """Reads one."""
        return self._records[index]

    def outline(self, index: int) -> Trajectory:
        """The trajectory itself."""
        return self._records[index]


def derived_seed(*parts: object) -> int:
    """A seed in [0, 2**63) that depends on every part and on nothing else."""
    text = "/".join(map(str, parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def _strokes(
    change: Callable[[np.random.Generator, Trajectory], Trajectory], supervise: Supervise = "all"
) -> Callable[[SourceConfig, int, Split], Source]:
    def build(config: SourceConfig, seed: int, split: Split) -> Source:
        options = StrokesOptions.from_mapping(config.options)
        # The held-out split is the same in every run, whatever the run's own seed.
        own = derived_seed(config.kind, split, seed if split == "train" else "")

        def changed(index: int, trajectory: Trajectory) -> Trajectory:
            return change(np.random.default_rng([own, index, 1]), trajectory)

        return Generated(
            make=lambda index: changed(index, trajectory_at(own, index, options)),
            sketch=lambda index: changed(index, outline_at(own, index, options)),
            size=config.size,
            fingerprint=f"{config.kind}:{own}:{options}",
            supervise=supervise,
        )

    return build


def _check(config: SourceConfig, known: set[str]) -> None:
    unknown = sorted(set(config.options) - known)
    if unknown:
        raise DataError(f"source {config.kind!r}: unknown option(s) {', '.join(unknown)}")
    if not config.path:
        raise DataError(f"source {config.kind!r} needs a path")


def _folder(config: SourceConfig, seed: int, split: Split) -> Source:
    del seed, split  # a folder is what it is; training and held-out data are different folders
    _check(config, {"supervise"})
    # Records of a damaged shard are named and counted one by one, like any that cannot be used.
    records = TrajectoryFolder(config.path, strict=False)
    said = config.options.get("supervise") or records.manifest.get("supervise", "all")
    return Stored(records, config.path, folder_fingerprint(records.manifest), said)


class _Finished:
    """The prompts and finished pictures of stored trajectories."""

    def __init__(self, records: Records, where: str):
        self._records, self._where = records, where

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Trajectory:
        whole = self._records[index]
        last = whole.steps[-1] if whole.steps else None
        image = whole.final_image if last is None else last.image
        if whole.mode not in ("process", "one_shot") or whole.turns:
            what = f"mode {whole.mode!r} has more than a prompt and a picture"
        elif whole.finish_reason not in (None, "finished"):
            what = f"it was not finished but {whole.finish_reason!r}"
        elif last is not None and last.rejected and last.refined is None:
            what = "its last sketch was rejected"
        elif image is None:
            what = "it has no picture"
        else:
            return dataclasses.replace(whole, mode="one_shot", steps=(), final_image=image)
        raise DataError(f"{self._where}, record {index}: no one-shot pair: {what}")


def _one_shot(config: SourceConfig, seed: int, split: Split) -> Source:
    del seed, split
    _check(config, set())
    records = TrajectoryFolder(config.path, strict=False)
    fingerprint = f"one_shot:{folder_fingerprint(records.manifest)}"
    return Stored(_Finished(records, config.path), config.path, fingerprint, "all")


def _tfds(config: SourceConfig, seed: int, split: Split) -> Source:
    from process_gen.data.tfds_builders import Prepared  # takes half a second

    del seed
    _check(config, {"split", "supervise"})
    records = Prepared(config.path, config.options.get("split", split))
    said = config.options.get("supervise") or records.manifest.get("supervise")
    return Stored(records, config.path, records.fingerprint, said)


KINDS: dict[str, Callable[[SourceConfig, int, Split], Source]] = {
    "strokes": _strokes(lambda rng, trajectory: trajectory),
    "strokes_one_shot": _strokes(lambda rng, trajectory: one_shot(trajectory)),
    "strokes_plans": _strokes(lambda rng, trajectory: text_only(trajectory)),
    "strokes_critique": _strokes(critique_only, "last_inspection"),
    "folder": _folder,
    "one_shot": _one_shot,
    "tfds": _tfds,
}


def build_source(config: SourceConfig, seed: int, split: Split = "train") -> Source:
    """Builds the source that a config names.

    Args:
      config: kind, size, path and options.
      seed: of generated training data.
      split: "train", or "eval" for the held-out split, which shares no seed with training.

    Raises:
      DataError: unknown kind, or what the kind itself objects to.
    """
    if config.kind not in KINDS:
        raise DataError(f"unknown data source {config.kind!r}; known: {', '.join(KINDS)}")
    return KINDS[config.kind](config, seed, split)
