"""Take over rows of other projects' data sets as a trajectory folder.

    python -m launch.import_data --format=bagel_edit --source=editing/seedxedit --out=edits
    python -m launch.import_data --format=vlm_sft --source=llava.jsonl --images=images --out=answers

--format=NAME   bagel_edit, thinkmorph, t2i, vlm_sft or genref; docs/imports.md has their columns
--source=F      a file, or a folder of .parquet, .jsonl, .json or .tar files
--out=DIR       new or empty folder for the shards and manifest.json
--images=DIR    where pictures lie that rows name by path
--max_side=N    shrink longer pictures to N px; 0, the default, keeps all up to 4096 px
--positives=X   genref: approved good pictures for each refused bad one (0.5)
--shards=N      shard files (1)
--limit=N       trajectories to write; 0, the default, writes all
--show=N        also write samples.html with N of the trajectories
--strict        stop at the first row that cannot be used, instead of counting it
--json          print one JSON object as the last line

Parquet files need pip install 'process_gen[parquet]'. Train on the result with a source
{"kind": "folder", "path": DIR}, or {"kind": "one_shot", ...} for prompt and picture alone.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from typing import Any

from absl import flags
from etils import epath

from launch import common
from process_gen.core.errors import DataError
from process_gen.core.trajectory import Trajectory
from process_gen.data.builders import TrajectoryFolder, write_folder
from process_gen.data.imports import DEFAULTS, FORMATS, ImportOptions, import_rows
from process_gen.data.skips import Skips

SAMPLES = "samples.html"


def import_data(
    name: str,
    source: str,
    out: str,
    options: ImportOptions = DEFAULTS,
    *,
    strict: bool = False,
    shards: int = 1,
    limit: int = 0,
    show: int = 0,
) -> dict[str, Any]:
    """Writes a trajectory folder of another project's rows; returns its manifest.

    Args:
      name: of `data.imports.FORMATS`.
      source: file or folder.
      out: new or empty folder.
      options: how rows are taken over.
      strict: whether a row that cannot be used is an error.
      shards: shard files.
      limit: trajectories written; 0 writes all.
      show: trajectories on the page; 0 writes none.

    Raises:
      DataError: an unknown format, no such file, nothing usable in it; under `strict`, a row.
    """
    skips = Skips(strict)
    rows = import_rows(name, source, skips, options)
    first = next(rows, None)  # before anything is written
    if first is None:
        raise DataError(f"{source} holds no usable {name} rows: {skips.to_mapping()}")
    extra: dict[str, Any] = {"imported": name, "supervise": FORMATS[name].supervise}

    def trajectories() -> Iterator[Trajectory]:
        yield from itertools.islice(itertools.chain([first], rows), limit or None)
        extra["skipped"] = skips.to_mapping()  # the manifest is written after the last record

    manifest = write_folder(out, trajectories(), shards, extra)
    if show:
        from process_gen.report.html import write_report  # matplotlib takes a second

        stored = TrajectoryFolder(out)
        sample = [stored[i] for i in range(min(show, len(stored)))]
        write_report(epath.Path(out) / SAMPLES, sample, title="Imported trajectories")
    return manifest


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of this command."""
    kinds = list(FORMATS)
    flags.DEFINE_enum("format", None, kinds, "whose rows they are", flag_values=values)
    flags.DEFINE_string("source", None, "file or folder to read", flag_values=values)
    flags.DEFINE_string("out", None, "folder to write, new or empty", flag_values=values)
    flags.DEFINE_string("images", "", "folder of pictures", flag_values=values)
    flags.DEFINE_integer("max_side", 0, "longest side in px", 0, flag_values=values)
    flags.DEFINE_float("positives", 0.5, "approved pictures", 0, 1, flag_values=values)
    flags.DEFINE_integer("shards", 1, "shard files", 1, flag_values=values)
    flags.DEFINE_integer("limit", 0, "trajectories to write", 0, flag_values=values)
    flags.DEFINE_integer("show", 0, "trajectories on samples.html", 0, flag_values=values)
    flags.DEFINE_boolean("strict", False, "stop at a bad row", flag_values=values)
    flags.DEFINE_boolean("json", False, "print a JSON object", flag_values=values)


def main(values: flags.FlagValues) -> None:
    """Reads the flags, imports, says what came of it."""
    name, source, out = (common.required(values, x) for x in ("format", "source", "out"))
    manifest = import_data(
        name,
        source,
        out,
        ImportOptions(values.images, values.max_side, values.positives),
        strict=values.strict,
        shards=values.shards,
        limit=values.limit,
        show=values.show,
    )
    counts = manifest["skipped"]["counts"]
    print(f"{manifest['count']} trajectories in {len(manifest['shards'])} shard(s): {out}")
    if counts:
        said = ", ".join(f"{count} {kind}" for kind, count in counts.items())
        print(f"left out: {said}; {out}/manifest.json has examples")
    if values.json:
        skipped = manifest["skipped"]
        print(json.dumps({"out": out, "count": manifest["count"], "skipped": skipped}))


if __name__ == "__main__":
    common.run(main, define_flags, __doc__ or "")
