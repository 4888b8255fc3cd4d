"""Reading and writing folders of safetensors files, one tensor at a time.

Reading local files goes through the `safetensors` package, which checks headers and lengths; remote
ones are read by ranges (`checkpoint.remote`). Writing has code of its own: the package's writer
wants every tensor in memory at once, which a 29 GB model does not allow. Pickled weights (`.bin`,
`.pt`, `.pth`, `.ckpt`) run code when they are opened and are refused, whatever their name.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors
from etils import epath

from process_gen.checkpoint.remote import RangeReader, is_remote
from process_gen.core.errors import CheckpointError

DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
# The first bytes of a zip archive (torch.save) and of pickle protocols 2 to 5.
_PICKLE_STARTS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


@dataclasses.dataclass(frozen=True)
class TensorInfo:
    """What a header says about one tensor.

    Attributes:
      file: the file that holds it.
      shape, dtype: of the stored array.
    """

    file: epath.Path
    shape: tuple[int, ...]
    dtype: np.dtype


class Reader:
    """The tensors of one or several safetensors files under one set of keys.

    `infos` is known at once; `read` loads a single tensor. Use it in a `with` block.
    """

    def __init__(self, files: Sequence[epath.PathLike]):
        """Opens all files and reads their headers.

        Raises:
          CheckpointError: a file is missing, damaged, a pickle, holds a type that is no float, or
            two files hold one key; the text names the file.
        """
        self._stack = contextlib.ExitStack()
        self._handles: dict[epath.Path, Any] = {}
        self.infos: dict[str, TensorInfo] = {}
        try:
            for file in files:
                self._open(epath.Path(file))
        except BaseException:
            self.close()
            raise

    def _open(self, file: epath.Path) -> None:
        if not file.is_file():
            raise CheckpointError(f"{file}: no such file")
        with file.open("rb") as stream:
            start = stream.read(9)
        # A safetensors file begins with its header's length, which may look like a pickle's start.
        if start.startswith(_PICKLE_STARTS) and start[4:] != b"\0\0\0\0{":
            raise CheckpointError(
                f"{file}: this is a pickle, not safetensors, and opening it could run any code; "
                "convert it to safetensors where it came from"
            )
        try:
            tensors = self._open_remote(file) if is_remote(file) else self._open_local(file)
        except (safetensors.SafetensorError, OSError, ValueError) as error:
            raise CheckpointError(f"{file}: damaged or no safetensors file ({error})") from error
        for key, (dtype, shape) in tensors.items():
            if dtype not in DTYPES:
                raise CheckpointError(f"{file}: tensor {key} has type {dtype}, no float")
            if key in self.infos:
                raise CheckpointError(f"{file}: tensor {key} is also in {self.infos[key].file}")
            self.infos[key] = TensorInfo(file, shape, DTYPES[dtype])

    def _open_local(self, file: epath.Path) -> dict[str, tuple[str, tuple[int, ...]]]:
        # `pread` keeps the file's pages out of this process; a mapping of 29 GB would look like
        # memory in use.
        opened = safetensors.safe_open(file, "np", backend="pread")
        handle = self._handles[file] = self._stack.enter_context(opened)
        views = {key: handle.get_slice(key) for key in handle.keys()}
        return {k: (view.get_dtype(), tuple(view.get_shape())) for k, view in views.items()}

    def _open_remote(self, file: epath.Path) -> dict[str, tuple[str, tuple[int, ...]]]:
        handle = self._handles[file] = RangeReader(file, DTYPES)
        return handle.tensors

    def read(self, key: str) -> np.ndarray:
        """Loads one tensor in its stored type."""
        return self._handles[self.infos[key].file].get_tensor(key)

    def close(self) -> None:
        """Closes all files."""
        self._stack.close()

    def __enter__(self) -> Reader:
        """Enters a block at whose end the files are closed."""
        return self

    def __exit__(self, *_: object) -> None:
        """Closes all files."""
        self.close()


def open_folder(source: epath.PathLike, stems: tuple[str, ...]) -> Reader:
    """Opens the first of `stems` that a folder has, as `S.safetensors` or as a sharded index.

    Args:
      source: a folder, or one safetensors file, which is then opened whatever its name.
      stems: for example ("ema", "model"), the preferred one first.

    Raises:
      CheckpointError: none is there (pickles are pointed out), an index names a shard that is not
        there or disagrees with its shards about a key; or see `Reader`.
    """
    source = epath.Path(source)
    if source.is_file():
        return Reader([source])
    if not source.is_dir():
        raise CheckpointError(f"{source}: no such file or folder")
    for stem in stems:
        single = source / f"{stem}.safetensors"
        if single.is_file():
            return Reader([single])
        index = source / f"{stem}.safetensors.index.json"
        if index.is_file():
            return _open_sharded(index)
    wanted = " or ".join(f"{stem}.safetensors[.index.json]" for stem in stems)
    pickles = sorted(f.name for f in source.iterdir() if f.suffix in _PICKLE_SUFFIXES)
    hint = f"; {', '.join(pickles)}: pickles are never opened" if pickles else ""
    raise CheckpointError(f"{source}: holds no {wanted}{hint}")


def _open_sharded(index: epath.Path) -> Reader:
    try:
        weight_map = dict(json.loads(index.read_text())["weight_map"])
        names = sorted(set(weight_map.values()))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{index}: no JSON object with a weight_map ({error})") from error
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise CheckpointError(f"{index}: shard {name!r} is no plain file name")
    reader = Reader([index.parent / name for name in names])
    held = {key: info.file.name for key, info in reader.infos.items()}
    wrong = sorted(key for key in {*weight_map, *held} if weight_map.get(key) != held.get(key))
    if wrong:
        reader.close()
        raise CheckpointError(
            f"{index}: says that {wrong[0]} is in {weight_map.get(wrong[0])}, "
            f"the shards that it is in {held.get(wrong[0])}"
        )
    return reader


def _layout(
    tensors: Mapping[str, tuple[tuple[int, ...], np.dtype]],
) -> tuple[bytes, dict[str, int], int]:
    """Header bytes, the offset of every tensor in the file, and the file's length.

    Wider types come first and names are sorted within a type, as the package does it, so that a
    file of either writer has the same bytes.
    """
    order = sorted(tensors, key=lambda key: (-tensors[key][1].itemsize, key))
    header, offsets, end = {}, {}, 0
    for key in order:
        shape, dtype = tensors[key]
        if dtype not in _NAMES:
            raise CheckpointError(f"tensor {key}: safetensors output knows no type {dtype}")
        start, end = end, end + int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        header[key] = {
            "dtype": _NAMES[dtype],
            "shape": list(shape),
            "data_offsets": [start, end],
        }
        offsets[key] = start
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    prefix = struct.pack("<Q", len(text)) + text
    return (
        prefix,
        {key: len(prefix) + at for key, at in offsets.items()},
        len(prefix) + end,
    )


class Writer:
    """Writes one safetensors file, its tensors in any order, holding none of them."""

    def __init__(self, file: Path, tensors: Mapping[str, tuple[tuple[int, ...], np.dtype]]):
        """Reserves the file's full length.

        Args:
          file: path of the part file that `write_file` moves into place.
          tensors: shape and type of every tensor that will be written.
        """
        self._tensors = {k: (tuple(s), np.dtype(d)) for k, (s, d) in tensors.items()}
        prefix, self._offsets, length = _layout(self._tensors)
        self._missing = set(tensors)
        self._stream = file.open("wb")
        self._stream.write(prefix)
        self._stream.truncate(length)

    def write(self, key: str, array: np.ndarray) -> None:
        """Writes one tensor at its place.

        Raises:
          CheckpointError: the key, shape or type differs from what was announced.
        """
        if key not in self._missing:
            raise CheckpointError(f"tensor {key} was written twice, or never announced")
        shape, dtype = self._tensors[key]
        if array.shape != shape or array.dtype != dtype:
            raise CheckpointError(
                f"tensor {key} is {array.dtype}{list(array.shape)}, "
                f"announced as {dtype}{list(shape)}"
            )
        self._stream.seek(self._offsets[key])
        self._stream.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        self._missing.remove(key)

    def finish(self) -> None:
        """Makes sure that everything is written, and on disk.

        Raises:
          CheckpointError: a tensor was never written.
        """
        if self._missing:
            raise CheckpointError(f"tensor {min(self._missing)} was announced but not written")
        self._stream.flush()
        os.fsync(self._stream.fileno())

    def close(self) -> None:
        """Closes the file."""
        self._stream.close()


@contextlib.contextmanager
def write_file(
    file: Path, tensors: Mapping[str, tuple[tuple[int, ...], np.dtype]]
) -> Iterator[Writer]:
    """A `Writer` whose file appears under its name only when complete; else nothing is left."""
    part = file.with_name(f".{file.name}.part")
    writer = Writer(part, tensors)
    try:
        yield writer
        writer.finish()
        writer.close()
        part.replace(file)
    finally:
        writer.close()
        part.unlink(missing_ok=True)
