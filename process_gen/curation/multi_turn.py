"""The recipe "multi_turn": a prompt is planned in growing steps, drawn, and filtered.

What the judge does not accept is drawn again, and after `attempts` drawings the painting is
dropped. The judge's words become the inspections, so that each says what is not painted yet.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from process_gen.core.checks import check, fraction, positive
from process_gen.core.grammar import Supervise
from process_gen.core.settings import build
from process_gen.core.trajectory import Image, Step, Trajectory
from process_gen.curation.engine import Made, Passed, Record, Skip
from process_gen.curation.makers import Makers, Workshop, identity_of
from process_gen.curation.prompts import Prompts, open_prompts
from process_gen.curation.protocols import (
    CheckRequest,
    Drafter,
    DrawRequest,
    Failed,
    PlannedStep,
    PlanRequest,
    Verdict,
)
from process_gen.curation.tallies import compare
from process_gen.data.sources import derived_seed


@dataclasses.dataclass(frozen=True)
class MultiTurnOptions:
    """Settings of the recipe.

    Attributes:
      prompts: a file of prompts; empty for those of the Strokes world.
      weights: of its tags; empty for all alike.
      makers: who plans, draws and judges.
      attempts: drawings that a step may cost.
      faults: probability that the embedded drafter draws something else.
      chunk: paintings that are made side by side.
    """

    prompts: str = ""
    weights: Mapping[str, float] = dataclasses.field(default_factory=dict)
    makers: Makers = Makers()
    attempts: int = 1
    faults: float = 0.0
    chunk: int = 32

    def __post_init__(self) -> None:
        """Checks ranges."""
        positive("multi_turn", attempts=self.attempts, chunk=self.chunk)
        fraction("multi_turn", faults=self.faults)
        check(
            self.prompts != "" or self.makers.planner == "strokes",
            "multi_turn.prompts: name a file of prompts for another planner than 'strokes'",
        )


@dataclasses.dataclass
class Work:
    """One painting while it is made.

    Attributes:
      item: its number.
      prompt, metadata: what is asked for.
      seed: of its plan and drawings.
      plan: its steps as they should go.
      steps: those that are done.
      failed: why it was given up.
    """

    item: int
    prompt: str
    metadata: Mapping[str, Any]
    seed: int
    plan: tuple[PlannedStep, ...] = ()
    steps: tuple[Step, ...] = ()
    failed: Failed | None = None

    def draw_request(self, attempt: int) -> DrawRequest:
        """Asks for the next step's sketch."""
        step = self.plan[len(self.steps)]
        previous = self.steps[-1].image if self.steps else None
        # The first drawings of all steps share a seed, so that what stays can stay as it is.
        return DrawRequest(step.instruction, step.description, previous, self.seed + attempt)

    def check_request(self, picture: Image) -> CheckRequest:
        """Asks for the verdict on it."""
        plan = self.plan[len(self.steps)].plan
        return CheckRequest(self.prompt, self.metadata, self.steps, plan, picture, self.seed)


class MultiTurn:
    """See the module; `supervise` and `identity` as `engine.Recipe` says."""

    supervise: Supervise = "all"

    def __init__(self, options: Mapping[str, Any], size: int, seed: int):
        """Reads the options of a config.

        Raises:
          ConfigError: an unknown key, a wrong value.
          DataError: a file of prompts that cannot be used.
        """
        self.options = build(MultiTurnOptions, options, "multi_turn")
        self._seed = derived_seed("multi_turn", seed)
        self._size = size
        self._workshop = Workshop(self.options.makers)
        self._prompts: Prompts = open_prompts(
            self.options.prompts, self.options.weights, size, self._seed
        )
        self.identity = {
            "kind": "multi_turn",
            **identity_of(self.options),
            "prompts": self._prompts.fingerprint,
            "size": size,
            "seed": seed,
        }

    def __len__(self) -> int:
        """Number of paintings to be made."""
        return self._size

    def make(self, start: int, stop: int) -> Iterator[Made]:
        """Makes paintings."""
        workshop = self._workshop
        drafter = workshop.drafter(self.options.faults)
        for first in range(start, stop, self.options.chunk):
            works = begin(range(first, min(first + self.options.chunk, stop)), self._prompts,
                          self._seed, workshop)  # fmt: skip
            tally: Counter[str] = Counter()
            while going := [w for w in works if w.failed is None and len(w.steps) < len(w.plan)]:
                paint_step(going, workshop, drafter, self.options.attempts, tally)
            for work in works:
                yield finished(work, tally)
                yield Passed(1)
            yield tally
            yield workshop.spent()


def begin(items: Sequence[int], prompts: Prompts, seed: int, workshop: Workshop) -> list[Work]:
    """Paintings of these items, planned."""
    works = []
    for item in items:
        asked = prompts[item]
        own = derived_seed(seed, item) % 2**31  # servers take no longer seeds
        works.append(Work(item, asked["prompt"], asked, own))
    plans = workshop.planner.plan([PlanRequest(w.prompt, w.metadata, w.seed) for w in works])
    for work, plan in zip(works, plans, strict=True):
        if isinstance(plan, Failed):
            work.failed = plan
        else:
            work.plan = plan
    return works


def paint_step(
    works: Sequence[Work],
    workshop: Workshop,
    drafter: Drafter,
    attempts: int,
    tally: Counter[str],
) -> None:
    """Adds the next step to each painting, or the reason why it was given up."""
    left = list(works)
    for attempt in range(attempts):
        drawn = drafter.draw([work.draw_request(attempt) for work in left])
        tally["pictures/drawn"] += len(drawn)
        able = []
        for work, picture in zip(left, drawn, strict=True):
            if isinstance(picture, Failed):
                work.failed = picture
            else:
                able.append((work, picture))
        verdicts = judged([work.check_request(picture) for work, picture in able], workshop, tally)
        left = []
        for (work, picture), verdict in zip(able, verdicts, strict=True):
            if isinstance(verdict, Failed):
                work.failed = verdict
            elif verdict.ok:
                plan = work.plan[len(work.steps)].plan
                work.steps = (*work.steps, Step(plan, picture, verdict.inspection))
            else:
                tally[f"pictures/rejected: {verdict.kind or verdict.fault}"] += 1
                left.append(work)
    for work in left:
        work.failed = Failed("a step that the judge did not accept")


def judged(
    requests: Sequence[CheckRequest], workshop: Workshop, tally: Counter[str]
) -> list[Verdict | Failed]:
    """The judge's verdicts, counted against those of one who knows, where there is one."""
    verdicts = workshop.judge.check(requests)
    if workshop.reference is not None:
        for said, true in zip(verdicts, workshop.reference.check(requests), strict=True):
            tally.update(compare("judge", said, true))
    return verdicts


def finished(work: Work, tally: Counter[str]) -> Record | Skip:
    """What came of a painting."""
    if work.failed is not None:
        return Skip(work.item, work.failed.reason, work.failed.detail[:200])
    for step in work.plan:
        tally[f"operations/{step.operation}"] += 1
    final = work.steps[-1].image
    return Record(
        work.item,
        Trajectory(work.prompt, steps=work.steps, final_image=final, metadata=work.metadata),
    )
