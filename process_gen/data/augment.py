"""Random changes of trajectories while training: few, and only such as keep the texts true.

An augmentation is a function of a generator and a trajectory; `SourceConfig.augment` names those
that a source's trajectories pass through.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from process_gen.core.errors import DataError
from process_gen.core.grammar import Supervise
from process_gen.core.trajectory import Image, Trajectory
from process_gen.data.sources import Source

WORDINGS = "wordings"  # in a trajectory's metadata: the choices for each text of the user

# Words that a mirrored picture may prove wrong: sides, turns, and whatever can be read.
_SIDED = re.compile(
    r"""\b(?:left|right|east|west)(?:\w*|-\w+)\b
      | \b(?:counter|anti)?-?clockwise\b | \bclocks?\b | \bmirror\w* | \bflip\w* | \bprofile\b
      | \b(?:read|say|spell|writ|letter|word|text|sign|label|logo|caption|title|number|digit)\w*
      | \b(?:map|flag|page|book|poster|newspaper|keyboard)s?\b | ["“”«»] """,
    re.IGNORECASE | re.VERBOSE,
)


def names_a_side(trajectory: Trajectory) -> bool:
    """Whether any text of it could become untrue when its pictures are mirrored."""
    texts = [trajectory.prompt, trajectory.text or ""]
    texts += [turn.text or "" for turn in trajectory.turns]
    for step in trajectory.steps:
        texts += [step.plan, step.inspection or "", step.refined_plan or ""]
    return any(_SIDED.search(text) for text in texts)


def flip(rng: np.random.Generator, trajectory: Trajectory) -> Trajectory:
    """Mirrors all pictures, half of the time, where no text names a side or something to read."""
    if rng.random() < 0.5 or names_a_side(trajectory):
        return trajectory
    mirrored: dict[int, Image] = {}  # copies of one picture stay one

    def mirror(image: Image | None) -> Image | None:
        if image is None:
            return None
        return mirrored.setdefault(id(image), np.ascontiguousarray(image[:, ::-1]))

    return dataclasses.replace(
        trajectory,
        inputs=tuple(x for x in map(mirror, trajectory.inputs) if x is not None),
        steps=tuple(
            dataclasses.replace(step, sketch=mirror(step.sketch), refined=mirror(step.refined))
            for step in trajectory.steps
        ),
        turns=tuple(dataclasses.replace(t, image=mirror(t.image)) for t in trajectory.turns),
        final_image=mirror(trajectory.final_image),
    )


def _asked(trajectory: Trajectory) -> list[int]:
    """The turns in which the user says something."""
    return [i for i, turn in enumerate(trajectory.turns) if turn.text and not turn.by_model]


def wordings_of(trajectory: Trajectory) -> Sequence[Sequence[str]]:
    """The choices for each text of the user; empty where the metadata holds none.

    Raises:
      DataError: what it holds is something else, for anybody may have written it.
    """
    wordings = trajectory.metadata.get(WORDINGS)
    if not wordings:
        return ()
    count = len(_asked(trajectory)) or 1
    if (
        not isinstance(wordings, (list, tuple))
        or len(wordings) != count
        or not all(
            isinstance(choices, (list, tuple))
            and choices
            and all(isinstance(text, str) and text.strip() for text in choices)
            for choices in wordings
        )
    ):
        raise DataError(
            f"metadata {WORDINGS!r} must hold a list of texts, none of them empty, for each text "
            f"of the user, of which there are {count}"
        )
    return wordings


def _reworded(trajectory: Trajectory, choose: Callable[[Sequence[str]], str]) -> Trajectory:
    wordings = wordings_of(trajectory)
    if not wordings:
        return trajectory
    words = [choose(choices) for choices in wordings]
    turns = list(trajectory.turns)
    for i, text in zip(_asked(trajectory), words, strict=False):
        turns[i] = dataclasses.replace(turns[i], text=text)
    return dataclasses.replace(trajectory, prompt=words[0], turns=tuple(turns))


def rephrase(rng: np.random.Generator, trajectory: Trajectory) -> Trajectory:
    """Says what the user said in one of the wordings that its metadata holds."""
    return _reworded(trajectory, lambda choices: choices[int(rng.random() * len(choices))])


class Augmentation(NamedTuple):
    """A way to change trajectories.

    Attributes:
      apply: the random change.
      reworded: whether it changes texts, so that the longest choices count for the plan.
      repaints: whether it changes pictures, so that latents encoded ahead are not theirs.
    """

    apply: Callable[[np.random.Generator, Trajectory], Trajectory]
    reworded: bool = False
    repaints: bool = False


AUGMENTATIONS = {
    "flip": Augmentation(flip, repaints=True),
    "rephrase": Augmentation(rephrase, reworded=True),
}


class Augmented:
    """A source whose trajectories change at random when they are drawn."""

    def __init__(self, source: Source, names: Sequence[str], tokens: Callable[[str], int]):
        """Wraps a source.

        Args:
          source: of the trajectories as they are.
          names: of `AUGMENTATIONS`, in any order.
          tokens: length of a text, for the longest choice.

        Raises:
          DataError: an unknown name.
        """
        if unknown := sorted(set(names) - set(AUGMENTATIONS)):
            known = ", ".join(AUGMENTATIONS)
            raise DataError(f"unknown augmentation {unknown[0]!r}; known: {known}")
        self._source, self._tokens = source, tokens
        # Words before pictures: what is done to pictures depends on what the texts say in the end.
        self._changes = sorted((AUGMENTATIONS[name] for name in names), key=lambda x: x.repaints)
        self.fingerprint = f"{source.fingerprint}+{'+'.join(names)}"
        self.fresh = source.fresh
        self.supervise: Supervise = source.supervise
        self.repaints = any(change.repaints for change in self._changes)

    def __len__(self) -> int:
        """Trajectories an epoch."""
        return len(self._source)

    def __getitem__(self, index: int) -> Trajectory:
        """The trajectory as it is."""
        return self._source[index]

    def outline(self, index: int) -> Trajectory:
        """Its texts, the longest of each choice, and its picture sizes."""
        outline = self._source.outline(index)
        if any(change.reworded for change in self._changes):
            outline = _reworded(outline, lambda choices: max(choices, key=self._tokens))
        return outline

    def drawn(self, index: int, rng: np.random.Generator) -> Trajectory:
        """The trajectory, changed."""
        trajectory = self._source[index]
        for change in self._changes:
            trajectory = change.apply(rng, trajectory)
        return trajectory
