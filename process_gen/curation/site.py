"""The folder of a build: begun, gone on with, finished (see `engine`)."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from process_gen.core.errors import DataError
from process_gen.curation.engine import KEPT_SKIPS, Job, plain, receipt_name
from process_gen.curation.shard_files import UNFINISHED, is_local, remove_unfinished, write_json
from process_gen.curation.tallies import verdict_report
from process_gen.data.builders import CONSECUTIVE, MANIFEST, length_summary, read_manifest

BUILD = "build.json"
_PATIENCE = 5.0  # seconds


def _read_receipt(job: Job, folder: str, shard: int) -> dict[str, Any] | None:
    path = epath.Path(folder) / receipt_name(job, shard)
    try:
        receipt = json.loads(path.read_text())
        stored = (path.parent / receipt["shard"]["file"]).stat().length
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return receipt if stored == receipt["shard"]["bytes"] else None


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
    while True:  # again, where another process has finished the build in the meantime
        if (epath.Path(folder) / MANIFEST).exists():
            yield Site(folder, [], job.items, _finished(job, folder))
            return
        if not _begin(job, folder):
            continue
        with _lock(folder) as own:
            if not own or (epath.Path(folder) / MANIFEST).exists():
                continue
            remove_unfinished(folder)
            receipts = [_read_receipt(job, folder, shard) for shard in range(job.shards)]
            todo = [shard for shard, receipt in enumerate(receipts) if receipt is None]
            left = sum(stop - start for start, stop in map(job.bounds, todo))
            try:
                yield Site(folder, todo, job.items - left)
            finally:
                remove_unfinished(folder)
            return


def _finished(job: Job, folder: str) -> dict[str, Any]:
    """The manifest of this job."""
    manifest = read_manifest(folder)
    if manifest.get("made_by") != plain(job.identity):
        raise DataError(f"{folder} is not empty; give a new folder")
    with _lock(folder):
        _clear(job, folder)  # a kill may have come before the last file was removed
    return manifest


def _begin(job: Job, folder: str) -> bool:
    """Says in the folder what is built there; whether nothing was finished meanwhile."""
    target = epath.Path(folder)
    if not (target / BUILD).exists():
        left = list(target.iterdir()) if target.exists() else []
        if any(not path.name.startswith(UNFINISHED) for path in left):
            if (target / MANIFEST).exists():
                return False
            raise DataError(f"{folder} is not empty; give a new folder")
        target.mkdir(parents=True, exist_ok=True)
        write_json(folder, BUILD, plain(job.identity))
    return _check_same(job, folder)


def _check_same(job: Job, folder: str) -> bool:
    """Refuses what another job has begun; False if the build was finished just now."""
    try:
        begun = json.loads((epath.Path(folder) / BUILD).read_text())
    except FileNotFoundError:
        return False
    except ValueError as error:
        raise DataError(f"{folder}/{BUILD} is damaged ({error}); give a new folder") from error
    for key, value in plain(job.identity).items():
        if begun.get(key) != value:
            raise DataError(
                f"{folder} holds the beginning of something else: {key} was {begun.get(key)!r}, "
                f"now {value!r}; run it as it was begun, or give a new folder"
            )
    return True


@contextlib.contextmanager
def _lock(folder: str) -> Iterator[bool]:
    """Holds the folder's lock; gives False where its file went away while it was waited for."""
    if not is_local(folder):
        yield True
        return
    path = Path(folder) / BUILD
    try:
        file = open(path)
    except FileNotFoundError:
        yield False
        return
    with file:
        # A child that a killed process was just starting may hold its lock for a moment more.
        end = time.monotonic() + _PATIENCE
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > end:
                    raise DataError(f"{folder} is being built by another process") from error
                time.sleep(0.05)
            except OSError as error:
                raise DataError(f"{folder} lies on a disk without file locks ({error})") from error
        try:
            own = os.path.samestat(os.fstat(file.fileno()), os.stat(path))
        except FileNotFoundError:
            own = False
        yield own


def _clear(job: Job, folder: str) -> None:
    for name in [BUILD, *(receipt_name(job, shard) for shard in range(job.shards))]:
        (epath.Path(folder) / name).unlink(missing_ok=True)
    remove_unfinished(folder)


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
        "skips": skips[:KEPT_SKIPS],
        "tally": dict(sorted(tally.items())),
        **verdict_report(tally),
        "lengths": length_summary(np.array(lengths, np.int32)),
        **job.about,
        "made_by": plain(job.identity),
    }
    write_json(site.folder, MANIFEST, manifest)
    _clear(job, site.folder)
    return plain(manifest)
