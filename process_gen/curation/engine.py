"""Builds a trajectory folder shard by shard: resumable, parallel, and the same bytes every time.

A recipe turns item numbers into trajectories. Its items are cut into shards of consecutive ones,
and a shard is the unit of work: it is made under another name, flushed to disk and renamed, and so
is its *receipt*, a JSON file beside it. What has a receipt is done. A build that was killed at any
moment is continued by the same call; when all receipts are there, they become the manifest.

    folder/
      build.json                                 what is being made, while it is being made
      trajectories-00003-of-00020.array_record   a shard that is done
      trajectories-00003-of-00020.json           its receipt, until the manifest is written
      manifest.json                              written last

The bytes depend on the recipe and the number of shards only, never on workers, machines or kills.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from etils import epath

from process_gen.core.errors import DataError, ProcessGenError
from process_gen.core.grammar import Supervise
from process_gen.core.trajectory import Trajectory, validate
from process_gen.curation.tallies import verdict_report
from process_gen.data.builders import (
    CONSECUTIVE,
    MANIFEST,
    length_summary,
    open_shard,
    read_manifest,
    shard_entry,
    shard_name,
    to_line,
)

BUILD = "build.json"
_KEPT_SKIPS = 100


@dataclasses.dataclass(frozen=True, eq=False)
class Record:
    """A trajectory that came of an item."""

    item: int
    trajectory: Trajectory


@dataclasses.dataclass(frozen=True)
class Skip:
    """An item, or a part of one, that gave no trajectory.

    Attributes:
      reason: what is counted, the same for all skips of a kind.
      detail: of this one.
    """

    item: int
    reason: str
    detail: str = ""


@dataclasses.dataclass(frozen=True)
class Passed:
    """So many more items are through, whatever came of them; for the progress line."""

    items: int


Made = Record | Skip | Passed | Counter[str]  # counters are summed over all shards


class Recipe(Protocol):
    """Turns items into trajectories."""

    @property
    def supervise(self) -> Supervise:
        """What carries a loss, for all its trajectories."""
        ...

    @property
    def identity(self) -> Mapping[str, Any]:
        """JSON values that decide, together with an item's number, what comes of it."""
        ...

    def __len__(self) -> int:
        """Number of items."""
        ...

    def make(self, start: int, stop: int) -> Iterator[Made]:
        """Makes the items ``start..stop``, in order; a pure function of the two.

        All that is `Passed` adds up to ``stop - start``.
        """
        ...


class Measure(Protocol):
    """Counts tokens."""

    def __call__(self, trajectory: Trajectory, supervise: Supervise) -> tuple[int, int, int]:
        """T, V and G of a trajectory; a `ProcessGenError` where it cannot be trained on."""
        ...


@dataclasses.dataclass(frozen=True)
class Job:
    """What is to be built. Everything in it can be pickled, for workers make their own recipe.

    Attributes:
      recipe: makes the recipe.
      measure: makes the measure of lengths.
      identity: of the recipe, the lengths and the versions; a build goes on only as the same one.
      items, shards: how many.
      supervise: of the recipe.
      about: further fields of the manifest.
      strict: whether a skip is an error.
    """

    recipe: Callable[[], Recipe]
    measure: Callable[[], Measure]
    identity: Mapping[str, Any]
    items: int
    shards: int
    supervise: Supervise
    about: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    strict: bool = False

    def __post_init__(self) -> None:
        """Checks sizes."""
        if self.shards < 1 or self.items < 1:
            raise DataError(f"cannot build {self.items} items in {self.shards} shards")

    def bounds(self, shard: int) -> tuple[int, int]:
        """The items ``start..stop`` of a shard."""
        return shard * self.items // self.shards, (shard + 1) * self.items // self.shards


# ---- files ---------------------------------------------------------------------------------------


def is_local(folder: str) -> bool:
    """Whether a folder lies on a file system, where a rename is atomic."""
    return "://" not in folder


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _publish(scratch: Path, target: epath.Path) -> None:
    """Puts a finished local file in its place, all at once."""
    if is_local(os.fspath(target)):
        _sync(scratch)
        os.replace(scratch, target)
        _sync(Path(target).parent)
    else:  # object stores show a file when its upload is complete
        epath.Path(scratch).copy(target, overwrite=True)


@contextlib.contextmanager
def _scratch(folder: str) -> Iterator[Path]:
    """A folder for files that are not finished; on the same file system where there is one."""
    parent = folder if is_local(folder) else None
    path = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=parent))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _write_json(folder: str, name: str, value: Any) -> None:
    with _scratch(folder) as scratch:
        (scratch / name).write_text(json.dumps(value, indent=1, ensure_ascii=True) + "\n")
        _publish(scratch / name, epath.Path(folder) / name)


def _receipt_name(job: Job, shard: int) -> str:
    return shard_name(shard, job.shards).removesuffix(".array_record") + ".json"


def _read_receipt(job: Job, folder: str, shard: int) -> dict[str, Any] | None:
    path = epath.Path(folder) / _receipt_name(job, shard)
    try:
        receipt = json.loads(path.read_text())
        stored = (path.parent / receipt["shard"]["file"]).stat().length
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return receipt if stored == receipt["shard"]["bytes"] else None


# ---- one shard -----------------------------------------------------------------------------------


def make_shard(
    job: Job,
    recipe: Recipe,
    measure: Measure,
    folder: str,
    shard: int,
    tick: Callable[[int], None] = lambda items: None,
) -> dict[str, Any]:
    """Makes one shard and its receipt, which is returned.

    Args:
      job, folder: see `build`.
      recipe, measure: made by the job.
      shard: its number.
      tick: told how many items are through; what it raises ends the work and leaves nothing.

    Raises:
      DataError: something was skipped, and the job is strict.
    """
    start, stop = job.bounds(shard)
    skips: list[Skip] = []
    tally: Counter[str] = Counter()
    lengths: list[tuple[int, int, int]] = []
    with _scratch(folder) as scratch:
        path = scratch / shard_name(shard, job.shards)
        writer = open_shard(path)
        try:
            for made in recipe.make(start, stop):
                if isinstance(made, Passed):
                    tick(made.items)
                    continue
                if isinstance(made, Counter):
                    tally.update(made)
                    continue
                if isinstance(made, Record):
                    made = _store(made, writer, measure, job.supervise, lengths)
                if made is not None:
                    if job.strict:
                        raise DataError(f"item {made.item}: {made.reason}: {made.detail}")
                    skips.append(made)
        finally:
            writer.close()
        receipt = {
            "shard": shard_entry(path, len(lengths)),
            "skipped": dict(sorted(Counter(skip.reason for skip in skips).items())),
            "skips": [dataclasses.asdict(skip) for skip in skips[:_KEPT_SKIPS]],
            "tally": dict(sorted(tally.items())),
            "lengths": lengths,
        }
        _publish(path, epath.Path(folder) / path.name)
    _write_json(folder, _receipt_name(job, shard), receipt)
    return receipt


def _store(
    record: Record,
    writer: Any,
    measure: Measure,
    supervise: Supervise,
    lengths: list[tuple[int, int, int]],
) -> Skip | None:
    try:
        validate(record.trajectory)
        line = to_line(record.trajectory)
        length = measure(record.trajectory, supervise)
    except ProcessGenError as error:
        return Skip(record.item, "a trajectory that cannot be used", str(error))
    writer.write(line)
    lengths.append(length)
    return None


# ---- the whole -----------------------------------------------------------------------------------


@dataclasses.dataclass
class Site:
    """A folder while something is built in it.

    Attributes:
      folder: where.
      todo: shards that are not done yet.
      done: items of the shards that are.
      manifest: set when everything is done.
    """

    folder: str
    todo: list[int]
    done: int = 0
    manifest: dict[str, Any] | None = None


@contextlib.contextmanager
def open_site(job: Job, folder: str) -> Iterator[Site]:
    """Begins a build, or goes on with one; inside, nobody else can on this machine.

    Raises:
      DataError: the folder holds something else, or another process is building there.
    """
    target = epath.Path(folder)
    if (target / MANIFEST).exists():
        manifest = read_manifest(folder)
        if manifest.get("made_by") != _plain(job.identity):
            raise DataError(f"{folder} is not empty; give a new folder")
        _clear(job, folder)  # a kill may have come before the last file was removed
        yield Site(folder, [], job.items, manifest)
        return
    if not (target / BUILD).exists():
        left = [path for path in target.iterdir()] if target.exists() else []
        if any(not path.name.startswith(".unfinished-") for path in left):
            raise DataError(f"{folder} is not empty; give a new folder")
        target.mkdir(parents=True, exist_ok=True)
        _write_json(folder, BUILD, _plain(job.identity))
    _check_same(job, folder)
    with _lock(folder):
        _remove_unfinished(folder)
        receipts = [_read_receipt(job, folder, shard) for shard in range(job.shards)]
        todo = [shard for shard, receipt in enumerate(receipts) if receipt is None]
        left = sum(stop - start for start, stop in map(job.bounds, todo))
        try:
            yield Site(folder, todo, job.items - left)
        finally:
            _remove_unfinished(folder)


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value))


def _check_same(job: Job, folder: str) -> None:
    try:
        begun = json.loads((epath.Path(folder) / BUILD).read_text())
    except ValueError as error:
        raise DataError(f"{folder}/{BUILD} is damaged ({error}); give a new folder") from error
    for key, value in _plain(job.identity).items():
        if begun.get(key) != value:
            raise DataError(
                f"{folder} holds the beginning of something else: {key} was {begun.get(key)!r}, "
                f"now {value!r}; run it as it was begun, or give a new folder"
            )


@contextlib.contextmanager
def _lock(folder: str) -> Iterator[None]:
    if not is_local(folder):
        yield
        return
    with open(Path(folder) / BUILD) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise DataError(f"{folder} is being built by another process") from error
        yield


def _remove_unfinished(folder: str) -> None:
    if is_local(folder):
        for path in Path(folder).glob(".unfinished-*"):
            shutil.rmtree(path, ignore_errors=True)


def _clear(job: Job, folder: str) -> None:
    for name in [BUILD, *(_receipt_name(job, shard) for shard in range(job.shards))]:
        (epath.Path(folder) / name).unlink(missing_ok=True)
    _remove_unfinished(folder)


def finish(job: Job, site: Site) -> dict[str, Any]:
    """Writes the manifest from the receipts and removes them.

    Raises:
      DataError: a shard is missing, or nothing at all came out.
    """
    if site.manifest is not None:
        return site.manifest
    receipts = []
    for shard in range(job.shards):
        receipt = _read_receipt(job, site.folder, shard)
        if receipt is None:
            raise DataError(f"{site.folder}: shard {shard} of {job.shards} is missing")
        receipts.append(receipt)
    lengths = [length for receipt in receipts for length in receipt["lengths"]]
    skipped: Counter[str] = Counter()
    tally: Counter[str] = Counter()
    for receipt in receipts:
        skipped.update(receipt["skipped"])
        tally.update(receipt["tally"])
    if not lengths:
        raise DataError(f"{site.folder}: no item gave a trajectory: {dict(skipped.most_common(5))}")
    skips = [skip for receipt in receipts for skip in receipt["skips"]]
    manifest = {
        "format": CONSECUTIVE,
        "count": len(lengths),
        "shards": [receipt["shard"] for receipt in receipts],
        "supervise": job.supervise,
        "items": job.items,
        "skipped": dict(sorted(skipped.items())),
        "skips": skips[:_KEPT_SKIPS],
        "tally": dict(sorted(tally.items())),
        **verdict_report(tally),
        "lengths": length_summary(np.array(lengths, np.int32)),
        **job.about,
        "made_by": _plain(job.identity),
    }
    _write_json(site.folder, MANIFEST, manifest)
    _clear(job, site.folder)
    return _plain(manifest)
