"""The recipe "alignment": drawings that show what was planned, and others that do not.

A painting is begun as in "multi_turn" and cut after a random step. With probability `negatives`
that step is drawn carelessly; the judge says what came of it. A fault is followed by its repair,
the picture as it was planned, which alone is a flow target.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from process_gen.core.checks import check, fraction, positive
from process_gen.core.grammar import Supervise
from process_gen.core.settings import build
from process_gen.core.trajectory import Image, Step, Trajectory, parse_plan
from process_gen.curation.engine import Made, Passed, Record, Skip
from process_gen.curation.makers import Makers, Workshop, identity_of
from process_gen.curation.multi_turn import Work, begin, judged, paint_step
from process_gen.curation.prompts import Prompts, open_prompts
from process_gen.curation.protocols import DrawRequest, Failed, Verdict
from process_gen.data.sources import derived_seed


@dataclasses.dataclass(frozen=True)
class AlignmentOptions:
    """Settings of the recipe.

    Attributes:
      prompts, weights, makers, chunk: see `multi_turn.MultiTurnOptions`.
      negatives: share of steps that the embedded drafter draws carelessly. A remote drafter makes
        its own faults.
      repair: whether a fault is followed by the repaired picture.
    """

    prompts: str = ""
    weights: Mapping[str, float] = dataclasses.field(default_factory=dict)
    makers: Makers = Makers()
    negatives: float = 2 / 3
    repair: bool = True
    chunk: int = 32

    def __post_init__(self) -> None:
        """Checks ranges."""
        positive("alignment", chunk=self.chunk)
        fraction("alignment", negatives=self.negatives)
        check(
            self.prompts != "" or self.makers.planner == "strokes",
            "alignment.prompts: name a file of prompts for another planner than 'strokes'",
        )


class Alignment:
    """See the module; `supervise` and `identity` as `engine.Recipe` says."""

    supervise: Supervise = "last_repair"

    def __init__(self, options: Mapping[str, Any], size: int, seed: int):
        """Reads the options of a config.

        Raises:
          ConfigError: an unknown key, a wrong value.
          DataError: a file of prompts that cannot be used.
        """
        self.options = build(AlignmentOptions, options, "alignment")
        self._seed = derived_seed("alignment", seed)
        self._size = size
        self._workshop = Workshop(self.options.makers)
        self._prompts: Prompts = open_prompts(
            self.options.prompts, self.options.weights, size, self._seed
        )
        self.identity = {
            "kind": "alignment",
            **identity_of(self.options),
            "prompts": self._prompts.fingerprint,
            "size": size,
            "seed": seed,
        }

    def __len__(self) -> int:
        """Number of drawings to be judged."""
        return self._size

    def make(self, start: int, stop: int) -> Iterator[Made]:
        """Makes critiques."""
        workshop = self._workshop
        for first in range(start, stop, self.options.chunk):
            items = range(first, min(first + self.options.chunk, stop))
            tally: Counter[str] = Counter()
            works = begin(items, self._prompts, self._seed, workshop)
            cuts = self._paint_up_to_the_cut(works, workshop, tally)
            yield from self._inspect(works, cuts, workshop, tally)
            yield tally
            yield workshop.spent()

    def _paint_up_to_the_cut(
        self, works: Sequence[Work], workshop: Workshop, tally: Counter[str]
    ) -> dict[int, bool]:
        """Paints the steps before the cut; whether the next one is drawn carelessly, by item."""
        careless, last = {}, {}
        for work in works:
            rng = np.random.default_rng([work.seed, 1])
            last[work.item] = int(rng.random() * len(work.plan))
            careless[work.item] = bool(rng.random() < self.options.negatives)
        drafter = workshop.drafter()
        while going := [w for w in works if w.failed is None and len(w.steps) < last[w.item]]:
            paint_step(going, workshop, drafter, 1, tally)
        return careless

    def _inspect(
        self,
        works: Sequence[Work],
        careless: Mapping[int, bool],
        workshop: Workshop,
        tally: Counter[str],
    ) -> Iterator[Made]:
        pictures: dict[int, Image | Failed] = {}
        for faults in (0.0, 1.0):
            group = [w for w in works if w.failed is None and careless[w.item] == bool(faults)]
            drawn = workshop.drafter(faults).draw([work.draw_request(0) for work in group])
            pictures.update(zip((work.item for work in group), drawn, strict=True))
        able = []
        for work in works:
            picture = pictures.get(work.item)
            if isinstance(picture, Failed):
                work.failed = picture
            elif picture is not None:
                able.append((work, picture))
        verdicts = judged([work.check_request(picture) for work, picture in able], workshop, tally)
        steps: dict[int, Step] = {}
        faulty = []
        for (work, picture), verdict in zip(able, verdicts, strict=True):
            if isinstance(verdict, Failed):
                work.failed = verdict
                continue
            tally[f"sketches/{'right' if verdict.ok else verdict.kind or verdict.fault}"] += 1
            plan = work.plan[len(work.steps)].plan
            steps[work.item] = Step(plan, picture, verdict.inspection)
            if not verdict.ok and self.options.repair:
                faulty.append((work, picture, verdict))
        for (work, _, verdict), refined in zip(faulty, repaired(faulty, workshop), strict=True):
            if isinstance(refined, Failed):
                work.failed = refined
            else:
                steps[work.item] = dataclasses.replace(
                    steps[work.item], refined_plan=verdict.corrected_plan, refined=refined
                )
        for work in works:
            if work.failed is not None:
                yield Skip(work.item, work.failed.reason, work.failed.detail[:200])
            else:
                yield Record(work.item, cut(work, steps[work.item]))
            yield Passed(1)


def cut(work: Work, step: Step) -> Trajectory:
    """A painting that ends with `step`, whatever is still to be painted."""
    return Trajectory(work.prompt, steps=(*work.steps, step), metadata=work.metadata)


def repaired(
    faulty: Sequence[tuple[Work, Image, Verdict]], workshop: Workshop
) -> list[Image | Failed]:
    """The pictures as they should be; a remote drafter's are judged again."""
    requests = []
    for work, picture, verdict in faulty:
        plan = verdict.corrected_plan or work.plan[len(work.steps)].plan
        description = (parse_plan(plan) or ("", ""))[1]
        requests.append(DrawRequest(verdict.command or "", description, picture, work.seed))
    drawn = workshop.drafter().draw(requests)
    if workshop.exact:
        return drawn
    able = [i for i, picture in enumerate(drawn) if not isinstance(picture, Failed)]
    checks = []
    for i in able:
        work, _, verdict = faulty[i]
        again = work.check_request(drawn[i])  # type: ignore[arg-type]
        plan = verdict.corrected_plan or again.plan
        checks.append(dataclasses.replace(again, plan=plan))
    for i, verdict in zip(able, workshop.judge.check(checks), strict=True):
        if isinstance(verdict, Failed):
            drawn[i] = verdict
        elif not verdict.ok:
            drawn[i] = Failed("a repair that the judge did not accept")
    return drawn
