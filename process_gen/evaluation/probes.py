"""Paintings cut off after a sketch that is known to be right, or known to be faulty.

A painter goes on with each; what it says of the sketch, and what it makes of it, is judged by
`evaluation.stepwise` as if it had painted everything itself. A good painter makes few faults of its
own, so that its inspection can only be measured on faults that were put in.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from process_gen.core.trajectory import Trajectory
from process_gen.evaluation import stepwise
from process_gen.strokes.plans import StrokesOptions, build_trajectory
from process_gen.strokes.prompts import TAGS, held_out_requirements
from process_gen.strokes.scene import EASY, World, world_named

_HELD_OUT = StrokesOptions(prompts="held_out")


@dataclasses.dataclass(frozen=True)
class Probe:
    """A painting to go on with.

    Attributes:
      start: ends with a sketch that nobody has inspected.
      faulty: whether that sketch has a fault.
    """

    start: Trajectory
    faulty: bool

    @property
    def at(self) -> int:
        """Index of the step that is probed."""
        return len(self.start.steps) - 1


def cut_at(painting: Trajectory, number: int) -> Trajectory:
    """A painting up to the sketch of a step, as if nobody had inspected it yet."""
    cut = dataclasses.replace(
        painting.steps[number], inspection=None, refined_plan=None, refined=None
    )
    return dataclasses.replace(painting, steps=(*painting.steps[:number], cut), final_image=None)


def make_probes(
    faulty: int, right: int, seed: int = 0, options: StrokesOptions = _HELD_OUT
) -> list[Probe]:
    """Probes on held-out prompts, tag by tag in turn.

    Args:
      faulty: number with a rendered fault, half of them conflicts as far as prompts allow.
      right: number without.
      seed: of prompts and paintings.
      options: of the paintings, their world and how their earlier steps are inspected among them;
        the chances of a fault are those of the probe.
    """
    rng = np.random.default_rng([seed, 0x9B0])
    per_tag = -(-4 * (faulty + right) // len(TAGS))
    world = world_named(options.world)
    columns = [held_out_requirements(tag, per_tag, seed, world) for tag in TAGS]
    requirements = [r for row in zip(*columns, strict=True) for r in row]
    wanted = {True: faulty, False: right}
    probes: list[Probe] = []
    for number, requirement in enumerate(requirements):
        if not any(wanted.values()):
            break
        fault = wanted[True] > 0 and (number % 2 == 0 or not wanted[False])
        kind = "conflict" if number % 4 == 0 else "misalignment"
        chances = {"conflict": 0.0, "misalignment": 0.0} | ({kind: 1.0} if fault else {})
        painting = build_trajectory(rng, requirement, dataclasses.replace(options, **chances))
        at = next((i for i, s in enumerate(painting.steps) if s.rejected), None)
        if fault and at is None:
            continue  # this prompt allows no such fault
        if at is None:
            at = int(rng.integers(len(painting.steps)))
        wanted[fault] -= 1
        probes.append(Probe(cut_at(painting, at), fault))
    assert not any(wanted.values()), "four times as many prompts as probes were not enough"
    return probes


def score(
    probes: Sequence[Probe], painted: Sequence[Trajectory], world: World = EASY
) -> dict[str, Any]:
    """What became of the probes, as a dict that `json.dumps` accepts.

    Returns:
      `n`, `unjudged` (no inspection, or a step that cannot be read), and what
      `stepwise.inspection_rates` says of the probed steps.
    """
    checks = []
    for probe, trajectory in zip(probes, painted, strict=True):
        found = stepwise.check_steps(trajectory, world)
        checks.append(found[probe.at] if probe.at < len(found) else None)
    judged = [c for c in checks if c is not None]
    return {
        "n": len(probes),
        "unjudged": len(checks) - len(judged),
        **stepwise.inspection_rates(judged),
    }
