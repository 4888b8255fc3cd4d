"""Writes supervised paintings of the Strokes world: plan, sketch, inspection, refinement.

`trajectory_at` is a pure function of seed and index, so that a data set needs no storage, and
`outline_at` gives the same texts without painting, so that packs can be planned cheaply.
"""

from __future__ import annotations

import bisect
import dataclasses
import functools
import itertools
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from process_gen.core.errors import ConfigError, DataError
from process_gen.core.settings import build
from process_gen.core.trajectory import Image, Step, Trajectory, plan_text
from process_gen.strokes import faults, phrases, script
from process_gen.strokes.layout import prompt_order, wanted
from process_gen.strokes.prompts import (
    HELD_OUT_TAGS,
    TAGS,
    Requirement,
    held_out,
    phrase,
    sample_requirement,
)
from process_gen.strokes.render import render
from process_gen.strokes.scene import EASY, Scene, World, world_named
from process_gen.strokes.script import Canvas, Story


@functools.cache
def _blank(world: World) -> Image:
    picture = render(Scene((), world))
    picture.flags.writeable = False
    return picture


# Fields that came later. At their defaults they stay out of the name of data, which would change.
_LATER_FIELDS = ("world", "uncolored", "same_color")


@dataclasses.dataclass(frozen=True)
class StrokesOptions:
    """What the paintings are like.

    Attributes:
      weights: relative share of each tag; tags that are not named get none.
      diversify: probability of a detour (a placeholder that is removed or changed later, a change
        of mind, a swap) in a painting of more than one object.
      conflict: probability of one step whose plan contradicts the prompt.
      misalignment: probability of one step that is drawn otherwise than planned.
      inspection: "see_then_judge" lists what is in the sketch first; "verdict" does not.
      max_steps: longest painting; at least 3, in the hard world 4.
      split: probability that a group of three or four is painted over two steps.
      shuffle: probability that groups are not painted in the prompt's order.
      prompts: "train" never meets a held-out prompt; "held_out" is for evaluation.
      world: name of the world, see `scene.WORLDS`.
      uncolored: probability that a group of a `complex` prompt names no colour, as in `position`
        (where a shape alone tells which group is meant). Not among the prompts that are scored.
      same_color: probability that a group whose prompt names no colour takes that of another group,
        as painters do when they are sampled cold.
    """

    weights: Mapping[str, float] = dataclasses.field(
        default_factory=lambda: dict.fromkeys(TAGS, 1.0)
    )
    diversify: float = 0.15
    conflict: float = 0.12
    misalignment: float = 0.15
    inspection: Literal["see_then_judge", "verdict"] = "see_then_judge"
    max_steps: int = 5
    split: float = 0.25
    shuffle: float = 0.25
    prompts: Literal["train", "held_out"] = "train"
    world: str = EASY.name
    uncolored: float = 0.0
    same_color: float = 0.0

    def __repr__(self) -> str:
        """Without later additions that do nothing: it is part of what identifies data."""
        named = {
            f.name: getattr(self, f.name)
            for f in dataclasses.fields(self)
            if f.name not in _LATER_FIELDS or getattr(self, f.name) != f.default
        }
        return f"StrokesOptions({', '.join(f'{k}={v!r}' for k, v in named.items())})"

    def __post_init__(self) -> None:
        """Checks ranges."""
        shares = ("diversify", "conflict", "misalignment", "split", "shuffle")
        for name in (*shares, "uncolored", "same_color"):
            value = getattr(self, name)
            if not 0.0 <= value <= 1.0:
                raise ConfigError(f"strokes.{name} must lie in [0, 1], got {value}")
        if self.conflict + self.misalignment > 1.0:
            raise ConfigError("strokes.conflict + strokes.misalignment exceed 1")
        # A prompt of so many groups takes as many steps.
        least = max(len(counts) for pool in world_named(self.world).groups for counts in pool)
        if self.max_steps < least:
            raise ConfigError(f"strokes.max_steps must be at least {least}, got {self.max_steps}")
        for tag, weight in self.weights.items():
            if tag not in TAGS:
                raise ConfigError(f"strokes.weights: unknown tag {tag!r}; one of {', '.join(TAGS)}")
            if isinstance(weight, bool) or not isinstance(weight, (int, float)) or weight < 0:
                raise ConfigError(f"strokes.weights.{tag} must be a number >= 0, got {weight!r}")
        if not sum(self.weights.values()) > 0:
            raise ConfigError("strokes.weights: all weights are 0")

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> StrokesOptions:
        """Reads the options of a config; an unknown key or a wrong value raises `ConfigError`."""
        return build(cls, mapping, "strokes")


_DEFAULT = StrokesOptions()


def trajectory_at(seed: int, index: int, options: StrokesOptions = _DEFAULT) -> Trajectory:
    """Painting number `index` of the endless set `seed`; the same arguments give the same one."""
    return _at(seed, index, options, paint=True)


def outline_at(seed: int, index: int, options: StrokesOptions = _DEFAULT) -> Trajectory:
    """`trajectory_at` with the same texts, and one shared blank picture wherever one is painted."""
    return _at(seed, index, options, paint=False)


def _at(seed: int, index: int, options: StrokesOptions, paint: bool) -> Trajectory:
    rng = np.random.Generator(np.random.PCG64([seed, index]))
    ends = list(itertools.accumulate(options.weights.values()))
    tag = list(options.weights)[bisect.bisect(ends, rng.random() * ends[-1])]
    requirement = sample_requirement(
        rng,
        tag,
        split=options.prompts,
        world=world_named(options.world),
        uncolored=options.uncolored,
    )
    return _write(rng, requirement, options, paint)


def build_trajectory(
    rng: np.random.Generator,
    requirement: Requirement,
    options: StrokesOptions = _DEFAULT,
) -> Trajectory:
    """One painting for a requirement.

    Raises:
      DataError: the prompt is held out and `options.prompts` is "train", or it cannot be laid out.
    """
    if options.prompts == "train" and requirement["tag"] in HELD_OUT_TAGS:
        if held_out(requirement["prompt"], world_named(options.world)):
            raise DataError(
                f"{requirement['prompt']!r} is held out and must not be trained on; use "
                "prompts='held_out' for evaluation"
            )
    return _write(rng, requirement, options, paint=True)


def _write(
    rng: np.random.Generator, requirement: Requirement, options: StrokesOptions, paint: bool
) -> Trajectory:
    world = world_named(options.world)
    story = script.write(
        rng,
        wanted(requirement),
        diversify=options.diversify,
        split=options.split,
        shuffle=options.shuffle,
        max_steps=options.max_steps,
        world=world,
        same_color=options.same_color,
    )
    fault = None
    chance = rng.random()
    if chance < options.conflict:
        fault = faults.conflict(rng, story)
    elif chance < options.conflict + options.misalignment:
        fault = faults.misalignment(rng, story)
    see = options.inspection == "see_then_judge"
    steps = []
    for i, beat in enumerate(story.beats):
        plan = plan_text(beat.instruction, phrases.describe(list(beat.after.values())))
        if fault is not None and fault.step == i:
            steps.append(_faulty_step(fault, plan, beat.after, see, paint, world))
        else:
            inspection = approve(story, beat.after, see)
            steps.append(Step(plan, _picture(beat.after, paint, world), inspection))
    return Trajectory(
        prompt=requirement["prompt"],
        steps=tuple(steps),
        final_image=steps[-1].image,
        metadata=requirement,
    )


def _picture(canvas: Canvas, paint: bool, world: World) -> Image:
    if not paint:
        return _blank(world)
    return render(Scene(tuple([item for item, _ in canvas.values()]), world))


def _faulty_step(
    fault: faults.Fault, plan: str, right: Canvas, see: bool, paint: bool, world: World
) -> Step:
    seen = phrases.seen([item for item, _ in fault.canvas.values()]) + " " if see else ""
    order = f"<refine>{fault.command}</refine>"
    sketch, refined = _picture(fault.canvas, paint, world), _picture(right, paint, world)
    if fault.instruction is None:
        verdict = f"{phrases.FITS_PROMPT} {phrases.NO_FIT_INSTRUCTION} {fault.why}."
        return Step(plan, sketch, f"{seen}{verdict} {order}", None, refined)
    wrong_plan = plan_text(fault.instruction, phrases.describe(list(fault.canvas.values())))
    verdict = f"{phrases.NO_FIT_PROMPT} {fault.why}."
    return Step(wrong_plan, sketch, f"{seen}{verdict} {order}", plan, refined)


def approve(story: Story, canvas: Canvas, see: bool = True) -> str:
    """The inspection of a step without a fault.

    Args:
      story: its groups, and to which of them each object belongs.
      canvas: what the sketch shows.
      see: whether what is seen is listed first.
    """
    parts = [phrases.seen([item for item, _ in canvas.values()])] if see else []
    parts += [phrases.FITS_PROMPT, phrases.FITS_INSTRUCTION]
    left = story.remaining(canvas)
    missing = [
        phrase(left[i], story.groups[i].color, story.groups[i].shape)
        for i in prompt_order(story.groups)
        if left[i]
    ]
    spare = [phrase(1, item.color, item.shape) for item, holds in canvas.values() if holds]
    if missing:
        parts.append(f"{phrases.NOT_PAINTED} {', '.join(missing)}.")
    elif spare:
        parts.append(f"{phrases.NOT_REMOVED} {', '.join(spare)}.")
    else:
        parts.append(phrases.COMPLETE)
    return " ".join(parts)


# ---- parts of a painting, for training on one thing at a time ------------------------------------


def one_shot(trajectory: Trajectory) -> Trajectory:
    """The bare prompt and the finished picture."""
    return dataclasses.replace(trajectory, mode="one_shot", steps=())


def text_only(trajectory: Trajectory) -> Trajectory:
    """The plans alone, as they should have been: no pictures, no inspections, no faults."""
    steps = tuple(Step(step.refined_plan or step.plan) for step in trajectory.steps)
    return dataclasses.replace(trajectory, steps=steps, final_image=None)


def critique_only(rng: np.random.Generator, trajectory: Trajectory) -> Trajectory:
    """The painting up to the inspection of a random step, which alone is to be learnt."""
    last = int(rng.random() * len(trajectory.steps))
    cut = dataclasses.replace(trajectory.steps[last], refined_plan=None, refined=None)
    steps = (*trajectory.steps[:last], cut)
    return dataclasses.replace(trajectory, steps=steps, final_image=None)
