"""Measures what a second look at a painter's own steps brings, and a third, and so on.

    python -m launch.evaluate --suite=strokes --seed=0 --set=batch=32 --out=own_0
    python -m tests.evaluation.measure_looks --looks=8 --temperature=1.0 own_0 ...

Every step of the paintings in these folders that the oracle calls faulty, and some that it calls
right, is inspected several times as if for the first time, by the painter that comes along or that
of `--checkpoint`. A step counts as rejected if at least so many of its inspections reject it.
Prints a JSON object. Not a test.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
from collections.abc import Sequence
from typing import Any

import process_gen
from process_gen.core.trajectory import Trajectory
from process_gen.evaluation import stepwise
from process_gen.evaluation.intervals import wilson
from process_gen.evaluation.probes import cut_at
from process_gen.sampling import records
from process_gen.sampling.painter import Painter


def steps_of(folders: Sequence[str]) -> tuple[list[Trajectory], list[Trajectory]]:
    """Paintings cut off after a sketch: faulty ones, and right ones."""
    faulty, right = [], []
    for folder in folders:
        for painting in records.read(f"{folder}/trajectories.jsonl"):
            for number, check in enumerate(stepwise.check_steps(painting)):
                if check is None:
                    continue
                start = dataclasses.replace(cut_at(painting, number), sampled=None)
                (faulty if check.faulty else right).append(start)
    return faulty, right


def rejections(
    painter: Painter, starts: Sequence[Trajectory], looks: int, **settings: Any
) -> list[int]:
    """How many of so many inspections reject the last sketch of each painting."""
    counts = [0] * len(starts)
    for place, painting in enumerate(painter.paint(starts, num=looks, **settings)):
        number = place // looks
        at = len(starts[number].steps) - 1
        checks = stepwise.check_steps(painting)
        check = checks[at] if at < len(checks) else None
        counts[number] += check is not None and check.rejected
    return counts


def main() -> None:
    """Prints rates by the number of rejections that it takes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="+")
    parser.add_argument("--checkpoint", default="", help="by default the painter that comes along")
    parser.add_argument("--looks", type=int, default=8)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--right", type=int, default=400, help="right steps to look at")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    faulty, right = steps_of(given.folders)
    right = random.Random(given.seed).sample(right, min(given.right, len(right)))
    painter = process_gen.load(given.checkpoint)
    settings = {"temperature": given.temperature, "seed": given.seed, "batch": 32}
    found = {
        name: rejections(painter, starts, given.looks, **settings)
        for name, starts in (("recall", faulty), ("false_alarms", right))
    }
    rates = {
        f"{least} of {given.looks}": {
            name: dataclasses.asdict(wilson(sum(c >= least for c in counts), len(counts)))
            for name, counts in found.items()
        }
        for least in range(1, given.looks + 1)
    }
    print(json.dumps(rates, indent=1))


if __name__ == "__main__":
    main()
