"""Rows of JSON, JSON lines and tar files, in the form of `parquet_rows.Row`.

All are streamed. Pictures that a row names by path are read from one folder and from nowhere else.
"""

from __future__ import annotations

import codecs
import json
import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from typing import Any

from etils import epath

from process_gen.core.errors import DataError
from process_gen.data.parquet_rows import Row, files_of, read_parquet
from process_gen.data.skips import Skips, Unusable

MAX_LINE = 1 << 24  # bytes of a JSON line
MAX_PICTURE = 1 << 27  # bytes of an encoded picture
_CHUNK = 1 << 20
_TAR_END = bytes(1024)
_BETWEEN = (re.compile(r"\s*\[?\s*"), re.compile(r"[\s,]*"))  # before the first item, and later


def read_jsonl(path: epath.Path, skips: Skips) -> Iterator[Row]:
    """A row for each line that is a JSON object; blank lines are passed over."""
    with path.open("rb") as file:
        number = 0
        while line := file.readline(MAX_LINE + 1):
            number += 1
            where = f"{path.name}, line {number}"
            if len(line) > MAX_LINE:
                skips.add(where, f"longer than {MAX_LINE} bytes", "JSON")
                while line and not line.endswith(b"\n"):
                    line = file.readline(MAX_LINE)
            elif line.strip():
                try:
                    yield _row(where, json.loads(line.decode()))
                except UnicodeDecodeError as error:
                    skips.add(where, f"no valid UTF-8: {error}", "UTF-8")
                except (ValueError, RecursionError) as error:
                    skips.add(where, f"no JSON object: {error}", "JSON")


def read_json(path: epath.Path, skips: Skips) -> Iterator[Row]:
    """A row for each object of a JSON array, which is never held as a whole."""
    decode = codecs.getincrementaldecoder("utf-8")("surrogateescape").decode
    scan, text, at, number, more = json.JSONDecoder().raw_decode, "", 0, 0, True
    with path.open("rb") as file:
        while True:
            at = _BETWEEN[number > 0].match(text, at).end()  # type: ignore[union-attr]
            try:
                value, end = scan(text, at)
                if end == len(text) and more:
                    raise ValueError("it may go on")
            except (ValueError, RecursionError) as error:
                chunk = file.read(_CHUNK) if len(text) - at <= MAX_LINE else b""
                if more := bool(chunk):
                    text, at = text[at:] + decode(chunk), 0
                    continue
                if text[at:].strip() != "]":
                    what = f"no whole JSON array: {error}"
                    skips.add(f"{path.name}, item {number}", what, "file")
                return
            where, at = f"{path.name}, item {number}", end
            number += 1
            try:
                row = _row(where, value)
            except ValueError as error:
                skips.add(where, str(error), "JSON")
            else:
                yield row


def _row(where: str, value: Any) -> Row:
    if not isinstance(value, dict):
        raise ValueError(f"{type(value).__name__} instead of an object")
    return Row(where, value)


def read_tar(path: epath.Path, skips: Skips) -> Iterator[Row]:
    """Rows of a WebDataset tar: members ``KEY.COLUMN`` that follow each other, as bytes.

    Nothing is unpacked: names of members are columns, never paths.
    """
    key, cells = "", {}
    try:
        with path.open("rb") as file:
            file.seek(-min(len(_TAR_END), path.stat().length), os.SEEK_END)
            whole = file.read() == _TAR_END  # without it, tarfile takes a cut for the end
            file.seek(0)
            archive = tarfile.open(fileobj=file, mode="r|")
            for member in archive:
                if not member.isfile():
                    continue
                folder, _, name = member.name.rpartition("/")
                stem, _, column = name.partition(".")
                if f"{folder}/{stem}" != key:
                    if cells:
                        yield Row(f"{path.name}, {key.strip('/')}", cells)
                    key, cells = f"{folder}/{stem}", {}
                reader = archive.extractfile(member)
                # A sparse member of a few bytes may claim to be any size.
                if member.size > MAX_PICTURE or member.issparse() or reader is None:
                    what = f"{member.size} bytes{', most of them not there' * member.issparse()}"
                    skips.add(f"{path.name}, {member.name}", what, "file")
                else:
                    cells[column] = reader.read()
    except (OSError, EOFError, tarfile.TarError) as error:
        skips.add(f"{path.name}, {key.strip('/')}", f"no whole tar file: {error}", "file")
        return
    if cells:
        yield Row(f"{path.name}, {key.strip('/')}", cells)
    if not whole:
        skips.add(f"{path.name}, after {key.strip('/')}", "no whole tar file: it is cut", "file")


def read_any(source: str, columns: Sequence[str], skips: Skips) -> Iterator[Row]:
    """Rows of a file by its ending, or of a folder's files with the first ending that it has.

    Args:
      source: file or folder.
      columns: of parquet files.
      skips: takes what cannot be read.

    Raises:
      DataError: no such file, or of an unknown ending.
    """
    readers = {".jsonl": read_jsonl, ".json": read_json, ".tar": read_tar}
    path = epath.Path(source)
    names = [x.name for x in path.iterdir()] if path.is_dir() else [path.name]
    for suffix in (".parquet", *readers):
        if any(name.endswith(suffix) for name in names):
            if suffix == ".parquet":
                yield from read_parquet(source, columns, skips)
            else:
                for file in files_of(source, suffix):
                    yield from readers[suffix](file, skips)
            return
    raise DataError(f"{source}: no file ending in .parquet, {', '.join(readers)}")


def picture_file(folder: str, name: str) -> bytes:
    """The bytes of a picture in a folder.

    Raises:
      Unusable: it is missing, too large, or would lie outside the folder.
    """
    parts = name.replace("\\", "/").split("/")
    if not folder:
        raise Unusable("picture", f"the row names a picture {name!r}; say where with --images")
    if ".." in parts or not name or parts[0] == "" or ":" in parts[0]:
        raise Unusable("picture", f"a picture outside the folder of pictures: {name!r}")
    path = epath.Path(folder) / name
    try:
        if (size := path.stat().length) > MAX_PICTURE:
            raise Unusable("picture", f"{name!r} has {size} bytes")
        return path.read_bytes()
    except OSError as error:
        raise Unusable("picture", f"{name!r} cannot be read: {error}") from error
