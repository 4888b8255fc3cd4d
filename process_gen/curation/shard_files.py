"""Files that appear all at once: made beside their place, flushed to disk, renamed."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from etils import epath

UNFINISHED = ".unfinished-"


def is_local(folder: str) -> bool:
    """Whether a folder lies on a file system, where a rename is atomic."""
    return "://" not in folder


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def publish(scratch: Path, target: epath.Path) -> None:
    """Puts a finished local file in its place, all at once."""
    if is_local(os.fspath(target)):
        _sync(scratch)
        os.replace(scratch, target)
        _sync(Path(target).parent)
    else:  # object stores show a file when its upload is complete
        epath.Path(scratch).copy(target, overwrite=True)


@contextlib.contextmanager
def scratch_folder(folder: str) -> Iterator[Path]:
    """A folder for files that are not finished; on the same file system where there is one."""
    parent = folder if is_local(folder) else None
    path = Path(tempfile.mkdtemp(prefix=UNFINISHED, dir=parent))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def write_json(folder: str, name: str, value: Any) -> None:
    """Writes a JSON file."""
    with scratch_folder(folder) as scratch:
        (scratch / name).write_text(json.dumps(value, indent=1, ensure_ascii=True) + "\n")
        publish(scratch / name, epath.Path(folder) / name)


def remove_unfinished(folder: str) -> None:
    """Removes what a killed process has left in `scratch_folder`s."""
    if is_local(folder):
        for path in Path(folder).glob(f"{UNFINISHED}*"):
            shutil.rmtree(path, ignore_errors=True)
