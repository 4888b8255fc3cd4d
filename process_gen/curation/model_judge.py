"""A checkpoint as a judge: it goes on with somebody's painting, and what it says counts.

Only its inspection, and the plan that it re-emits after a conflict, are of interest; a picture that
it would paint afterwards is not begun.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from process_gen.core.errors import TrajectoryError
from process_gen.core.trajectory import Step, Trajectory, refine_command
from process_gen.curation.protocols import CheckRequest, Failed, Verdict


def own_verdict(inspection: str, refined_plan: str | None) -> Verdict | Failed:
    """What a painter's own words say.

    Args:
      inspection: of a step.
      refined_plan: the plan that it wrote next; None where it wrote none, which makes a fault a
        misalignment.
    """
    try:
        command = refine_command(inspection)
    except TrajectoryError:
        return Failed("an inspection that cannot be read", inspection)
    if command is None:
        return Verdict(inspection)
    analysis = inspection.partition("<refine>")[0].rstrip()
    if refined_plan is None:
        return Verdict(analysis, "misalignment", command)
    return Verdict(analysis, "conflict", command, refined_plan)


class OwnJudge:
    """Believes what the painter itself said of its sketch."""

    def check(self, requests: Sequence[CheckRequest]) -> list[Verdict | Failed]:
        """The verdict on each request."""
        return [
            own_verdict(request.said, request.replanned)
            if request.said is not None
            else Failed("a step that its painter did not inspect")
            for request in requests
        ]


class ModelJudge:
    """Lets a checkpoint inspect sketches that it did not paint; it takes its likeliest words.

    Args:
      checkpoint, step, weights: see `sampling.painter.load`.
    """

    def __init__(self, checkpoint: str, step: str = "latest", weights: str = "ema"):
        self._source = (checkpoint, step, weights)

    @functools.cached_property
    def _painter(self) -> Any:
        from process_gen.curation.self_sampling import load_painter

        return load_painter(*self._source)

    def check(self, requests: Sequence[CheckRequest]) -> list[Verdict | Failed]:
        """The verdict on each request."""
        answers: list[Verdict | Failed] = [Failed("a plan without a sketch")] * len(requests)
        by_pictures: dict[int, list[int]] = {}
        starts = {}
        for i, request in enumerate(requests):
            if request.picture is not None:
                step = Step(request.plan, request.picture)
                starts[i] = Trajectory(
                    request.prompt, steps=(*request.earlier, step), metadata=request.metadata
                )
                by_pictures.setdefault(len(starts[i].images), []).append(i)
        # A painting is closed when it would need one picture more than it was given.
        for pictures, group in sorted(by_pictures.items()):
            painted = self._painter.paint(
                [starts[i] for i in group], temperature=0.0, max_images=pictures
            )
            for i, trajectory in zip(group, painted, strict=True):
                step = trajectory.steps[len(requests[i].earlier)]
                answers[i] = (
                    Failed("an inspection that came to no end")
                    if step.inspection is None or trajectory.finish_reason == "malformed"
                    else own_verdict(step.inspection, step.refined_plan)
                )
        return answers
