"""A trajectory as a row of panels, one a picture: what the HTML report and the PNG strip both draw.

Each panel carries the text that led to its picture (`before`: a plan, or the command of a
refinement) and the text written about it (`after`: the inspection), cut into pieces that say how
they are to be marked.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Literal

import numpy as np

from process_gen.core.errors import TrajectoryError
from process_gen.core.trajectory import Image, Step, Trajectory, parse_plan, refine_command

Mark = Literal["instruction", "description", "command", "seen", "verdict", "fault", "malformed"]

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
_REFINE_BLOCK = re.compile(r"\s*<refine>.*?</refine>\s*", re.DOTALL)
_FAULT_WORDS = re.compile(r"\b(does not|do not|is not|should)\b")


@dataclasses.dataclass(frozen=True)
class Piece:
    """A run of text and how it is to be marked."""

    mark: Mark
    text: str


@dataclasses.dataclass(frozen=True, eq=False)
class Panel:
    """One picture with its texts.

    Attributes:
      kind: `input`, `sketch`, `refinement`, or `painting` (a picture that no step painted).
      heading: "2 · sketch", "2 · refined", ...
      image: ``uint8[H, W, 3]``; None where none was painted.
      before, after: pieces in reading order.
      replanned: `before` is a plan written anew, not the bare command.
      faulty: an inspection rejected this picture.
      final: this is the finished picture.
    """

    kind: Literal["input", "sketch", "refinement", "painting"]
    heading: str
    image: Image | None
    before: tuple[Piece, ...] = ()
    after: tuple[Piece, ...] = ()
    replanned: bool = False
    faulty: bool = False
    final: bool = False

    @property
    def label(self) -> str:
        """A small heading for `before`."""
        if self.kind in ("input", "painting"):
            return "words"
        if self.kind != "refinement":
            return "plan"
        return "plan again" if self.replanned else "as commanded"

    def describe(self, prompt: str) -> str:
        """A text alternative for the picture."""
        told = next((p.text for p in self.before if p.mark == "instruction"), "")
        return f"{self.heading}: {told}" if told else f"{self.heading} for: {prompt}"


def panels(trajectory: Trajectory) -> list[Panel]:
    """The panels of a trajectory in the order of painting; at least one, perhaps without image."""
    if trajectory.turns:
        return _of_turns(trajectory)
    many = len(trajectory.inputs) > 1
    row = [
        Panel("input", f"input {i + 1}" if many else "input", image)
        for i, image in enumerate(trajectory.inputs)
    ]
    for i, step in enumerate(trajectory.steps):
        row += _of_step(step, i + 1)
    last = row[-1] if trajectory.steps else None
    if trajectory.final_image is not None:
        if last is not None and _equal(last.image, trajectory.final_image):
            row[-1] = dataclasses.replace(last, final=True)
        else:
            row.append(Panel("painting", "painting", trajectory.final_image, final=True))
    if not trajectory.steps and trajectory.final_image is None and trajectory.mode != "understand":
        row.append(Panel("painting", "nothing painted", None))
    return row


def _of_turns(trajectory: Trajectory) -> list[Panel]:
    """A conversation: each picture with the words since the one before it."""
    row: list[Panel] = []
    words: list[Piece] = []
    for turn in trajectory.turns:
        if turn.text is not None:
            words.append(Piece("description" if turn.by_model else "instruction", turn.text))
            continue
        number = len(row) + 1
        what = (
            ("painting", f"{number} · painted") if turn.by_model else ("input", f"{number} · given")
        )
        row.append(Panel(*what, turn.image, tuple(words)))  # type: ignore[arg-type]
        words = []
    if not row:
        return [Panel("painting", "no picture", None, tuple(words))]
    row[-1] = dataclasses.replace(row[-1], after=tuple(words))
    return row


def _of_step(step: Step, number: int) -> list[Panel]:
    inspection, command = _inspection(step.inspection)
    sketch = Panel(
        "sketch",
        f"{number} · sketch",
        step.sketch,
        _plan(step.plan),
        inspection,
        faulty=command is not None,
    )
    if step.refined is None and step.refined_plan is None:
        return [sketch]
    before = (Piece("instruction", command),) if command else ()
    if step.refined_plan is not None:
        # The plan written anew says the same as the command, and the scene besides.
        before = _plan(step.refined_plan)
    heading = f"{number} · refined"
    return [
        sketch,
        Panel("refinement", heading, step.refined, before, replanned=step.refined_plan is not None),
    ]


def _plan(text: str) -> tuple[Piece, ...]:
    parsed = parse_plan(text)
    if parsed is None:
        return (Piece("malformed", text),)
    instruction, description = parsed
    return (Piece("instruction", instruction), Piece("description", description))


def _inspection(text: str | None) -> tuple[tuple[Piece, ...], str | None]:
    """The pieces of an inspection, and its command where it finds a fault."""
    if text is None:
        return (), None
    try:
        command = refine_command(text)
    except TrajectoryError:
        return (Piece("malformed", text),), None
    said = _REFINE_BLOCK.sub(" ", text).strip()
    sentences = [s for s in _SENTENCE_END.split(said) if s]
    marks: list[Mark] = ["seen" if s.lower().startswith("seen:") else "verdict" for s in sentences]
    if command is not None:
        faults = [i for i, s in enumerate(sentences) if _FAULT_WORDS.search(s)]
        for i in faults or range(len(sentences))[-1:]:
            marks[i] = "fault"
    pieces = [Piece(m, s) for m, s in zip(marks, sentences, strict=True)]
    if command is not None:
        pieces.append(Piece("command", command))
    return tuple(pieces), command


def _equal(a: Image | None, b: Image) -> bool:
    return a is not None and np.array_equal(a, b)
