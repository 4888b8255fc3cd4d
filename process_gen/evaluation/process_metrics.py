"""How the painting went, whatever was painted: format validity, ends, pictures, cost."""

from __future__ import annotations

import dataclasses
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from process_gen.core.errors import TrajectoryError
from process_gen.core.trajectory import Trajectory, parse_plan, refine_command
from process_gen.evaluation.intervals import wilson


def format_fault(trajectory: Trajectory) -> str | None:
    """The first rule of the format that a sampled trajectory breaks; None when it is valid.

    Valid means: it ended by itself (`finish_reason` is `finished`), every plan parses, every
    inspection has balanced `<refine>` tags, and a refinement is there exactly when one was
    commanded. In the other modes the ending alone counts, with a picture where one is due.
    """
    if trajectory.finish_reason != "finished":
        return f"ended with {trajectory.finish_reason}"
    if trajectory.mode == "process" and not trajectory.steps:
        return "no steps"
    if trajectory.mode in ("one_shot", "think", "edit") and trajectory.final_image is None:
        return "no picture"
    for i, step in enumerate(trajectory.steps):
        if parse_plan(step.plan) is None:
            return f"step {i}: the plan does not parse"
        if step.refined_plan is not None and parse_plan(step.refined_plan) is None:
            return f"step {i}: the re-emitted plan does not parse"
        if step.sketch is None:
            return f"step {i}: no sketch"
        try:
            commanded = step.inspection is not None and refine_command(step.inspection) is not None
        except TrajectoryError:
            return f"step {i}: the inspection has an unbalanced <refine> tag"
        if commanded and step.refined is None:
            return f"step {i}: a refinement was commanded and none painted"
        if not commanded and step.refined is not None:
            return f"step {i}: a refinement that nothing commanded"
    return None


def summarize(trajectories: Sequence[Trajectory]) -> dict[str, Any]:
    """Counts and means over paintings, as a dict that `json.dumps` accepts.

    Keys: `n`; `format_valid` (a `Rate` as dict); `format_faults` (fault -> count, the step number
    left out); `finish_reasons` (reason -> count, `none` for unsampled data); `modes`; the means
    `steps`, `images`, and over what the sampler wrote `nfe` (velocity evaluations) and `seconds`
    (wall time of a row); None where there is nothing to average.
    """
    faults = [format_fault(t) for t in trajectories]
    sampled = [t.sampled for t in trajectories if t.sampled is not None]
    valid = wilson(faults.count(None), len(faults))
    kinds = (fault.split(": ")[-1] for fault in faults if fault is not None)
    return {
        "n": len(trajectories),
        "format_valid": dataclasses.asdict(valid),
        "format_faults": _counts(kinds),
        "finish_reasons": _counts(t.finish_reason or "none" for t in trajectories),
        "modes": _counts(t.mode for t in trajectories),
        "steps": _mean([len(t.steps) for t in trajectories]),
        "images": _mean([len(t.images) for t in trajectories]),
        "nfe": _mean([s.nfe for s in sampled]),
        "seconds": _mean([s.seconds for s in sampled]),
    }


def _counts(values: Iterable[str]) -> dict[str, int]:
    return dict(Counter(values).most_common())


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None
