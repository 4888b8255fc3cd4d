"""A checkpoint as a judge: it goes on with somebody's painting, and what it says counts.

Only its inspection, and the plan that it re-emits after a conflict, are of interest; a picture that
it would paint afterwards is not begun.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from process_gen.core.errors import TrajectoryError
from process_gen.core.trajectory import Step, Trajectory, parse_plan, refine_command
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


def inspection_of(painting: Trajectory, number: int) -> str | None:
    """What a painting says of one of its steps, if it came to the end of it.

    `<refine>` comes last, so that an inspection that was cut reads as if nothing were wrong. One
    without it after which the painting had no room counts as cut too.

    Args:
      painting: a painter's, as it closed it.
      number: of the step.
    """
    step = painting.steps[number]
    # Closed so, a painting says no more after the text that was cut or that breaks the grammar.
    last = number == len(painting.steps) - 1 and step.refined_plan is None
    if last and not step.rejected and painting.finish_reason in ("max_text", "malformed"):
        return None
    return step.inspection


def _verdict(painting: Trajectory, number: int) -> Verdict | Failed:
    """What the painter that went on with a painting says of the step that it was to inspect."""
    if number >= len(painting.steps):
        why = painting.text or f"the painting ended before: {painting.finish_reason}"
        return Failed("a step that the judge could not read", why)
    plan = painting.steps[number].refined_plan
    inspection = inspection_of(painting, number)
    if inspection is None:
        return Failed("an inspection that came to no end")
    if plan is not None and parse_plan(plan) is None:
        return Failed("a re-emitted plan that cannot be read", plan, "conflict")
    step, last = painting.steps[number], number == len(painting.steps) - 1
    # A misalignment ends at the picture that there may be no more of, "max_images".
    if last and step.rejected and plan is None and painting.finish_reason == "max_text":
        return Failed("a fault that there was no room to say more of", inspection)
    return own_verdict(inspection, plan)


class OwnJudge:
    """Believes what the painter itself said of its sketch."""

    def check(self, requests: Sequence[CheckRequest]) -> list[Verdict | Failed]:
        """The verdict on each request."""
        return [
            own_verdict(request.said, request.replanned)
            if request.said is not None
            else Failed("a step that its painter did not inspect to the end")
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
                answers[i] = _verdict(trajectory, len(requests[i].earlier))
        return answers
