"""Write trajectories to disk, and a page that shows some of them.

    python -m launch.make_data --config=configs/data/strokes.py --show=8 --out=/tmp/strokes

--config=FILE[:ARG]  what to write: data.sources, data.seed; see configs/data/
--out=DIR            new or empty folder for the shards and manifest.json (counts, hashes, lengths)
--show=N             also write samples.html with N of the trajectories
--shards=N           shard files (1)
--limit=N            trajectories to write; 0, the default, writes an epoch of the sources
--json               print one JSON object as the last line

Train on it with a source {"kind": "folder", "path": DIR}; docs/data.md describes the format.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from absl import flags
from etils import epath

from launch import common
from process_gen.core.configs import Config, to_mapping
from process_gen.core.errors import DataError
from process_gen.core.trajectory import Trajectory, validate
from process_gen.data.builders import length_summary, write_folder
from process_gen.data.packing import BAD, draw, measure_source
from process_gen.data.pictures import picture_rule
from process_gen.data.pipeline import patch_sizes
from process_gen.data.sources import Source, build_source
from process_gen.data.tokenizer import load_tokenizer
from process_gen.report.html import write_report

SAMPLES = "samples.html"


class _Picked:
    """The trajectories of an epoch in the order in which they are written, as a source."""

    fingerprint = ""
    fresh = False

    def __init__(self, config: Config, limit: int):
        data = config.data
        self.sources: list[Source] = [build_source(s, data.seed) for s in data.sources]
        roles = {source.supervise for source in self.sources}
        if len(roles) > 1:
            raise DataError(
                "data.sources mixes sources that are supervised differently "
                f"({', '.join(sorted(roles))}); write each to a folder of its own"
            )
        (self.supervise,) = roles
        source_N, index_N = draw(self.sources, [s.weight for s in data.sources], data.seed, 0)
        pairs = list(zip(source_N.tolist(), index_N.tolist(), strict=True))
        self.pairs = pairs[:limit] if limit else pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Trajectory:
        source, own = self.pairs[index]
        return self.sources[source][own]

    def outline(self, index: int) -> Trajectory:
        source, own = self.pairs[index]
        return self.sources[source].outline(own)

    def __iter__(self) -> Iterator[Trajectory]:
        for index in range(len(self)):
            trajectory = self[index]
            validate(trajectory)
            yield trajectory


def make_data(config: Config, out: str, *, show: int = 0, shards: int = 1, limit: int = 0) -> dict:
    """Writes a trajectory folder and its page; returns the manifest.

    Args:
      config: `data.sources` say what to write, `model` and `data.grammar` how lengths are measured.
      out: new or empty folder.
      show: trajectories on the page; 0 writes none.
      shards: shard files.
      limit: trajectories written; 0 writes all.

    Raises:
      DataError: `out` is not empty, a record cannot be used, or sources do not go together.
      ConfigError: a setting is wrong.
    """
    picked = _Picked(config, limit)
    tokenizer = load_tokenizer(config.data.tokenizer)
    measured = measure_source(
        picked,
        0,
        len(picked),
        config.data.grammar,
        tokenizer,
        patch_sizes(config),
        picture_rule(config),
    )
    if measured.reasons:
        index, reason = measured.reasons[0]
        count = int((measured.length_Nx3 == BAD).any(axis=1).sum())
        raise DataError(f"{count} trajectories cannot be used; the first, number {index}: {reason}")
    extra: Mapping[str, Any] = {
        "supervise": picked.supervise,
        "data": to_mapping(config.data),
        "tokenizer": tokenizer.fingerprint,
        "lengths": length_summary(np.asarray(measured.length_Nx3)),
    }
    manifest = write_folder(out, picked, shards, extra)
    if show:
        sample = [picked[i] for i in range(min(show, len(picked)))]
        write_report(epath.Path(out) / SAMPLES, sample, title="Training trajectories")
    return manifest


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of this command."""
    common.define_config(values)
    flags.DEFINE_string("out", None, "folder to write, new or empty", flag_values=values)
    flags.DEFINE_integer("show", 0, "trajectories on samples.html", 0, flag_values=values)
    flags.DEFINE_integer("shards", 1, "shard files", 1, flag_values=values)
    flags.DEFINE_integer("limit", 0, "trajectories to write", 0, flag_values=values)
    flags.DEFINE_boolean("json", False, "print a JSON object", flag_values=values)


def main(values: flags.FlagValues) -> None:
    """Reads the flags, writes, says what was written."""
    config = common.read_config(values)
    out = common.required(values, "out")
    manifest = make_data(config, out, show=values.show, shards=values.shards, limit=values.limit)
    lengths = {name: column["mean"] for name, column in manifest["lengths"].items()}
    print(f"{manifest['count']} trajectories in {len(manifest['shards'])} shard(s): {out}")
    print("mean tokens: " + ", ".join(f"{name} {mean}" for name, mean in lengths.items()))
    if values.show:
        print(f"samples: {epath.Path(out) / SAMPLES}")
    if values.json:
        print(json.dumps({"out": out, "count": manifest["count"], "lengths": lengths}))


if __name__ == "__main__":
    common.run(main, define_flags, __doc__ or "")
