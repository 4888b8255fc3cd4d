"""The Strokes world as a planner and a drafter, and its prompts. Loads no JAX."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import numpy as np

from process_gen.core.errors import DataError
from process_gen.core.trajectory import Image
from process_gen.curation.protocols import (
    DrawRequest,
    Failed,
    Operation,
    PlannedStep,
    PlanRequest,
)
from process_gen.curation.strokes_conflicts import Entry, read_state
from process_gen.strokes import faults, phrases, script
from process_gen.strokes.layout import draw_object, wanted
from process_gen.strokes.plans import StrokesOptions
from process_gen.strokes.prompts import (
    Requirement,
    held_out,
    parse,
    sample_requirement,
)
from process_gen.strokes.render import PATCH, coverage, render
from process_gen.strokes.scene import (
    BACKGROUND,
    COLORS,
    JITTERS,
    RADII,
    SIZE,
    Scene,
    SceneObject,
)

_OPERATIONS: Mapping[str, Operation] = {
    "add": "add",
    "change": "modify",
    "swap": "swap",
    "remove": "remove",
}


class StrokesPrompts:
    """Prompts of the Strokes world by number; none is held out.

    Args:
      weights: relative share of each tag.
      size: how many.
      seed: of the set.
      uncolored: see `strokes.prompts.sample_requirement`.
    """

    def __init__(self, weights: Mapping[str, float], size: int, seed: int, uncolored: float = 0.0):
        self._tags = list(weights)
        shares = np.array([float(weight) for weight in weights.values()])
        self._ends = np.cumsum(shares / shares.sum())
        self._size, self._seed, self._uncolored = size, seed, uncolored
        # In their order, which decides what an index means.
        self.fingerprint = f"strokes:{seed}:{list(weights.items())}"
        if uncolored:
            self.fingerprint += f":{uncolored}"

    def __getitem__(self, index: int) -> Requirement:
        """A requirement in GenEval's schema."""
        if not 0 <= index < self._size:
            raise DataError(f"no prompt {index}, there are {self._size}")
        rng = np.random.default_rng([self._seed, index, 0x9A])
        place = int(np.searchsorted(self._ends, rng.random(), side="right"))
        tag = self._tags[min(place, len(self._tags) - 1)]
        return sample_requirement(rng, tag, split="train", uncolored=self._uncolored)


class StrokesPlanner:
    """Plans by `strokes.script`: growing scenes, with detours that change, swap and remove.

    Args:
      options: of which diversify, split, shuffle and max_steps are used.
    """

    def __init__(self, options: StrokesOptions):
        self._options = options

    def plan(self, requests: Sequence[PlanRequest]) -> list[tuple[PlannedStep, ...] | Failed]:
        """The steps of each request; prompts that are held out are refused."""
        return [self._plan(request) for request in requests]

    def _plan(self, request: PlanRequest) -> tuple[PlannedStep, ...] | Failed:
        requirement = parse(request.prompt)
        if requirement is None:
            return Failed("a prompt that is not of the Strokes world", request.prompt)
        if held_out(request.prompt):
            return Failed("a prompt that is held out", request.prompt)
        options = self._options
        story = script.write(
            np.random.default_rng(request.seed),
            wanted(requirement),
            diversify=options.diversify,
            split=options.split,
            shuffle=options.shuffle,
            max_steps=options.max_steps,
        )
        return tuple(
            PlannedStep(
                beat.instruction,
                phrases.describe(list(beat.after.values())),
                _OPERATIONS[beat.op],
            )
            for beat in story.beats
        )


class StrokesDrafter:
    """Draws by `strokes.render` what the description of a step says.

    Objects that the previous picture shows already keep their place and size to the pixel, if it
    was rendered, and as nearly as possible if a model painted it; new ones are drawn from the seed.

    Args:
      faults: probability that a picture shows something else than described, in one thing.
    """

    def __init__(self, faults: float = 0.0):
        self._faults = faults

    def draw(self, requests: Sequence[DrawRequest]) -> list[Image | Failed]:
        """``uint8[32, 32, 3]`` for each request."""
        return [self._draw(request) for request in requests]

    def _draw(self, request: DrawRequest) -> Image | Failed:
        state = read_state(request.description)
        if state is None:
            return Failed("a description that cannot be read", request.description)
        rng = np.random.default_rng([request.seed, len(request.description)])
        if self._faults and rng.random() < self._faults:
            state = misdraw(rng, state, request.instruction)
        objects = [
            placed(item, request.previous) or _fresh(item, request.seed) for item, _ in state
        ]
        return render(Scene(tuple(objects)))


def misdraw(rng: np.random.Generator, state: Sequence[Entry], instruction: str) -> list[Entry]:
    """A state with one fault of `strokes.faults`, as a careless painter would have it."""
    canvas = dict(enumerate(state))
    words = f" {instruction} "
    # Of the objects, the step's own are those in the places that its instruction names.
    own = tuple(n for n, (item, _) in canvas.items() if f" {item.place} " in words)
    before = {n: entry for n, entry in canvas.items() if n not in own}
    beat = script.Beat("add", own or tuple(canvas), instruction, before, canvas)
    fault = faults.misalignment(rng, script.Story([], {}, [beat]))
    return list(fault.canvas.values()) if fault is not None else list(state)


def _fresh(item: SceneObject, seed: int) -> SceneObject:
    rng = np.random.default_rng([seed, item.cell])
    return draw_object(rng, item.shape, item.color, item.cell)


_INNER = slice(1, PATCH - 1)  # the outermost ring of a patch may show a neighbour's point


@functools.cache
def _sprites(shape: str) -> tuple[np.ndarray, list[tuple[float, float, float]]]:
    """Coverage float32[n, 100] of every jitter and radius, and (dx, dy, radius) of each."""
    meanings = [(dx, dy, r) for r in RADII for dx in JITTERS for dy in JITTERS]
    sprites = [coverage(shape, r, dx, dy)[_INNER, _INNER].ravel() for dx, dy, r in meanings]
    return np.stack(sprites), meanings


# Mean squared distance from the picture, in sRGB steps, up to which it shows the object at all.
_LIKE = 30.0**2


def placed(item: SceneObject, picture: Image | None) -> SceneObject | None:
    """The object with the jitter and radius that a picture shows; None if it shows no such one.

    Args:
      item: in the middle of its cell.
      picture: ``uint8[32, 32, 3]``.
    """
    if picture is None or picture.shape != (SIZE, SIZE, 3):
        return None
    top, left = 10 * item.row, 10 * item.col
    patch = picture[top : top + PATCH, left : left + PATCH][_INNER, _INNER].reshape(-1, 3)
    background = np.array(BACKGROUND, np.float32)
    line = np.array(COLORS[item.color], np.float32) - background
    shown = patch - background
    sprites, meanings = _sprites(item.shape)
    # |shown - sprite * line|^2, summed over pixels and channels.
    along = sprites @ (shown @ line)
    errors = (shown * shown).sum() - 2 * along + (sprites * sprites).sum(1) * (line @ line)
    errors /= shown.size
    best = int(errors.argmin())
    if errors[best] > _LIKE:
        return None
    dx, dy, radius = meanings[best]
    return dataclasses.replace(item, dx=dx, dy=dy, radius=radius)
