"""The `strokes` suite: is the painted picture what the prompt asked for, tag by tag.

Two verdicts a picture, both by an oracle that reads the picture back into objects: `geneval` (what
is asked for is there) and `exact` (that, and nothing else). The headline is `exact`; `overall` is
the mean of the tags. A painting that ended without a picture counts as wrong under both.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from process_gen.core.errors import DataError
from process_gen.core.trajectory import Image, Trajectory
from process_gen.evaluation.intervals import CONFIDENCE, Rate, mean_of_rates, wilson
from process_gen.evaluation.process_metrics import summarize
from process_gen.strokes.prompts import TAGS, check
from process_gen.strokes.scene import EASY, World

VERDICTS = ("exact", "geneval")


class Verdict(Protocol):
    """What a judge says of one picture."""

    @property
    def geneval(self) -> bool:
        """What is asked for is there."""
        ...

    @property
    def exact(self) -> bool:
        """What is asked for is there, and nothing else."""
        ...


Judge = Callable[[Image, Mapping[str, Any]], Verdict]


def verdicts(trajectory: Trajectory, judge: Judge, world: World = EASY) -> dict[str, bool] | None:
    """Both verdicts on a painting, for the report; None when it carries no strokes requirement.

    Args:
      trajectory: its `metadata` is the requirement in GenEval's schema, or something else.
      judge: reads ``uint8[H, W, 3]`` against that requirement.
      world: that the requirement is about.
    """
    try:
        requirement = _requirement(trajectory, world=world)
    except DataError:
        return None
    return _verdicts(trajectory, requirement, judge)


def _requirement(
    trajectory: Trajectory, where: str = "painting", world: World = EASY
) -> dict[str, Any]:
    return check({"prompt": trajectory.prompt, **trajectory.metadata}, where, world)


def _verdicts(
    trajectory: Trajectory, requirement: Mapping[str, Any], judge: Judge
) -> dict[str, bool]:
    if trajectory.final_image is None:
        return dict.fromkeys(VERDICTS, False)
    verdict = judge(trajectory.final_image, requirement)
    return {name: bool(getattr(verdict, name)) for name in VERDICTS}


def score(
    trajectories: Sequence[Trajectory],
    judge: Judge,
    confidence: float = CONFIDENCE,
    world: World = EASY,
) -> dict[str, Any]:
    """Scores paintings of the suite's prompts; `world` is what the prompts are about.

    Returns:
      A dict that `json.dumps` accepts: `suite`, `confidence`, `n`; `tags`, in the suite's order,
      those that occur: `n`, `prompts` (distinct ones), `no_image`, and a `Rate` dict for `exact`
      and for `geneval`; `missing_tags`; `overall`: the mean over the tags that occur, a `Rate` dict
      for each verdict; `process`: see `process_metrics.summarize`.

    Raises:
      DataError: no paintings, or one whose metadata is no requirement of `strokes.prompts`.
    """
    if not trajectories:
        raise DataError("no paintings to score")
    by_tag: dict[str, list[tuple[Trajectory, dict[str, bool]]]] = {tag: [] for tag in TAGS}
    for i, trajectory in enumerate(trajectories):
        where = f"painting {i} ({trajectory.prompt[:60]!r})"
        requirement = _requirement(trajectory, where, world)
        row = (trajectory, _verdicts(trajectory, requirement, judge))
        by_tag[requirement["tag"]].append(row)

    tags: dict[str, Any] = {}
    rates: dict[str, list[Rate]] = {name: [] for name in VERDICTS}
    for tag, rows in by_tag.items():
        if not rows:
            continue
        tags[tag] = {
            "n": len(rows),
            "prompts": len({t.prompt for t, _ in rows}),
            "no_image": sum(t.final_image is None for t, _ in rows),
        }
        for name in VERDICTS:
            rate = wilson(sum(judged[name] for _, judged in rows), len(rows), confidence)
            rates[name].append(rate)
            tags[tag][name] = dataclasses.asdict(rate)
    return {
        "suite": "strokes",
        "confidence": confidence,
        "n": len(trajectories),
        "tags": tags,
        "missing_tags": [tag for tag in TAGS if tag not in tags],
        "overall": {
            name: dataclasses.asdict(mean_of_rates(rates[name], confidence)) for name in VERDICTS
        },
        "process": summarize(trajectories),
    }


def best_of(
    trajectories: Sequence[Trajectory],
    judge: Judge,
    world: World = EASY,
    worth: Sequence[Any] | None = None,
) -> dict[str, Any]:
    """Scores the best painting of each prompt.

    Args:
      trajectories: of the sampler, as many of each prompt.
      judge: as of `score`.
      world: that the prompts are about.
      worth: of each painting; of a prompt's the first that is worth most is scored. By default the
        judge itself chooses, and no other choice among these paintings can do better.

    Returns:
      A dict that `json.dumps` accepts: `num` paintings of a prompt, `nfe` (velocity evaluations of
      all of them, a mean over prompts), `tags` and `overall` as `score` gives them, each prompt
      one trial.
    """
    if worth is None:
        judged = [_verdicts(t, _requirement(t, world=world), judge) for t in trajectories]
        worth = [tuple(found[name] for name in VERDICTS) for found in judged]
    by_prompt: dict[int, list[tuple[Any, Trajectory]]] = {}
    for value, trajectory in zip(worth, trajectories, strict=True):
        assert trajectory.sampled is not None
        by_prompt.setdefault(trajectory.sampled.index, []).append((value, trajectory))

    best = [max(own, key=lambda pair: pair[0])[1] for own in by_prompt.values()]
    scores = score(best, judge, world=world)
    evaluations = sum(t.sampled.nfe for t in trajectories if t.sampled is not None)
    return {
        "num": len(trajectories) // len(by_prompt),
        "nfe": evaluations / len(by_prompt),
        "tags": scores["tags"],
        "overall": scores["overall"],
    }


def table(report: Mapping[str, Any]) -> str:
    """The scores as aligned plain text: a line a tag, then `overall`, in percent."""
    interval = f"{100 * report['confidence']:.3g}% interval"
    lines = [f"{'tag':<14} {'n':>5}   exact {interval:<16} geneval {interval}"]
    rows = [
        *report["tags"].items(),
        ("overall", {"n": report["n"], **report["overall"]}),
    ]
    for tag, row in rows:
        cells = "  ".join(_percent(row[name]) for name in VERDICTS)
        lines.append(f"{tag:<14} {row['n']:>5}  {cells}".rstrip())
    if report["missing_tags"]:
        lines.append(f"overall leaves out: {', '.join(report['missing_tags'])} (no prompts)")
    return "\n".join(lines)


def _percent(rate: Mapping[str, Any]) -> str:
    if rate["rate"] is None:
        return f"{'-':>6} {'':<16}"
    return f"{100 * rate['rate']:>6.1f} [{100 * rate['low']:5.1f}, {100 * rate['high']:5.1f}]"
