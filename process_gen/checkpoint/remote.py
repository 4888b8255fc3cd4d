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
from typing import Any

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
            header = json.loads(stream.read(length), object_pairs_hook=_without_duplicates)
        if not isinstance(header, dict):
            raise ValueError("its header is malformed: no JSON object")
        header.pop("__metadata__", None)
        self._start = 8 + length
        self._tensors: dict[str, tuple[str, tuple[int, ...], int, int]] = {}
        end = 0
        try:
            for key, said in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
                shape = tuple(int(n) for n in said["shape"])
                first, last = said["data_offsets"]
                itemsize = dtypes[said["dtype"]].itemsize if said["dtype"] in dtypes else None
                if first != end or (itemsize and last - first != math.prod(shape) * itemsize):
                    raise ValueError(f"tensor {key} does not lie where it should")
                self._tensors[key] = (said["dtype"], shape, first, last)
                end = last
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"its header is malformed: {error!r}") from error
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
