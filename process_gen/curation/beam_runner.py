"""Makes the shards of a job with Apache Beam, on as many machines as its runner has.

The same shards, files and bytes as `workers.build`: a shard is an element, and making it is the one
step of the pipeline. The folder must be one that all machines reach. Shards that are done already
are left out, so a pipeline that was ended is continued by the same call. The lock that keeps two
builds apart holds on the machine that starts the pipeline.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions

from process_gen.curation.engine import Job, make_shard
from process_gen.curation.site import finish, open_site


class _MakeShard(beam.DoFn):
    """Shard number -> records in it; its files are the result that counts."""

    def __init__(self, job: Job, folder: str):
        self._job, self._folder = job, folder

    def setup(self) -> None:
        """Makes the recipe, once a worker."""
        self._recipe, self._measure = self._job.make_recipe(), self._job.measure()

    def process(self, shard: int) -> Iterator[int]:
        """Makes one shard. Beam may call this twice for one; both write the same bytes."""
        made = make_shard(self._job, self._recipe, self._measure, self._folder, shard)
        yield made["shard"]["count"]


def build_with_beam(job: Job, folder: str, options: Sequence[str]) -> dict[str, Any]:
    """Builds a folder with a pipeline; see `workers.build`.

    Args:
      job: what to build.
      folder: reachable from all of Beam's workers.
      options: of the pipeline, as on a command line: ``["--runner=DirectRunner"]``.

    Returns:
      The manifest.
    """
    with open_site(job, folder) as site:
        if site.todo:
            with beam.Pipeline(options=PipelineOptions(list(options))) as pipeline:
                shards = pipeline | "shards" >> beam.Create(site.todo)
                # Without a shuffle a runner may give all of them to one worker.
                spread = shards | "spread" >> beam.Reshuffle()
                spread | "make" >> beam.ParDo(_MakeShard(job, folder))  # noqa: B018
        return finish(job, site)
