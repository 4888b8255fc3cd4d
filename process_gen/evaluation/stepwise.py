"""How well a painter of the Strokes world plans, draws, inspects and repairs, step by step.

Everything is judged from the painting itself: the oracle reads each picture, the texts are parsed,
and the two are compared. A sketch is *faulty* when it does not show what its plan describes
(misaligned), or when the plan cannot become what the prompt asks for (conflict).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from process_gen.core.trajectory import Image, Step, Trajectory, parse_plan
from process_gen.evaluation.intervals import wilson
from process_gen.strokes import oracle
from process_gen.strokes.consistency import as_seen, drawable, extends_to
from process_gen.strokes.phrases import Placed, parse_inspection, parse_state
from process_gen.strokes.scene import EASY, World

State = tuple[tuple[Placed, bool], ...]


@dataclasses.dataclass(frozen=True)
class StepCheck:
    """What is true of one step that has a readable plan, a sketch and an inspection.

    Attributes:
      aligned: the sketch shows what the plan describes, and nothing else.
      consistent: the plan can be drawn and become what the prompt asks for.
      complete: the plan describes all that the prompt asks for, and nothing else.
      rejected: the inspection found a fault.
      says_complete: the inspection calls the picture complete.
      seen_right: it lists what the oracle sees; None where it lists nothing.
      right_end: the step's last picture shows what its last plan describes, and that plan is
        consistent with the prompt.
      complete_end: it shows that, and that plan is complete.
      untouched, kept: objects that the plan leaves as they were and the last picture showed; how
        many of them the sketch still shows.
    """

    aligned: bool
    consistent: bool
    complete: bool
    rejected: bool
    says_complete: bool
    seen_right: bool | None
    right_end: bool
    complete_end: bool
    kept: int
    untouched: int

    @property
    def faulty(self) -> bool:
        """Whether the inspection should find a fault."""
        return not (self.aligned and self.consistent)


def planned(plan: str, world: World = EASY) -> State | None:
    """The state that a plan describes; None when it cannot be read."""
    parsed = parse_plan(plan)
    return parse_state(parsed[1], world) if parsed else None


def shows(image: Image, state: State, world: World = EASY) -> bool:
    """Whether a picture shows a state, and nothing else."""
    reading = oracle.read(image, world)
    return not reading.stray and reading.placed == _objects(state)


def consistent(state: State, requirement: Mapping[str, Any], world: World = EASY) -> bool:
    """Whether a state can be drawn and become what is asked for; placeholders are no obstacle."""
    wanted = [as_seen(placed, world) for placed, holds in state if not holds]
    return drawable(_objects(state), world) and extends_to(wanted, requirement)


def complete(state: State, requirement: Mapping[str, Any], world: World = EASY) -> bool:
    """Whether a state can be drawn and is what is asked for, without placeholders."""
    if any(holds for _, holds in state) or not drawable(_objects(state), world):
        return False
    return oracle.satisfies_exactly([as_seen(placed, world) for placed, _ in state], requirement)


def _objects(state: State) -> tuple[Placed, ...]:
    return tuple(sorted(placed for placed, _ in state))


def check_step(
    step: Step,
    requirement: Mapping[str, Any],
    before: tuple[State, Image] | None = None,
    world: World = EASY,
) -> StepCheck | None:
    """Judges one step.

    Args:
      step: of a painting.
      requirement: of the prompt, in GenEval's schema.
      before: state and picture that the step before ended with; None for the first step.
      world: that it is set in.

    Returns:
      The verdict; None when the plan cannot be read or there is no sketch or no inspection.
    """
    state = planned(step.plan, world)
    if state is None or step.sketch is None or step.inspection is None:
        return None
    said = parse_inspection(step.inspection, world)
    reading = oracle.read(step.sketch, world)
    last = state if step.refined_plan is None else planned(step.refined_plan, world)
    image = step.image
    assert image is not None
    ended = last if last is not None and shows(image, last, world) else None
    right_end = ended is not None and consistent(ended, requirement, world)
    complete_end = ended is not None and complete(ended, requirement, world)
    kept = untouched = 0
    if before is not None:
        old, picture = before
        stay = set(_objects(old)) & set(_objects(state)) & set(oracle.read(picture, world).placed)
        untouched, kept = len(stay), len(stay & set(reading.placed))
    return StepCheck(
        aligned=not reading.stray and reading.placed == _objects(state),
        consistent=consistent(state, requirement, world),
        complete=complete(state, requirement, world),
        rejected=step.rejected,
        says_complete=said is not None and said.complete,
        seen_right=None if said is None or said.seen is None else said.seen == reading.placed,
        right_end=right_end,
        complete_end=complete_end,
        kept=kept,
        untouched=untouched,
    )


def check_steps(trajectory: Trajectory, world: World = EASY) -> list[StepCheck | None]:
    """`check_step` of every step; the requirement is the trajectory's metadata."""
    checks: list[StepCheck | None] = []
    before: tuple[State, Image] | None = None
    for step in trajectory.steps:
        checks.append(check_step(step, trajectory.metadata, before, world))
        state = planned(step.refined_plan or step.plan, world)
        before = None if state is None or step.image is None else (state, step.image)
    return checks


def inspection_rates(checks: Sequence[StepCheck]) -> dict[str, Any]:
    """How well inspections judge, as a dict that `json.dumps` accepts; every entry is a `Rate`.

    `precision` (of those rejected, faulty), `recall` (of those faulty, rejected), also by kind
    (`recall_misaligned`, `recall_conflict`), `false_alarms` on right sketches, and of these on
    `false_alarms_unfinished`; `repaired` of the faulty, `damaged` of the right sketches (the step
    ends with a right picture, or does not); `seen_right`; `says_complete_right` (of the accepted
    right sketches, complete is said where it is true).
    """
    faulty = [c for c in checks if c.faulty]
    right = [c for c in checks if not c.faulty]
    misaligned = [c for c in faulty if not c.aligned and c.consistent]
    conflicts = [c for c in faulty if not c.consistent]
    unfinished = [c for c in right if not c.complete]
    rejected = [c for c in checks if c.rejected]
    accepted = [c for c in right if not c.rejected]
    seen = [c.seen_right for c in checks if c.seen_right is not None]
    return {
        "precision": _rate(c.faulty for c in rejected),
        "recall": _rate(c.rejected for c in faulty),
        "recall_misaligned": _rate(c.rejected for c in misaligned),
        "recall_conflict": _rate(c.rejected for c in conflicts),
        "false_alarms": _rate(c.rejected for c in right),
        "false_alarms_unfinished": _rate(c.rejected for c in unfinished),
        "repaired": _rate(c.right_end for c in faulty),
        "damaged": _rate(not c.right_end for c in right),
        "seen_right": _rate(seen),
        "says_complete_right": _rate(c.says_complete == c.complete for c in accepted),
    }


def painting_rates(trajectories: Sequence[Trajectory], world: World = EASY) -> dict[str, Any]:
    """Rates over whole paintings of the sampler, as a dict that `json.dumps` accepts.

    `steps` (judged ones) and `unjudged`; `sketch_aligned`, `plan_consistent`; `drift` (objects that
    should have stayed and did not); `plan_correct` (the last plan, perfectly drawn, satisfies the
    prompt), `stopped_early` (finished without that), `painted_on` (a step begun although the
    picture and the plan that the one before ended with were complete); and under `inspection` what
    `inspection_rates` gives.
    """
    everything = [check_steps(t, world) for t in trajectories]
    checks = [c for own in everything for c in own if c is not None]
    ended = [t for t in trajectories if t.steps]
    finals = [_final_complete(t, world) for t in ended]
    finished = [f for t, f in zip(ended, finals, strict=True) if t.finish_reason == "finished"]
    followed = [c for own in everything for c in own[:-1] if c is not None]
    return {
        "steps": len(checks),
        "unjudged": sum(c is None for own in everything for c in own),
        "sketch_aligned": _rate(c.aligned for c in checks),
        "plan_consistent": _rate(c.consistent for c in checks),
        "drift": _hits(sum(c.untouched - c.kept for c in checks), sum(c.untouched for c in checks)),
        "plan_correct": _rate(finals),
        "stopped_early": _rate(not f for f in finished),
        "painted_on": _rate(c.complete_end for c in followed),
        "inspection": inspection_rates(checks),
    }


def _final_complete(trajectory: Trajectory, world: World) -> bool:
    step = trajectory.steps[-1]
    state = planned(step.refined_plan or step.plan, world)
    return state is not None and complete(state, trajectory.metadata, world)


def _rate(values: Iterable[bool]) -> dict[str, Any]:
    values = list(values)
    return _hits(sum(values), len(values))


def _hits(hits: int, n: int) -> dict[str, Any]:
    return dataclasses.asdict(wilson(hits, n))
