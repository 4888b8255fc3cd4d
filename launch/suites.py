"""The suites of `launch.evaluate` that an oracle judges, each in a Strokes world."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import flags

from launch import painting
from process_gen.core.configs import Config
from process_gen.core.errors import ConfigError, DataError
from process_gen.core.trajectory import Trajectory
from process_gen.evaluation import choosing, exposure, probes, stepwise
from process_gen.evaluation.choosing import Inspect
from process_gen.evaluation.strokes import best_of, score
from process_gen.report import summary
from process_gen.sampling import prompt_file
from process_gen.strokes import oracle
from process_gen.strokes.plans import StrokesOptions
from process_gen.strokes.prompts import TAGS, check, held_out_requirements
from process_gen.strokes.scene import EASY, HARD, World

PER_TAG = 100


@dataclasses.dataclass(frozen=True)
class Suite:
    """What is painted, and how it is scored.

    Attributes:
      name: what `--suite` calls it.
      world: that prompts and pictures belong to.
      prompts: the command's flags and the painter's settings -> what the painter is given.
      score: what was given, and the paintings in that order -> nested dict of rates.
      show: prints it.
      table: whether the report shows the scores tag by tag.
      choose: paintings, several of each prompt, and who inspects them -> nested dict of rates of
        those that were chosen; None where a prompt is painted once only.
    """

    name: str
    world: World
    prompts: Callable[[flags.FlagValues, Config], Sequence[Any]]
    score: Callable[[Sequence[Any], Sequence[Trajectory]], dict[str, Any]]
    show: Callable[[Mapping[str, Any]], None]
    table: bool = False
    choose: Callable[[Sequence[Trajectory], Inspect], dict[str, Any]] | None = None

    def check(self, values: flags.FlagValues, config: Config) -> None:
        """Makes sure that pictures come out in the world's size, of a painter that knows it.

        Raises:
          ConfigError: `--size` is another one, or the painter has learned other worlds only.
        """
        size = (self.world.size, self.world.size)
        if painting.read_size(values.size) not in (None, size):
            raise ConfigError(
                f"--suite={self.name} is judged at {size[0]}x{size[1]} px, not at {values.size}"
            )
        try:
            check_world(self.name, self.world, config)
        except ConfigError as error:
            raise ConfigError(f"{error}; --suite is one of {', '.join(SUITES)}") from error


def check_world(suite: str, world: World, config: Config) -> None:
    """Makes sure that a painter knows a suite's world.

    Raises:
      ConfigError: it has learned other worlds only.
    """
    learned = sorted({options.get("world", EASY.name) for options in _learned(config)})
    if learned and world.name not in learned:
        raise ConfigError(
            f"--suite={suite} is about the {world.name} Strokes world, and the painter has learned "
            f"from the {' and the '.join(learned)} one only"
        )


def _learned(config: Config) -> list[Mapping[str, Any]]:
    """Options of the Strokes paintings that a painter has learned from; none of stored ones."""
    return [s.options for s in config.data.sources if s.kind.startswith("strokes")]


def held_out_options(config: Config, world: World) -> StrokesOptions:
    """Paintings of held-out prompts, inspected in the way that a painter has learned."""
    ways = {options.get("inspection", StrokesOptions.inspection) for options in _learned(config)}
    way = ways.pop() if len(ways) == 1 else StrokesOptions.inspection
    return StrokesOptions(prompts="held_out", inspection=way, world=world.name)


def requirements(
    path: str | None, num_per_tag: int, seed: int, world: World = EASY
) -> list[Mapping[str, Any]]:
    """The prompts to paint, each with its requirement: those of a file, or held-out ones.

    Raises:
      DataError: a line of the file states no requirement of the world.
    """
    if path is None:
        return [r for tag in TAGS for r in held_out_requirements(tag, num_per_tag, seed, world)]
    found = prompt_file.read_prompts(path)
    checked = []
    for number, item in zip(found.lines, found.items, strict=True):
        where = f"{path}, line {number}"
        if isinstance(item, str):
            raise DataError(
                f"{where}: plain text cannot be scored; wanted a JSON object with 'tag', 'include' "
                "and 'prompt'"
            )
        checked.append(check(item, where, world))
    return checked


def _per_tag(values: flags.FlagValues) -> int:
    return values.num_per_tag or PER_TAG


def _rates(scores: Mapping[str, Any], prefix: str = "") -> dict[str, Mapping[str, Any]]:
    """The rates among scores, without counts and groups."""
    found = {k: v for k, v in scores.items() if isinstance(v, Mapping) and "rate" in v}
    return {f"{prefix}{name}": rate for name, rate in found.items()}


# ---- finished paintings --------------------------------------------------------------------------


def strokes(name: str, world: World) -> Suite:
    """Held-out prompts, or those of a file: is the finished picture what was asked for."""
    judge = functools.partial(oracle.judge, world=world)

    def prompts(values: flags.FlagValues, config: Config) -> list[Mapping[str, Any]]:
        del config
        return requirements(values.prompts, _per_tag(values), values.seed, world)

    def scored(given: Sequence[Any], painted: Sequence[Trajectory]) -> dict[str, Any]:
        found = {**score(painted, judge, world=world), "suite": name}
        if painted[0].mode == "process":
            found["steps"] = stepwise.painting_rates(painted, world)
        if len(painted) > len(given):
            found["best"] = best_of(painted, judge, world)
        return found

    def chosen(painted: Sequence[Trajectory], inspect: Inspect) -> dict[str, Any]:
        opinions = choosing.opinions(painted, inspect, world)
        worth = [choosing.WORTH[opinion] for opinion in opinions]
        counts = {opinion: opinions.count(opinion) for opinion in choosing.WORTH}
        return {**best_of(painted, judge, world, worth), "found": counts}

    return Suite(name, world, prompts, scored, _show_strokes, table=True, choose=chosen)


def _show_strokes(scores: Mapping[str, Any]) -> None:
    summary.show(scores=scores)
    if "steps" in scores:
        steps = scores["steps"]
        summary.show(rates={**_rates(steps), **_rates(steps["inspection"])})
    for name, by in (("best", "the oracle"), ("chosen", "the inspector")):
        if name in scores:
            best = scores[name]
            summary.show(rates=_rates(best["overall"], f"{name} of {best['num']}, "))
            print(f"chosen by {by}; {best['nfe']:.0f} NFE a prompt")


# ---- paintings to go on with ---------------------------------------------------------------------


def _check_goes_on(name: str, values: flags.FlagValues) -> None:
    if painting.read_mode(values) != "process" or values.prompts:
        raise ConfigError(f"--suite={name} takes neither another mode nor --prompts")


def inspection(name: str, world: World) -> Suite:
    """Paintings cut off after a sketch, half as many with a fault as without."""

    def prompts(values: flags.FlagValues, config: Config) -> list[probes.Probe]:
        _check_goes_on(name, values)
        count = _per_tag(values) * len(TAGS)
        options = held_out_options(config, world)
        return probes.make_probes(count, 2 * count, values.seed, options)

    def scored(given: Sequence[Any], painted: Sequence[Trajectory]) -> dict[str, Any]:
        return {"suite": name, **probes.score(given, painted, world)}

    return Suite(name, world, prompts, scored, lambda scores: summary.show(rates=_rates(scores)))


def context(name: str, world: World) -> Suite:
    """Each prompt from its words alone, and from the first steps of a true painting."""

    def prompts(values: flags.FlagValues, config: Config) -> list[exposure.Start]:
        _check_goes_on(name, values)
        options = held_out_options(config, world)
        return exposure.make_starts(_per_tag(values), values.seed, options)

    def scored(given: Sequence[Any], painted: Sequence[Trajectory]) -> dict[str, Any]:
        return {"suite": name, **exposure.score(given, painted, world)}

    return Suite(name, world, prompts, scored, _show_context)


def _show_context(scores: Mapping[str, Any]) -> None:
    kinds = (exposure.OWN, exposure.TRUE, exposure.DIFFERENCE)
    rates = [_rates(scores[kind], f"{kind}: ") for kind in kinds]
    summary.show(rates={name: rate for found in rates for name, rate in found.items()})
    for kind in (exposure.OWN, exposure.TRUE):
        counts = scores[kind]
        print(
            f"{kind}: {counts['judged']} steps judged, {counts['ended']} had ended before, "
            f"{counts['unjudged']} could not be read"
        )


SUITES = {
    suite.name: suite
    for suite in (
        strokes("strokes", EASY),
        inspection("inspection", EASY),
        context("context", EASY),
        strokes("strokes_hard", HARD),
        inspection("inspection_hard", HARD),
        context("context_hard", HARD),
    )
}
