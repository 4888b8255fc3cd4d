"""Reading safetensors files by ranges, and folders that appear only when complete, here or remote.

Remote is what `etils.epath` opens beside local files: gs://, s3://, az:// and hf://, each with a
package of its own.
"""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import struct
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
from etils import epath

_LONGEST_HEADER = 100_000_000  # as the `safetensors` package


def is_remote(path: epath.PathLike) -> bool:
    """Whether a path names no local file."""
    return "://" in str(path)


class RangeReader:
    """One safetensors file of which single tensors are fetched; nothing else is kept or copied.

    The `safetensors` package reads local files only. What it checks in a header is checked here:
    tensors fill the rest of the file without gaps, and each has the length that its shape needs.
    """

    def __init__(self, file: epath.Path, dtypes: Mapping[str, np.dtype]):
        """Reads the header.

        Args:
          file: anything that `epath` opens.
          dtypes: by the names of types in headers.

        Raises:
          ValueError: the header is damaged, or does not describe the file.
        """
        self._file, self._dtypes = file, dtypes
        with file.open("rb") as stream:
            start = stream.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else _LONGEST_HEADER + 1
            if length > _LONGEST_HEADER:
                raise ValueError("its header has no sensible length")
            try:
                header = json.loads(stream.read(length), object_pairs_hook=_without_duplicates)
            except RecursionError as error:
                raise ValueError(f"its header is malformed: {error}") from error
        self._start = 8 + length
        self._tensors: dict[str, tuple[str, tuple[int, ...], int, int]] = {}
        end = 0
        for key, dtype, shape, first, last in _entries(header):
            itemsize = dtypes[dtype].itemsize if dtype in dtypes else None
            wrong = itemsize is not None and last - first != math.prod(shape) * itemsize
            if first != end or last < first or wrong:
                raise ValueError(f"tensor {key} does not lie where it should")
            self._tensors[key] = (dtype, shape, first, last)
            end = last
        if (size := file.stat().length) != self._start + end:
            raise ValueError(f"it has {size} bytes, its header describes {self._start + end}")

    @property
    def tensors(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Name of the type, and shape, of every tensor."""
        return {key: (name, shape) for key, (name, shape, _, _) in self._tensors.items()}

    def get_tensor(self, key: str) -> np.ndarray:
        """Fetches one tensor.

        Raises:
          ValueError: the file has become shorter.
        """
        name, shape, first, last = self._tensors[key]
        with self._file.open("rb") as stream:
            stream.seek(self._start + first)
            data = stream.read(last - first)
        if len(data) != last - first:
            raise ValueError(f"{self._file}: {len(data)} of {last - first} bytes of tensor {key}")
        return np.frombuffer(data, self._dtypes[name]).reshape(shape)


def _entries(header: Any) -> list[tuple[str, str, tuple[int, ...], int, int]]:
    """Name, type, shape, first and last offset of each tensor, in the order in which they lie."""

    def whole(values: Any) -> TypeGuard[list[int]]:
        return isinstance(values, list) and all(type(n) is int and 0 <= n < 1 << 63 for n in values)

    if not isinstance(header, dict):
        raise ValueError("its header is malformed: no JSON object")
    found = []
    for key, said in header.items():
        if key == "__metadata__":
            continue
        said = said if isinstance(said, dict) else {}
        dtype, shape, span = said.get("dtype"), said.get("shape"), said.get("data_offsets")
        if not isinstance(dtype, str) or not whole(shape) or not whole(span) or len(span) != 2:
            raise ValueError(f"its header is malformed: tensor {key!r} is {str(said)[:80]}")
        found.append((key, dtype, tuple(shape), span[0], span[1]))
    return sorted(found, key=lambda entry: entry[3:])


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("its header names a tensor twice")
    return found


@contextlib.contextmanager
def new_folder(output: epath.PathLike, last: str) -> Iterator[Path]:
    """A local folder to fill, which becomes `output` if the block ends well; else nothing is left.

    A remote folder is filled here first (on the disk of TMPDIR) and then copied, `last` as the last
    of its files: storage in buckets knows no moving of folders.

    Args:
      output: a folder that does not exist.
      last: path of a file in it, without which nobody takes the folder for complete.
    """
    target = epath.Path(output)
    if not is_remote(output):
        local = Path(target)
        local.parent.mkdir(parents=True, exist_ok=True)
        part = local.with_name(f".{local.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        try:
            yield part
            part.replace(local)
        finally:
            shutil.rmtree(part, ignore_errors=True)
        return
    with tempfile.TemporaryDirectory() as scratch:
        part = Path(scratch) / "folder"
        yield part
        files = [path for path in part.rglob("*") if path.is_file()]
        try:
            for path in sorted(files, key=lambda path: path == part / last):
                copy = target / path.relative_to(part).as_posix()
                copy.parent.mkdir(parents=True, exist_ok=True)
                epath.Path(path).copy(copy)
        except BaseException:
            if target.exists():
                target.rmtree()
            raise
