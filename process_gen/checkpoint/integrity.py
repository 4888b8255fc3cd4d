"""Whether a checkpoint's files are those that were written.

Orbax makes a checkpoint visible when it is whole; what happens to its files afterwards, on a disk
or on the way through a bucket, it does not notice: the arrays' bytes carry no checksum. So the
sizes and SHA-256 sums of all files are written into the checkpoint just before it is committed, in
the thread that writes it, and compared before it is read.
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from process_gen.core.errors import CheckpointError

HASHES = "hashes.json"
# Written or changed when a checkpoint is committed, after the sums.
_LATER = (HASHES, "commit_success.txt", "_CHECKPOINT_METADATA")
_THREADS = 4  # hashing leaves the interpreter's lock, and buckets answer slowly


class DamagedError(CheckpointError):
    """A checkpoint cannot be read, or not as it was written; an older one may be good."""


def record(folder: epath.Path) -> None:
    """Writes `hashes.json` of a folder, such as a checkpoint that is about to be committed."""
    names = sorted(_files(folder))
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        sums = list(pool.map(lambda name: _digest(folder / name), names))
    facts = {"algorithm": "sha256", "files": dict(zip(names, sums, strict=True))}
    (folder / HASHES).write_text(json.dumps(facts, indent=0))


def check(folder: epath.Path, parts: Sequence[str] = (), share: tuple[int, int] = (0, 1)) -> bool:
    """Compares the files of a checkpoint with what was written.

    Args:
      folder: of the checkpoint.
      parts: the folders in it that will be read; all that were written by default.
      share: `(i, n)`: only each n-th file, beginning with the i-th.

    Returns:
      Whether there was something to compare with: checkpoints of format 1 have no sums.

    Raises:
      DamagedError: names the first file that is not as it was, or the part that was not written.
    """
    wanted = _recorded(folder)
    if wanted is None:
        return False
    for part in parts:
        if not _holds(wanted, part) and (folder / part).exists():
            raise DamagedError(
                f"checkpoint {folder} is damaged: its part {part} was not written with it"
            )
    names = [n for n in sorted(wanted) if not parts or n.partition("/")[0] in parts]
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        for wrong in pool.map(
            lambda name: _wrong(folder, name, *wanted[name]), names[share[0] :: share[1]]
        ):
            if wrong:
                raise DamagedError(f"checkpoint {folder} is damaged: {wrong}")
    return True


def was_written(folder: epath.Path, part: str) -> bool:
    """Whether a checkpoint was written with a part; False where it has no sums that say so.

    Raises:
      DamagedError: the sums cannot be read.
    """
    return _holds(_recorded(folder) or {}, part)


def own_share() -> tuple[int, int]:
    """The share of the files that this process compares, for `check`."""
    return jax.process_index(), jax.process_count()


def agreed(problem: str | None) -> str | None:
    """What any process found, on all of them: the first one's words, or None."""
    return next((words for words in gathered(problem) if words), None)


def gathered(problem: str | None) -> list[str | None]:
    """What each process found, on all of them; 512 bytes of it."""
    if jax.process_count() == 1:
        return [problem]
    words = np.zeros(512, np.uint8)
    text = (problem or "").encode()[: len(words)]
    words[: len(text)] = np.frombuffer(text, np.uint8)
    rows = np.asarray(multihost_utils.process_allgather(words))
    return [bytes(row[row > 0]).decode(errors="replace") or None for row in rows]


def set_aside(folder: epath.Path, workdir: epath.Path) -> epath.Path:
    """Moves a checkpoint to `set_aside/` of its working directory, where no one looks for it.

    Returns:
      Where it is now.
    """
    place = workdir / "set_aside"
    place.mkdir(parents=True, exist_ok=True)
    taken = {path.name for path in place.iterdir()}
    names = [folder.name, *(f"{folder.name}_{n}" for n in range(2, len(taken) + 3))]
    target = place / next(name for name in names if name not in taken)
    if "://" not in str(folder):
        folder.rename(target)
        return target
    for name in _all_files(folder):  # folders of a bucket cannot be moved
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).copy(target / name)
    folder.rmtree()
    return target


def _recorded(folder: epath.Path) -> dict[str, tuple[int, str]] | None:
    """Size and sum of each file that was written; None where they were not recorded."""
    if not (folder / HASHES).exists():
        return None
    try:
        recorded: dict[str, Any] = json.loads((folder / HASHES).read_text())["files"]
        return {name: (int(size), str(digest)) for name, (size, digest) in recorded.items()}
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise DamagedError(f"checkpoint {folder} is damaged: its {HASHES} is unreadable") from error


def _holds(recorded: Iterable[str], part: str) -> bool:
    return any(name.startswith(f"{part}/") for name in recorded)


def _wrong(folder: epath.Path, name: str, size: int, digest: str) -> str | None:
    file = folder / name
    try:
        if not file.exists():
            return f"{name} is missing"
        now, found = _digest(file)
    except OSError as error:
        return f"{name} cannot be read ({error})"
    if now != size:
        return f"{name} has {now} bytes, {size} were written"
    return None if found == digest else f"{name} has other contents than were written"


def _digest(file: epath.Path) -> tuple[int, str]:
    total, digest = 0, hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            total += len(block)
            digest.update(block)
    return total, digest.hexdigest()


def _files(folder: epath.Path) -> list[str]:
    return [name for name in _all_files(folder) if name not in _LATER]


def _all_files(folder: epath.Path, prefix: str = "") -> list[str]:
    """Paths of the files below a folder, with slashes."""
    found = []
    for path in folder.iterdir():
        name = prefix + path.name
        found += _all_files(path, f"{name}/") if path.is_dir() else [name]
    return found
