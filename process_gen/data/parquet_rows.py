"""Rows of parquet files, a few at a time, and their cells as what they should be.

Needs pyarrow, which the extra `parquet` installs. Words are read as bytes and decoded cell by cell,
so that wrong UTF-8 costs the row it stands in and not the file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from etils import epath

from process_gen.core.errors import ConfigError, DataError
from process_gen.data.skips import Skips, Unusable

_BATCH = 16  # rows in memory at a time; a row may hold several pictures


class Row(NamedTuple):
    """A row: its place in words, and its cells by column.

    Cells are what JSON or Arrow make of them: words may be `str` or `bytes`, a picture is `bytes`
    or a struct with the key "bytes".
    """

    where: str
    cells: Mapping[str, Any]

    def _cell(self, column: str) -> Any:
        if self.cells.get(column) is None:
            raise Unusable("column", f"the column {column!r} is missing or empty")
        return self.cells[column]

    def text(self, column: str) -> str:
        """A cell of words.

        Raises:
          Unusable: it is missing, or no valid UTF-8.
        """
        return as_text(self._cell(column), column)

    def texts(self, column: str) -> list[str]:
        """A cell that lists words."""
        return [as_text(x, f"{column}[{i}]") for i, x in enumerate(self.cells_of(column))]

    def cells_of(self, column: str) -> Sequence[Any]:
        """A cell that is a list."""
        value = self._cell(column)
        if not isinstance(value, (list, tuple)):
            raise Unusable("column", f"{column!r} is {type(value).__name__}, wanted a list")
        return value

    def blob(self, column: str) -> bytes:
        """A cell of bytes, such as an encoded picture."""
        return as_bytes(self._cell(column), column)


def as_text(value: Any, name: str) -> str:
    """Words out of a cell; an `Unusable` where there are none."""
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError as error:
            raise Unusable("UTF-8", f"{name} is no valid UTF-8: {error}") from error
    if not isinstance(value, str):
        raise Unusable("column", f"{name} is {type(value).__name__}, wanted words")
    if any("\ud800" <= letter <= "\udfff" for letter in value):
        raise Unusable("UTF-8", f"{name} is no valid UTF-8: {value[:60]!r}")
    return value


def as_bytes(value: Any, name: str) -> bytes:
    """Bytes out of a cell, which may be a struct; an `Unusable` where there are none."""
    if isinstance(value, Mapping):
        value = value.get("bytes")
    if not isinstance(value, bytes):
        raise Unusable("picture", f"{name} holds no picture but {type(value).__name__}")
    return value


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "parquet files need pyarrow; install it with pip install 'process_gen[parquet]'"
        ) from error
    return pyarrow


def files_of(source: str, suffix: str) -> list[epath.Path]:
    """A file, or the files of a folder that end so, by name.

    Raises:
      DataError: there are none.
    """
    path = epath.Path(source)
    if path.is_dir():
        found = sorted(x for x in path.iterdir() if x.name.endswith(suffix))
    else:
        found = [path] if path.exists() else []
    if not found:
        raise DataError(f"{source}: no such file, and no folder with *{suffix} files")
    return found


def _raw_type(pa: Any, kind: Any) -> Any:
    """The type with words as bytes, at any depth."""
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return pa.binary()
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return pa.list_(_raw_type(pa, kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([(field.name, _raw_type(pa, field.type)) for field in kind])
    return kind


def read_parquet(source: str, columns: Sequence[str], skips: Skips) -> Iterator[Row]:
    """Rows of a file or of the parquet files of a folder, streamed by row group.

    A file or a row group that cannot be read is left out, and so is a file with none of the
    columns; what a footer says of its rows is counted, a file without a footer counts as one.

    Args:
      source: file or folder.
      columns: wanted ones; those that a file lacks are missing in its rows.
      skips: takes what cannot be read.

    Raises:
      ConfigError: pyarrow is not installed.
      DataError: there is no such file.
    """
    pa = _pyarrow()
    for path in files_of(source, ".parquet"):
        with path.open("rb") as file:
            try:
                parquet = pa.parquet.ParquetFile(file)
            except (OSError, ValueError, MemoryError, pa.ArrowException) as error:
                skips.add(path.name, f"not a whole parquet file: {error}", "file")
                continue
            wanted = [x for x in parquet.schema_arrow.names if x in columns]
            if not wanted:
                if (rows := parquet.metadata.num_rows) > 0:
                    what = "none of the columns that the format has (docs/imports.md)"
                    skips.add(path.name, what, "column", rows)
                continue
            first = 0
            for group in range(parquet.num_row_groups):
                count, done = parquet.metadata.row_group(group).num_rows, 0
                batches = parquet.iter_batches(_BATCH, [group], wanted, use_threads=False)
                try:
                    for batch in batches:
                        raw = [x.cast(_raw_type(pa, x.type)) for x in batch.columns]
                        cells = [x.to_pylist() for x in raw]
                        for values in zip(*cells, strict=True):
                            where = f"{path.name}, row {first + done}"
                            done += 1
                            yield Row(where, dict(zip(batch.schema.names, values, strict=True)))
                except (OSError, ValueError, MemoryError, pa.ArrowException) as error:
                    where = f"{path.name}, row group {group}"
                    skips.add(where, f"damaged: {error}", "row group", count - done)
                first += count


class ParquetWriter:
    """Writes rows a row group at a time; a context manager. The file appears when all is written.

    Beside it stands ``NAME.info.json``, ``{path: {"num_row_groups": n}}``, which BAGEL's loader
    asks for (`parquet_info_path`).
    """

    def __init__(self, path: str, columns: Mapping[str, str], group: int = 64):
        """Opens the file.

        Args:
          path: of the file, which must not exist.
          columns: name -> "text", "texts", "choices" (lists of texts), "bytes" or "pictures".
          group: rows in a row group.

        Raises:
          ConfigError: pyarrow is not installed.
          DataError: the file exists.
        """
        pa = _pyarrow()
        types = {
            "text": pa.string(),
            "texts": pa.list_(pa.string()),
            "choices": pa.list_(pa.list_(pa.string())),
            "bytes": pa.binary(),
            "pictures": pa.list_(pa.binary()),
        }
        self._pa, self._path, self._group = pa, epath.Path(path), group
        if self._path.exists():
            raise DataError(f"{path} exists; give a new file")
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._scratch = self._path.parent / f".{self._path.name}.part"
        self._schema = pa.schema([(name, types[kind]) for name, kind in columns.items()])
        self._rows: list[Mapping[str, Any]] = []
        self.groups = 0

    def __enter__(self) -> ParquetWriter:
        """Begins the file."""
        self._file = self._scratch.open("wb")
        self._writer = self._pa.parquet.ParquetWriter(self._file, self._schema)
        return self

    def write(self, row: Mapping[str, Any]) -> None:
        """Adds a row."""
        self._rows.append(row)
        if len(self._rows) == self._group:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            table = self._pa.Table.from_pylist(list(self._rows), schema=self._schema)
            self._writer.write_table(table, row_group_size=self._group)
            self._rows, self.groups = [], self.groups + 1

    def __exit__(self, kind: object, *rest: object) -> None:
        """Finishes the file, or removes what an error left of it."""
        if kind is None:
            self._flush()
        self._writer.close()
        self._file.close()
        if kind is not None:
            self._scratch.unlink()
            return
        self._scratch.replace(self._path)
        info = {str(self._path): {"num_row_groups": self.groups}}
        beside = self._path.parent / f"{self._path.name}.info.json"
        beside.write_text(json.dumps(info, indent=1) + "\n")
