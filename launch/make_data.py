"""Make training data: a folder of trajectories, and a page that shows some of them.

    python -m launch.make_data --config=configs/data/strokes.py --show=8 --out=/tmp/strokes

--config=FILE[:ARG]  what to make: data.sources, data.seed; see configs/data/
--out=DIR            for the shards and manifest.json; new, or begun by the same command
--workers=N          processes (1); any number gives the same bytes
--shards=N           shard files; by default one for every 1,000 items, 200 where a model paints
--limit=N            items to make; 0, the default, makes all
--strict             what cannot be used is an error; otherwise it is counted and left out
--show=N             also write samples.html with N of the trajectories
--encode_latents=DIR also launch.encode_latents, with the autoencoder of this checkpoint
--beam=OPTIONS       make the shards with Apache Beam: "--runner=DirectRunner", say
--json               print one JSON object as the last line

However it was ended, the same command goes on where it was. Train on the result with a source
{"kind": "folder", "path": DIR}; docs/data.md describes the format, docs/recipes.md the recipes.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from typing import Any

from absl import flags
from etils import epath

from launch import common
from process_gen.core.configs import Config
from process_gen.core.errors import ConfigError
from process_gen.core.interrupts import finish_on_interrupt
from process_gen.curation.recipes import make_job
from process_gen.curation.workers import Pace, build
from process_gen.data.builders import TrajectoryFolder

# Workers import this module again: what only the command needs is imported where it is used.

SAMPLES = "samples.html"


def make_data(
    config: Config,
    out: str,
    *,
    show: int = 0,
    shards: int = 0,
    limit: int = 0,
    workers: int = 1,
    strict: bool = False,
    beam: str | None = None,
) -> dict[str, Any]:
    """Makes a trajectory folder and its page; returns the manifest.

    Args:
      config: `data.sources` say what to make, `model` and `data.grammar` how lengths are measured.
      out: new folder, or one that the same call has begun.
      show: trajectories on the page; 0 writes none.
      shards: shard files; 0 chooses.
      limit: items made; 0 makes all.
      workers: processes.
      strict: whether what cannot be used is an error.
      beam: pipeline options of Apache Beam, which then makes the shards; None does without.

    Raises:
      DataError: `out` holds something else, or nothing could be used.
      ConfigError: a setting is wrong.
    """
    job = make_job(config, limit=limit, shards=shards, strict=strict)
    if beam is not None:
        from process_gen.curation.beam_runner import build_with_beam

        manifest = build_with_beam(job, out, beam.split())
    else:
        progress = _Progress()
        with finish_on_interrupt() as interrupted:
            manifest = build(job, out, workers=workers, report=progress.show, stop=interrupted)
        progress.finish()
    if show:
        from process_gen.report.html import write_report

        stored = TrajectoryFolder(out)
        sample = [stored[i] for i in range(min(show, len(stored)))]
        write_report(epath.Path(out) / SAMPLES, sample, title="Training trajectories")
    return manifest


class _Progress:
    """Items that are through, their rate and the time that is left."""

    def __init__(self) -> None:
        self._live = sys.stderr.isatty()
        self._every = 0.2 if self._live else 10.0
        self._shown = time.monotonic()
        self._last: Pace | None = None

    def show(self, pace: Pace) -> None:
        """Prints when the last line is old enough."""
        self._last = pace
        if time.monotonic() - self._shown >= self._every:
            self._shown = time.monotonic()
            self._print(pace, "\r" if self._live else "\n")

    def finish(self) -> None:
        """Prints the last line, unless there was nothing to do."""
        if self._last is not None:
            self._print(self._last, "\n")

    def _print(self, pace: Pace, end: str) -> None:
        from process_gen.train.progress import duration

        rate = pace.fresh / max(pace.seconds, 1e-9)
        text = f"made {pace.done}/{pace.items} items, {pace.shards_done}/{pace.shards} shards"
        text += f"  {duration(pace.seconds)}  {rate:.3g} items/s"
        if rate and pace.done < pace.items:
            text += f"  ETA {duration((pace.items - pace.done) / rate)}"
        print(f"{text:<78}", end=end, file=sys.stderr, flush=True)


def summary(manifest: Mapping[str, Any], out: str) -> list[str]:
    """What a manifest says, in lines."""
    lengths = ", ".join(f"{name} {c['mean']}" for name, c in manifest["lengths"].items())
    items = f" of {manifest['items']} items"
    lines = [
        f"{manifest['count']} trajectories{items} in {len(manifest['shards'])} shard(s): {out}",
        f"mean tokens: {lengths}",
    ]
    lines += [f"left out: {n} x {reason}" for reason, n in manifest["skipped"].items()]
    for name, verdicts in manifest.get("verdicts", {}).items():
        lines.append(_verdict_line(name, verdicts))
    groups: dict[str, list[str]] = {}
    for key, count in manifest["tally"].items():
        group, _, what = key.partition("/")
        if group != "verdicts":
            groups.setdefault(group, []).append(f"{what or 'all'} {count}")
    lines += [f"{group}: {'; '.join(counts)}" for group, counts in groups.items()]
    return lines


def _verdict_line(name: str, verdicts: Mapping[str, Any]) -> str:
    from process_gen.evaluation.intervals import wilson

    found, false = verdicts.get("true alarms", 0), verdicts.get("false alarms", 0)
    missed, approved = verdicts.get("misses", 0), verdicts.get("true approvals", 0)

    def rate(hits: int, total: int) -> str:
        if not total:
            return "undefined"
        r = wilson(hits, total)
        return (
            f"{hits}/{total} = {100 * hits / total:.1f} % [{100 * r.low:.1f}, {100 * r.high:.1f}]"
        )

    return (
        f"verdicts of the {name} on {found + false + missed + approved} steps: precision "
        f"{rate(found, found + false)}, recall {rate(found, found + missed)}"
    )


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of this command."""
    common.define_config(values)
    whole, switch = flags.DEFINE_integer, flags.DEFINE_boolean
    flags.DEFINE_string("out", None, "folder to write", flag_values=values)
    flags.DEFINE_string("encode_latents", None, "whose autoencoder", flag_values=values)
    flags.DEFINE_string("beam", None, "options of Apache Beam", flag_values=values)
    whole("show", 0, "trajectories on samples.html", 0, flag_values=values)
    whole("shards", None, "shard files", 1, flag_values=values)
    whole("limit", 0, "items to make", 0, flag_values=values)
    whole("workers", 1, "processes", 1, flag_values=values)
    switch("strict", False, "what cannot be used is an error", flag_values=values)
    switch("json", False, "print a JSON object", flag_values=values)


def main(values: flags.FlagValues) -> None:
    """Reads the flags, makes the data, says what was made."""
    config = common.read_config(values)
    out = common.required(values, "out")
    if values.beam is not None and values.workers > 1:
        raise ConfigError("--beam and --workers exclude each other: Beam has its own workers")
    # For workers too, of which few ever load JAX; it reads them as it is loaded.
    for name, value in common.compilation_cache().items():
        os.environ.setdefault(name, value)
    if values.encode_latents:
        from launch import encode_latents  # loads JAX

        encode_latents.find_autoencoder(values.encode_latents)  # before there is work to lose
    started = time.monotonic()
    manifest = make_data(
        config,
        out,
        show=values.show,
        shards=values.shards or 0,
        limit=values.limit,
        workers=values.workers,
        strict=values.strict,
        beam=values.beam,
    )
    print("\n".join(summary(manifest, out)))
    if values.show:
        print(f"samples: {epath.Path(out) / SAMPLES}")
    if values.encode_latents:
        encode_latents.encode(out, values.encode_latents, config.data.image_size)
    if values.json:
        keys = ("count", "items", "skipped", "verdicts", "tally")
        said = {key: manifest[key] for key in keys if key in manifest}
        lengths = {name: column["mean"] for name, column in manifest["lengths"].items()}
        seconds = round(time.monotonic() - started, 2)
        print(json.dumps({"out": out, **said, "lengths": lengths, "seconds": seconds}))


if __name__ == "__main__":
    common.run(main, define_flags, __doc__ or "")
