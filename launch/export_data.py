"""Write a trajectory folder as rows of a parquet file, for other projects' loaders.

    python -m launch.export_data --data=edits --out=edits.parquet --format=bagel_edit

--data=DIR      trajectory folder
--out=FILE      parquet file, new; FILE.info.json beside it names its row groups for BAGEL's loader
--format=NAME   bagel_edit (edits), thinkmorph (answers with pictures) or t2i (prompt and picture)
--row_group=N   rows in a row group (64)
--limit=N       trajectories to look at; 0, the default, takes all
--strict        stop at the first trajectory that cannot be written, instead of counting it
--json          print one JSON object as the last line

What launch.import_data read, written by this and read again, is the same. A trajectory that the
layout cannot express (a painting in steps is no edit) is left out and counted. Needs
pip install 'process_gen[parquet]'.
"""

from __future__ import annotations

import itertools
import json
from typing import Any

from absl import flags

from launch import common
from process_gen.core.errors import DataError
from process_gen.data.builders import TrajectoryFolder
from process_gen.data.exports import LAYOUTS, export_rows
from process_gen.data.parquet_rows import ParquetWriter
from process_gen.data.skips import Skips


def export_data(
    data: str, out: str, name: str, *, group: int = 64, limit: int = 0, strict: bool = False
) -> dict[str, Any]:
    """Writes a parquet file; returns the counts of rows, row groups and what was left out.

    Args:
      data: trajectory folder.
      out: file, which must not exist.
      name: of `data.exports.LAYOUTS`.
      group: rows in a row group.
      limit: trajectories looked at; 0 looks at all.
      strict: whether one that cannot be written is an error.

    Raises:
      ConfigError: pyarrow is not installed.
      DataError: no such folder, an unknown layout, nothing to write, the file exists; under
        `strict`, a trajectory.
    """
    skips = Skips(strict)
    records = TrajectoryFolder(data, strict)
    rows = export_rows(name, records, data, skips, limit)
    first, count = next(rows, None), 0
    if first is None:  # before anything is written
        raise DataError(f"{data} holds nothing that {name} can express: {skips.to_mapping()}")
    with ParquetWriter(out, LAYOUTS[name].columns, group) as writer:
        for row in itertools.chain([first], rows):
            writer.write(row)
            count += 1
    return {"rows": count, "row_groups": writer.groups, "skipped": skips.to_mapping()}


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of this command."""
    flags.DEFINE_string("data", None, "trajectory folder", flag_values=values)
    flags.DEFINE_string("out", None, "parquet file to write", flag_values=values)
    flags.DEFINE_enum("format", None, list(LAYOUTS), "whose rows they are", flag_values=values)
    flags.DEFINE_integer("row_group", 64, "rows in a row group", 1, flag_values=values)
    flags.DEFINE_integer("limit", 0, "trajectories to look at", 0, flag_values=values)
    flags.DEFINE_boolean("strict", False, "stop at a bad trajectory", flag_values=values)
    flags.DEFINE_boolean("json", False, "print a JSON object", flag_values=values)


def main(values: flags.FlagValues) -> None:
    """Reads the flags, exports, says what came of it."""
    data, out, name = (common.required(values, x) for x in ("data", "out", "format"))
    more = {"group": values.row_group, "limit": values.limit, "strict": values.strict}
    found = export_data(data, out, name, **more)
    print(f"{found['rows']} rows in {found['row_groups']} row group(s): {out}")
    if counts := found["skipped"]["counts"]:
        print("left out: " + ", ".join(f"{count} {kind}" for kind, count in counts.items()))
    if values.json:
        print(json.dumps({"out": out, **found}))


if __name__ == "__main__":
    common.run(main, define_flags, __doc__ or "")
