"""A budget of training FLOPs, turned into a number of steps.

Runs with different data or pack shapes are compared at equal `train.flops`: what a step costs is
counted on the run's own first batches, so the number of steps is a pure function of the config.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import statistics
from collections.abc import Callable, Iterator
from typing import Any

from etils import epath

from process_gen.core.batch import PackedBatch
from process_gen.core.configs import Config
from process_gen.models import flops

SAMPLED = 64  # batches; their mean is within a per cent of that of an epoch
FILE = "flops.json"


@dataclasses.dataclass(frozen=True)
class Budget:
    """What was counted.

    Attributes:
      flops_per_step: mean over the first `SAMPLED` batches, by `models.flops`.
      steps: that the budget pays for.
      flops: steps x flops_per_step.
    """

    flops_per_step: float
    steps: int
    flops: float


def settle(
    config: Config, batches: Callable[[], Iterator[PackedBatch]]
) -> tuple[Config, Budget | None]:
    """Puts the number of steps into a config that has a budget; another comes back as it is.

    Args:
      config: of the run.
      batches: opens its batches from the first one on, NumPy arrays of the whole global batch.
    """
    if not config.train.flops:
        return config, None
    counted = [
        flops.train(config.model, flops.of_batch(batch))
        for batch in itertools.islice(batches(), SAMPLED)
    ]
    each = statistics.fmean(counted)
    steps = max(round(config.train.flops / each), 1)
    budget = Budget(each, steps, steps * each)
    train = dataclasses.replace(config.train, steps=steps)
    return dataclasses.replace(config, train=train), budget


def write(workdir: epath.PathLike, budget: Budget) -> dict[str, Any]:
    """Leaves the budget as `flops.json` in a run's directory."""
    folder = epath.Path(workdir)
    folder.mkdir(parents=True, exist_ok=True)
    values = dataclasses.asdict(budget)
    (folder / FILE).write_text(json.dumps(values) + "\n")
    return values
