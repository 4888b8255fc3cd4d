"""What is in a mixture: steps, pictures, verdicts, tokens, lengths, and how full packs get.

Numbers of lengths and packs are of a whole epoch, numbers of contents of a sample of it.
"""

from __future__ import annotations

import collections
import time
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from process_gen.core.batch import Dropout, measure
from process_gen.core.configs import Config
from process_gen.core.errors import DataError, ProcessGenError
from process_gen.core.grammar import Kind, Segment, to_segments
from process_gen.core.trajectory import Stage, Step, Trajectory
from process_gen.data.fitting import propose
from process_gen.data.packing import BAD
from process_gen.data.pictures import picture_rule
from process_gen.data.pipeline import train_dataset
from process_gen.data.rows import Rows, patch_sizes
from process_gen.data.sources import Split
from process_gen.data.tokenizer import load_tokenizer, token_ids

STREAMS = ("text", "und", "gen")
_BINS = 12
_SIZES = 8  # picture sizes that are listed


def verdict(step: Step) -> str:
    """What came of a step's inspection: one of the keys of `verdicts`."""
    if step.sketch is None:
        return "no sketch"
    if step.inspection is None:
        return "not inspected"
    if not step.rejected:
        return "approved"
    if step.refined is None:
        return "refused, not repaired"
    return "conflict" if step.refined_plan is not None else "misalignment"


class Contents:
    """Adds up what trajectories are made of."""

    def __init__(self, config: Config):
        """Takes the grammar, the tokenizer and the picture sizes of a config."""
        self._grammar, self._sizes = config.data.grammar, patch_sizes(config)
        self._pictures = picture_rule(config)
        self._ids = token_ids(load_tokenizer(config.data.tokenizer))
        self.count = 0
        self.modes: collections.Counter[str] = collections.Counter()
        self.verdicts: collections.Counter[str] = collections.Counter()
        self.sizes: collections.Counter[str] = collections.Counter()
        self.steps: list[int] = []
        self.images: list[int] = []
        self.tokens: collections.defaultdict[str, collections.Counter[str]] = (
            collections.defaultdict(collections.Counter)
        )

    def add(self, trajectory: Trajectory, supervise: Any) -> None:
        """Adds a trajectory.

        Raises:
          ProcessGenError: it cannot be used; then nothing is added.
        """
        segments = to_segments(trajectory, self._grammar, supervise)
        segments = self._pictures(segments, blank=True)
        measured = [measure([segment], self._ids, self._sizes) for segment in segments]
        for segment, lengths in zip(segments, measured, strict=True):
            self._count(segment, lengths)
        self.count += 1
        self.modes[trajectory.mode] += 1
        self.steps.append(len(trajectory.steps))
        self.images.append(len(trajectory.all_images))
        self.verdicts.update(verdict(step) for step in trajectory.steps)
        self.sizes.update(f"{x.shape[1]}x{x.shape[0]}" for x in trajectory.all_images)

    def _count(self, segment: Segment, lengths: Sequence[int]) -> None:
        mine = self.tokens[segment.stage.name.lower()]
        mine.update(dict(zip(STREAMS, lengths, strict=True)))
        if segment.kind is Kind.TEXT and segment.loss:
            mine["supervised"] += lengths[0] - 1
        if segment.kind is Kind.NOISED:
            mine["supervised"] += lengths[2]
        if segment.next is not None:
            self.tokens[Stage.CONTROL.name.lower()]["supervised"] += 1

    def summary(self) -> dict[str, Any]:
        """Plain numbers, tokens as means over trajectories."""
        each = max(self.count, 1)
        return {
            "sampled": self.count,
            "modes": dict(self.modes.most_common()),
            "steps": distribution(self.steps, whole=True),
            "images": distribution(self.images, whole=True),
            "picture_sizes": dict(self.sizes.most_common(_SIZES)),
            "verdicts": dict(self.verdicts.most_common()),
            "tokens": {
                stage: {name: round(n / each, 2) for name, n in sorted(counts.items())}
                for stage, counts in self.tokens.items()
            },
        }


def distribution(values: Iterable[int], whole: bool = False) -> dict[str, Any]:
    """Mean, percentiles, largest value and a histogram.

    Args:
      values: any number.
      whole: whether the histogram has a bin for each value, under its name.
    """
    array = np.asarray(list(values))
    if not len(array):
        return {"mean": 0.0, "max": 0, "histogram": {}}
    found: dict[str, Any] = {"mean": round(float(array.mean()), 2), "max": int(array.max())}
    if whole:
        kinds, counts = np.unique(array, return_counts=True)
        found["histogram"] = {str(k): int(n) for k, n in zip(kinds, counts, strict=True)}
        return found
    for share in (50, 90, 99):
        found[f"p{share}"] = int(np.percentile(array, share))
    counts, edges = np.histogram(array, bins=_BINS)
    names = [f"{a:.0f}-{b:.0f}" for a, b in zip(edges[:-1], edges[1:], strict=True)]
    found["histogram"] = dict(zip(names, counts.tolist(), strict=True))
    return found


def describe(config: Config, sample: int = 1000, split: Split = "train") -> dict[str, Any]:
    """Statistics of the training mixture of a config.

    Args:
      config: `data` says what is read and how it is packed.
      sample: trajectories whose contents are looked at, spread over the epoch; 0 takes all.
      split: "eval" looks at `data.eval_sources`.

    Raises:
      DataError: there is no such split, a source cannot be opened, no record can be measured; under
        `data.strict`, a record cannot be used, or nothing fits a pack.
    """
    data = config.data
    sources = data.sources if split == "train" else data.eval_sources
    if not sources:
        raise DataError("data.eval_sources is empty: there is no held-out split to look at")
    rows = Rows(config, sources, split, Dropout())
    drawn = rows.lengths(0)
    good_N = (drawn.length_Nx3 != BAD).all(axis=1)
    length_Nx3 = drawn.length_Nx3[good_N]
    contents = Contents(config)
    places = np.arange(len(good_N))
    if sample and sample < len(places):
        places = np.linspace(0, len(places) - 1, sample).astype(int)
    for place in places.tolist():
        own = rows.sources[int(drawn.source_N[place])]
        try:
            contents.add(own[int(drawn.index_N[place])], own.supervise)
        except ProcessGenError:  # counted by the plan
            continue
    packs = _packs(config, rows, fits=bool(len(length_Nx3)))
    skipped = rows.skipped()
    limits = (data.text_len, data.und_len, data.gen_len)
    # Where next to nothing fits, the wanted length is that of four of the longest.
    longest = int(length_Nx3.max(axis=0).sum()) if len(length_Nx3) else 1
    left_out = skipped.counts.get("too long", 0) if packs else len(length_Nx3)
    wanted = 4 * longest if 2 * left_out > len(length_Nx3) else sum(limits)
    shape = propose(length_Nx3, wanted) if len(length_Nx3) else None
    return {
        "sources": [
            {
                "kind": source.kind,
                "path": source.path,
                "weight": source.weight,
                "supervise": own.supervise,
                "trajectories": len(own),
                "drawn": int((drawn.source_N == number).sum()),
            }
            for number, (source, own) in enumerate(zip(sources, rows.sources, strict=True))
        ],
        "trajectories": int(len(good_N)),
        "contents": contents.summary(),
        "lengths": {
            name: distribution(column) for name, column in zip(STREAMS, length_Nx3.T, strict=True)
        },
        "packs": packs,
        "skipped": {"counts": dict(skipped.counts), "examples": list(skipped.examples)},
        "proposal": shape
        and {
            "text_len": shape.text,
            "und_len": shape.und,
            "gen_len": shape.gen,
            "und_fill": round(shape.und_fill, 4),
            "gen_fill": round(shape.gen_fill, 4),
            "left_out": round(shape.left_out, 4),
        },
    }


def _packs(config: Config, rows: Rows, fits: bool) -> dict[str, Any] | None:
    """Of the first epoch's plan; None where nothing fits a pack, which is no reason to say less."""
    try:
        plan = rows.plan(0)
    except DataError:
        if fits and not config.data.strict:
            return None
        raise
    rows.enter(0)
    limits = (config.data.text_len, config.data.und_len, config.data.gen_len)
    und, gen = plan.stream_fill
    return {
        "count": len(plan),
        "limits": dict(zip(STREAMS, limits, strict=True)),
        "trajectories_each": round(len(plan.index_N) / len(plan), 2),
        "fill": dict(zip(STREAMS, (round(x, 4) for x in plan.fill), strict=True)),
        "stream_fill": {"und": round(und, 4), "gen": round(gen, 4)},
        "plan_hash": plan.hash,
    }


def speed(config: Config, batches: int) -> dict[str, Any]:
    """How fast the pipeline alone delivers.

    Args:
      config: `data.workers` and `data.prefetch` say how it is made.
      batches: to be timed, after a few that fill the buffers and with the next epoch planned.

    Returns:
      Rates; the seconds that an epoch's plan took, less where its lengths were known; and the rate
      over a whole epoch, with its plan.
    """
    iterator = train_dataset(config)
    iterator.plan(0)
    began = time.perf_counter()
    iterator.plan(1)
    planned = time.perf_counter() - began
    began = time.perf_counter()
    next(iterator)
    first = time.perf_counter() - began
    for _ in range(2 * max(config.data.prefetch, config.data.workers)):
        next(iterator)
    began, worked = time.perf_counter(), time.process_time()
    used = sum(int((next(iterator).text.order >= 0).sum()) for _ in range(batches))
    seconds, worked = time.perf_counter() - began, time.process_time() - worked
    iterator.close()
    epoch = len(iterator.plan(0)) / config.data.rows
    return {
        "batches": batches,
        "workers": config.data.workers,
        "plan_seconds": round(planned, 2),
        "first_batch_seconds": round(first, 2),
        "batches_per_second": round(batches / seconds, 2),
        "batches_per_second_with_plans": round(epoch / (epoch * seconds / batches + planned), 2),
        "cpu_seconds_per_batch": round(worked / batches, 4),
        "rows_per_second": round(batches * config.data.rows / seconds, 1),
        "text_tokens_per_second": round(used / seconds),
    }
