"""What a painter's own mistakes cost it later: steps after its own ones, and after true ones.

Training shows a painter steps whose past is as it should be; painting shows it its own (exposure
bias: Bengio et al. 2015, Scheduled Sampling, arXiv 1506.03099). Each prompt is painted twice, from
its words alone and from the first steps of a true painting, and the same step of both is judged.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from process_gen.core.trajectory import Trajectory
from process_gen.evaluation import stepwise
from process_gen.evaluation.differences import paired
from process_gen.evaluation.intervals import wilson
from process_gen.evaluation.stepwise import StepCheck
from process_gen.strokes.plans import StrokesOptions, build_trajectory
from process_gen.strokes.prompts import held_out_requirements
from process_gen.strokes.scene import EASY, World, world_named

# A prompt for one group is painted in a single step, or rarely in two.
TAGS = ("two_object", "position", "color_attr", "complex")
OWN, TRUE, DIFFERENCE = "own", "true", "true_minus_own"
_RATES: dict[str, Callable[[StepCheck], bool]] = {
    "plan_consistent": lambda check: check.consistent,
    "sketch_aligned": lambda check: check.aligned,
}
_HELD_OUT = StrokesOptions(prompts="held_out")


@dataclasses.dataclass(frozen=True)
class Start:
    """What a painting begins with.

    Attributes:
      start: the prompt alone, or with all steps before `at`, finished and without a fault.
      at: index of the step that is judged, 1 or more.
    """

    start: Trajectory
    at: int


def make_starts(per_tag: int, seed: int = 0, options: StrokesOptions = _HELD_OUT) -> list[Start]:
    """Two starts a prompt, one after the other: the prompt alone, then the true steps.

    Args:
      per_tag: prompts of each of `TAGS`.
      seed: of prompts, paintings and steps.
      options: of the true paintings; faults are left out, detours are not.
    """
    rng = np.random.default_rng([seed, 0xC0E])
    options = dataclasses.replace(options, conflict=0.0, misalignment=0.0)
    starts: list[Start] = []
    for tag in TAGS:
        for requirement in held_out_requirements(tag, per_tag, seed, world_named(options.world)):
            painting = build_trajectory(rng, requirement, options)
            at = int(rng.integers(1, len(painting.steps)))
            begun = dataclasses.replace(painting, steps=painting.steps[:at], final_image=None)
            starts += [Start(dataclasses.replace(begun, steps=()), at), Start(begun, at)]
    return starts


def score(
    starts: Sequence[Start], painted: Sequence[Trajectory], world: World = EASY
) -> dict[str, Any]:
    """How the judged steps came out, as a dict that `json.dumps` accepts.

    Returns:
      `n` prompts; for `own` and `true` context `judged` steps, `ended` (the painting has no such
      step), `unjudged` (it cannot be read, or lacks sketch or inspection), and `Rate` dicts:
      `plan_consistent` (the plan can become what the prompt asks for) and `sketch_aligned` (the
      sketch shows what the plan describes, and nothing else); `true_minus_own`: the differences
      over the `pairs` in which both steps were judged.
    """
    found = [
        _step(start, trajectory, world) for start, trajectory in zip(starts, painted, strict=True)
    ]
    own, true = found[0::2], found[1::2]
    pairs = zip(own, true, strict=True)
    both = [(a, b) for a, b in pairs if isinstance(a, StepCheck) and isinstance(b, StepCheck)]
    return {
        "n": len(own),
        OWN: _rates(own),
        TRUE: _rates(true),
        DIFFERENCE: {
            "pairs": len(both),
            **{name: _difference([(of(a), of(b)) for a, b in both]) for name, of in _RATES.items()},
        },
    }


def _step(start: Start, trajectory: Trajectory, world: World) -> StepCheck | str:
    """The verdict on the judged step, or why there is none."""
    if len(trajectory.steps) <= start.at:
        return "ended"
    return stepwise.check_steps(trajectory, world)[start.at] or "unjudged"


def _rates(found: Sequence[StepCheck | str]) -> dict[str, Any]:
    checks = [check for check in found if isinstance(check, StepCheck)]
    return {
        "judged": len(checks),
        **{reason: found.count(reason) for reason in ("ended", "unjudged")},
        **{
            name: dataclasses.asdict(wilson(sum(map(of, checks)), len(checks)))
            for name, of in _RATES.items()
        },
    }


def _difference(pairs: Sequence[tuple[bool, bool]]) -> dict[str, Any]:
    if not pairs:
        return {"rate": None, "low": -1.0, "high": 1.0, "n": 0}
    found = paired([pairs])
    return {
        "rate": found.difference,
        "low": found.low,
        "high": found.high,
        "n": found.pairs,
        "better": found.better,
        "worse": found.worse,
    }
