"""The recipes "conflict", "own_sketches" and, with a checkpoint, "alignment": a model's own faults.

A checkpoint paints training prompts; a judge goes through the steps of each painting up to the
first fault, or the first false alarm of the painter. Each painting gives at most one critique: cut
after that step, with the judge's words in place of the painter's. Faulty sketches are context, as
everywhere; what is learnt is the last inspection and what it leads to: the re-emitted plan, and the
picture as it should have been.

    subset       faulty sketches that are kept             right ones that are kept
    conflict     the plan contradicts the prompt           `right_per_fault` for each faulty one,
    alignment    the plan is right, the picture is not     first those that the painter itself
    both         either                                    found fault with

A painting depends on the seed, its shard and its place in it, and how many right ones are kept is
settled shard by shard: another number of shards gives other data.
"""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from process_gen.core.checks import check
from process_gen.core.grammar import Supervise
from process_gen.core.settings import build
from process_gen.core.trajectory import Step, Trajectory, parse_plan
from process_gen.curation.engine import Made, Passed, Record, Skip
from process_gen.curation.makers import Makers, Workshop, identity_of
from process_gen.curation.model_judge import OwnJudge, inspection_of
from process_gen.curation.prompts import Prompts, open_prompts
from process_gen.curation.protocols import CheckRequest, DrawRequest, Failed, Judge, Verdict
from process_gen.curation.tallies import compare
from process_gen.data.sources import derived_seed

Subset = Literal["conflict", "alignment", "both"]
_PAINTER = ("step", "weights", "weights_sha256")  # what its meta says of who it is


@dataclasses.dataclass(frozen=True)
class SelfSamplingOptions:
    """Settings of the recipes.

    Attributes:
      checkpoint, step, weights: see `sampling.painter.load`; by default the painter that comes with
        the package.
      prompts: a file of prompts; empty for those of the Strokes world. None may be held out.
      tags: weights of the Strokes world's tags; empty for all alike.
      uncolored: of their `complex` prompts, see `strokes.prompts.sample_requirement`.
      settings: of the sampler, instead of the run's own; paintings take them in turn.
      makers: the judge, and the drafter of repairs.
      believe: the painter's own inspections are believed instead; for measuring them.
      right_per_fault: right sketches kept for each faulty one.
      repair: whether the picture as it should have been follows.
    """

    checkpoint: str = ""
    step: str = "latest"
    weights: Literal["ema", "params"] = "ema"
    prompts: str = ""
    tags: Mapping[str, float] = dataclasses.field(default_factory=dict)
    uncolored: float = 0.0
    settings: tuple[Mapping[str, Any], ...] = ({},)
    makers: Makers = Makers()
    believe: bool = False
    right_per_fault: float = 1.0
    repair: bool = True

    def __post_init__(self) -> None:
        """Checks ranges."""
        check(len(self.settings) > 0, "settings is empty; ({},) samples as the run says")
        check(self.right_per_fault >= 0, "right_per_fault must be >= 0")
        check(0 <= self.uncolored <= 1, "uncolored must be between 0 and 1")
        check(not (self.prompts and self.uncolored), "uncolored is not for a file of prompts")


@functools.lru_cache(maxsize=2)
def load_painter(checkpoint: str, step: str, weights: str) -> Any:
    """A painter; the same one for the same arguments."""
    from process_gen.sampling.painter import load

    return load(checkpoint, weights=weights, step=int(step) if step.isdecimal() else step)


class _Cut(NamedTuple):
    """A painting cut after the step that decides about it.

    Attributes:
      item: its number.
      painting: all of it.
      earlier: the steps before, with the judge's inspections.
      step: as it was painted.
      verdict: on it.
      alarm: whether the painter itself found fault with it.
    """

    item: int
    painting: Trajectory
    earlier: tuple[Step, ...]
    step: Step
    verdict: Verdict
    alarm: bool


class SelfSampling:
    """See the module; `supervise` and `identity` as `engine.Recipe` says."""

    supervise: Supervise = "last_repair"

    def __init__(self, subset: Subset, options: Mapping[str, Any], size: int, seed: int):
        """Reads the options of a config, and what the checkpoint says of itself.

        Raises:
          ConfigError: an unknown key, a wrong value.
          CheckpointError: nothing usable is there.
          DataError: a file of prompts that cannot be used.
        """
        self.options = build(SelfSamplingOptions, options, "self_sampling")
        self._subset: Subset = subset
        self._seed = derived_seed("self_sampling", seed)
        self._size = size
        self._workshop = Workshop(self.options.makers)
        self._prompts: Prompts = open_prompts(
            self.options.prompts, self.options.tags, size, self._seed, self.options.uncolored
        )
        painter = self._painter
        self.identity = {
            "kind": f"self_sampling:{subset}",
            **identity_of(self.options),
            "prompts": self._prompts.fingerprint,
            "size": size,
            "seed": seed,
            "painted_by": {
                **{key: painter.meta[key] for key in _PAINTER if key in painter.meta},
                "fingerprint": painter.fingerprint,
            },
        }

    @property
    def _painter(self) -> Any:
        options = self.options
        return load_painter(options.checkpoint, options.step, options.weights)

    def __len__(self) -> int:
        """Number of paintings."""
        return self._size

    def make(self, start: int, stop: int) -> Iterator[Made]:
        """Paints, judges, and keeps as many right sketches as the faulty ones call for."""
        workshop = self._workshop
        paintings: dict[int, Trajectory] = {}
        for item, painting in self._paint(start, stop):
            paintings[item] = painting
            yield Passed(1)
        tally = Counter(
            {
                "paintings": len(paintings),
                "paintings/pictures": sum(len(p.images) for p in paintings.values()),
            }
        )
        cuts: list[_Cut] = []
        for made in self._judge(sorted(paintings.items()), workshop, tally):
            if isinstance(made, Skip):
                yield made
            else:
                cuts.append(made)
        yield from self._records(self._balanced(cuts, tally), workshop)
        yield tally
        yield workshop.spent()

    def _paint(self, start: int, stop: int) -> Iterator[tuple[int, Trajectory]]:
        for number, settings in enumerate(self.options.settings):
            items = [i for i in range(start, stop) if i % len(self.options.settings) == number]
            prompts = [self._prompts[i] for i in items]
            seed = derived_seed(self._seed, start, number) % 2**32
            for painting in self._painter.stream(prompts, seed=seed, **settings):
                yield items[painting.sampled.index], painting

    def _judge(
        self,
        paintings: Sequence[tuple[int, Trajectory]],
        workshop: Workshop,
        tally: Counter[str],
    ) -> Iterator[_Cut | Skip]:
        judge: Judge = OwnJudge() if self.options.believe else workshop.judge
        reference = workshop.reference
        if self.options.believe and reference is None and workshop.exact:
            reference = workshop.judge
        requests = {item: _requests(item, painting) for item, painting in paintings}
        flat = [request for _, own in sorted(requests.items()) for request in own]
        verdicts = iter(judge.check(flat))
        truths = iter(reference.check(flat)) if reference is not None else None
        for item, painting in paintings:
            if painting.finish_reason != "finished":
                tally[f"paintings/{painting.finish_reason}"] += 1
            own = requests[item]
            said = [next(verdicts) for _ in own]
            true = [next(truths) for _ in own] if truths is not None else None
            yield from self._cuts(item, painting, own, said, true, tally)

    def _cuts(
        self,
        item: int,
        painting: Trajectory,
        requests: Sequence[CheckRequest],
        verdicts: Sequence[Verdict | Failed],
        truths: Sequence[Verdict | Failed] | None,
        tally: Counter[str],
    ) -> Iterator[_Cut | Skip]:
        """At most one cut of a painting, and a skip where the judge did not know."""
        right: list[_Cut] = []
        earlier: tuple[Step, ...] = ()
        setting = f"setting {item % len(self.options.settings)}"
        tally[f"{setting}/paintings"] += 1
        for number, (request, verdict) in enumerate(zip(requests, verdicts, strict=True)):
            step = painting.steps[number]
            (own,) = OwnJudge().check([request])
            if truths is not None:
                tally.update(compare("judge", verdict, truths[number]))
            tally.update(compare("painter", own, verdict if truths is None else truths[number]))
            if isinstance(verdict, Failed):
                tally[f"sketches/not said: {verdict.reason}"] += 1
                tally[f"{setting}/not said"] += 1
                yield Skip(item, verdict.reason, verdict.detail[:200])
                break
            kind = f"{verdict.fault}, {verdict.kind}" if verdict.fault else "right"
            tally[f"sketches/{kind}"] += 1
            tally[f"{setting}/faulty"] += not verdict.ok
            alarm = isinstance(own, Verdict) and not own.ok
            here = _Cut(item, painting, earlier, step, verdict, alarm)
            if alarm or not verdict.ok:
                yield here
                return
            right.append(here)
            earlier = (*earlier, Step(step.plan, step.sketch, verdict.inspection))
        if right:
            rng = np.random.default_rng([self._seed % 2**32, item, 1])
            yield right[int(rng.random() * len(right))]

    def _balanced(self, cuts: Sequence[_Cut], tally: Counter[str]) -> list[_Cut]:
        """All faulty sketches of the subset, and the right ones that are kept, by item."""
        fault = {"conflict": "conflict", "alignment": "misalignment"}.get(self._subset)
        faulty = [c for c in cuts if not c.verdict.ok and fault in (None, c.verdict.fault)]
        rng = np.random.default_rng([self._seed % 2**32, cuts[0].item if cuts else 0, 2])
        right = [cut for cut in cuts if cut.verdict.ok]
        right = [right[i] for i in rng.permutation(len(right)).tolist()]
        right.sort(key=lambda cut: not cut.alarm)
        kept = right[: round(self.options.right_per_fault * len(faulty))]
        tally["kept/faulty"] += len(faulty)
        tally["kept/right"] += len(kept)
        tally["kept/right, painter found fault"] += sum(cut.alarm for cut in kept)
        return sorted([*faulty, *kept], key=lambda cut: cut.item)

    def _records(self, cuts: Sequence[_Cut], workshop: Workshop) -> Iterator[Record | Skip]:
        broken = [c for c in cuts if not c.verdict.ok and self.options.repair]
        requests = []
        for c in broken:
            _, description = parse_plan(c.verdict.corrected_plan or c.step.plan) or ("", "")
            command = c.verdict.command or ""
            requests.append(DrawRequest(command, description, c.step.sketch, c.item))
        repairs = workshop.drafter().draw(requests) if requests else []
        refined = {c.item: picture for c, picture in zip(broken, repairs, strict=True)}
        for c in cuts:
            picture = refined.get(c.item)
            if isinstance(picture, Failed):
                yield Skip(c.item, picture.reason, picture.detail[:200])
                continue
            step = Step(
                c.step.plan,
                c.step.sketch,
                c.verdict.inspection,
                c.verdict.corrected_plan if picture is not None else None,
                picture,
            )
            said = {"fault": c.verdict.fault, "kind": c.verdict.kind, "painter_objected": c.alarm}
            yield Record(
                c.item,
                Trajectory(
                    c.painting.prompt,
                    steps=(*c.earlier, step),
                    metadata={**c.painting.metadata, "critique": said},
                ),
            )


def _requests(item: int, painting: Trajectory) -> list[CheckRequest]:
    """The steps that can be judged, from the first on."""
    requests = []
    for number, step in enumerate(painting.steps):
        if step.sketch is None or step.inspection is None or parse_plan(step.plan) is None:
            break
        requests.append(
            CheckRequest(
                painting.prompt,
                painting.metadata,
                painting.steps[:number],
                step.plan,
                step.sketch,
                derived_seed(item, number) % 2**31,
                inspection_of(painting, number),
                step.refined_plan,
            )
        )
    return requests
