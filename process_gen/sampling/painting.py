"""One painting on its way: the walk over the grammar's table, on the host, without a device.

A `Painting` is told what was written and painted, and says what comes next. Whatever the model
writes, it ends with a `finish_reason`; it never raises.
"""

from __future__ import annotations

import collections
import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from process_gen.core.errors import DataError
from process_gen.core.grammar import (
    TRANSITIONS,
    Kind,
    Next,
    Part,
    check_text,
    legal_next,
    prompt_text,
)
from process_gen.core.trajectory import MAX_TEXT, Image, Sampled, Step, Trajectory
from process_gen.data.tokenizer import Tokenizer

DECISIONS = (Next.TEXT, Next.IMAGE, Next.END)


def choose(part: Part, logits: Sequence[float]) -> Next | None:
    """The likeliest legal decision after a part; None where nothing may follow.

    Args:
      part: what was just written or painted.
      logits: of `DECISIONS`, at the part's closing token.
    """
    legal = legal_next(part)
    return max(legal, key=lambda following: logits[DECISIONS.index(following)], default=None)


# A part and its content: the words of a text, or a picture.
Given = tuple[Part, str | Image]


def given_parts(trajectory: Trajectory) -> tuple[Given, ...]:
    """What a painting that goes on from `trajectory` is handed, in the order of the grammar.

    The last step may end anywhere: after its plan, its sketch, its inspection, and so on. What is
    missing there is left to the model.

    Raises:
      DataError: an earlier step lacks something, so that the parts do not follow one another.
    """
    parts: list[Given] = []
    for step in trajectory.steps:
        inspected = Part.FAULT if step.rejected else Part.INSPECTION
        named = [
            (Part.PLAN, step.plan),
            (Part.SKETCH, step.sketch),
            (inspected, step.inspection),
            (Part.REFINED_PLAN, step.refined_plan),
            (Part.REFINED, step.refined),
        ]
        parts += [(part, content) for part, content in named if content is not None]
    before = Part.PROMPT
    for number, (part, _) in enumerate(parts):
        follows = Part.INSPECTION if part is Part.FAULT else part
        if follows not in TRANSITIONS[before].values():
            raise DataError(
                f"cannot go on from {trajectory.prompt[:60]!r}: its part {number} is a {part.value}"
                f" after a {before.value}; only the last step may be incomplete"
            )
        before = part
    return tuple(parts)


@dataclasses.dataclass(frozen=True)
class Request:
    """One painting to be made.

    Attributes:
      prompt: the user's words.
      metadata: what came with them, handed through.
      index: place of the prompt in the request.
      sample: number among the paintings of this prompt.
      given: what is written and painted already, see `given_parts`.
    """

    prompt: str
    metadata: Mapping[str, Any]
    index: int
    sample: int
    given: tuple[Given, ...] = ()


class Moment(NamedTuple):
    """Where a picture was painted: what it takes to paint it there again.

    Attributes:
      order, position: of its noised copy.
      slot: see `Painting`.
      segment: its number, of which its noise is drawn.
    """

    order: int
    position: int
    slot: tuple[int, int]
    segment: int


@dataclasses.dataclass
class Painting:
    """The state of one row of the sampler.

    Attributes:
      prompt, mode, metadata, index, sample, seed: what was asked for.
      max_images: pictures after which it is closed.
      part: what is being written or painted now; None once it is closed.
      finish_reason: why it was closed.
      order, position: the next free ones.
      length: slots of the row's cache in use.
      slot: order and position reserved just before the current plan (or the prompt), which the
        text-dropped guidance branch takes.
      spans: cache slots ``[start, stop)`` of the copies of the picture last painted.
      segments: segments begun so far; keys of random numbers count them.
      inputs: pictures given with the prompt.
      written, following: tokens of the text under way that lie in the cache, and the next one; None
        before the first.
      moment: order, position, slot and segment of the picture last painted.
      given, decided: contents that are read instead of written or painted, the next one first,
        and the decisions that lead to them.
    """

    prompt: str
    mode: str
    metadata: Mapping[str, Any]
    index: int
    sample: int
    seed: int
    max_images: int
    part: Part | None = None
    finish_reason: str | None = None
    order: int = 0
    position: int = 0
    length: int = 0
    slot: tuple[int, int] = (0, 0)
    spans: dict[Kind, tuple[int, int]] = dataclasses.field(default_factory=dict)
    segments: int = 0
    steps: list[Step] = dataclasses.field(default_factory=list)
    picture: Image | None = None
    text: str | None = None
    nfe: int = 0
    started: float = 0.0
    inputs: tuple[Image, ...] = ()
    written: list[int] = dataclasses.field(default_factory=list)
    following: int | None = None
    moment: Moment | None = None
    given: collections.deque[str | Image] = dataclasses.field(default_factory=collections.deque)
    decided: collections.deque[Next] = dataclasses.field(default_factory=collections.deque)

    @classmethod
    def of(
        cls,
        request: Request,
        mode: str,
        seed: int,
        max_images: int,
        inputs: tuple[Image, ...] = (),
    ) -> Painting:
        """A painting that begins now."""
        return cls(
            prompt=request.prompt,
            mode=mode,
            metadata=request.metadata,
            index=request.index,
            sample=request.sample,
            seed=seed,
            max_images=max_images,
            started=time.monotonic(),
            inputs=inputs,
            given=collections.deque(content for _, content in request.given),
            decided=collections.deque(
                Next.IMAGE if part in _PICTURES else Next.TEXT for part, _ in request.given
            ),
        )

    def __post_init__(self) -> None:
        """Begins with the prompt."""
        self.part = Part.PROMPT if self.mode == "process" else Part.BARE_PROMPT

    @property
    def wants(self) -> Next:
        """The queue it waits in: TEXT, IMAGE, or END once it is closed."""
        if self.part is None:
            return Next.END
        return Next.IMAGE if self.part in _PICTURES else Next.TEXT

    def reserve_slot(self) -> None:
        """Takes an order of its own before a prompt or a plan (`core.grammar`)."""
        self.slot = (self.order, self.position)
        self.order += 1

    def close(self, reason: str, text: str | None = None) -> None:
        """Ends the painting."""
        self.part, self.finish_reason = None, reason
        if text is not None:
            self.text = text

    def prompted(self, logits: Sequence[float]) -> None:
        """The prompt was read."""
        assert self.part is not None
        self._move(self.part, logits)

    def wrote(self, text: str, logits: Sequence[float], truncated: bool) -> None:
        """A text was written.

        Args:
          text: without its boundary tokens.
          logits: of `DECISIONS` at its closing token.
          truncated: it was cut at the largest number of tokens.
        """
        part = self.part
        assert part is not None
        found = None if truncated else check_text(part, text)
        if part is Part.PLAN:
            self.steps.append(Step(plan=text))
        elif part is Part.REFINED_PLAN:
            self.steps[-1] = dataclasses.replace(self.steps[-1], refined_plan=text)
        else:
            self.steps[-1] = dataclasses.replace(self.steps[-1], inspection=text)
        if truncated:
            self.close("max_text")
        elif found is None:
            self.close("malformed")
        else:
            self._move(found, logits)

    def painted(self, image: Image, logits: Sequence[float], nfe: int) -> None:
        """A picture was painted; `logits` are those at its last copy's closing token."""
        part = self.part
        assert part is not None
        self.picture = image
        self.nfe += nfe
        if part is Part.SKETCH:
            self.steps[-1] = dataclasses.replace(self.steps[-1], sketch=image)
        elif part is Part.REFINED:
            self.steps[-1] = dataclasses.replace(self.steps[-1], refined=image)
        self._move(part, logits)

    @property
    def now(self) -> Moment:
        """Where the next picture is painted."""
        return Moment(self.order, self.position, self.slot, self.segments)

    def repainted(self, image: Image, nfe: int) -> None:
        """The last picture was painted once more."""
        self.picture = image
        self.nfe += nfe
        self.moment = None
        # A step that was planned when the painting was closed has no picture.
        last = max(i for i, step in enumerate(self.steps) if step.sketch is not None)
        name = "sketch" if self.steps[last].refined is None else "refined"
        self.steps[last] = dataclasses.replace(self.steps[last], **{name: image})

    def _move(self, part: Part, logits: Sequence[float]) -> None:
        decision = self.decided.popleft() if self.decided else choose(part, logits)
        following = None if decision is None else TRANSITIONS[part][decision]
        if following is None:
            self.close("finished")
            return
        self.part = following
        if following in _PICTURES and self._pictures() >= self.max_images:
            self.close("max_images")

    def _pictures(self) -> int:
        return sum((s.sketch is not None) + (s.refined is not None) for s in self.steps)

    def trajectory(self, now: float) -> Trajectory:
        """What came out; `now` is the clock that `started` was read from, in seconds."""
        return Trajectory(
            prompt=self.prompt,
            mode=self.mode,
            inputs=self.inputs,
            steps=tuple(self.steps),
            final_image=self.picture,
            text=self.text,
            finish_reason=self.finish_reason,
            metadata=self.metadata,
            sampled=Sampled(
                self.index, self.sample, self.seed, self.nfe, round(now - self.started, 3)
            ),
        )


_PICTURES = (Part.SKETCH, Part.REFINED, Part.ONE_SHOT)


def hide(visible_to: np.ndarray, spans: Sequence[tuple[int, int]], last_order: int) -> None:
    """Hides cache slots from orders after `last_order`, in place."""
    for start, stop in spans:
        visible_to[start:stop] = last_order


def prompt_tokens(painting: Painting, tokenizer: Tokenizer, longest: int) -> list[int] | None:
    """Ids of the prompt's words, or None where the painting was refused for them.

    Args:
      painting: is closed when it is refused.
      tokenizer: of the model.
      longest: tokens that a prompt may have, both boundary tokens included.
    """
    if len(painting.prompt) > MAX_TEXT:  # before it takes the tokenizer's time
        painting.close("refused", f"the prompt has over {MAX_TEXT} characters")
        return None
    try:
        tokens = tokenizer.encode(prompt_text(painting.prompt, painting.mode))
    except DataError as error:
        painting.close("refused", str(error))
        return None
    if not painting.prompt.strip():
        painting.close("refused", "the prompt is empty")
    elif len(tokens) + 2 > longest:
        painting.close("refused", f"the prompt has {len(tokens)} tokens, more than {longest - 2}")
    else:
        return tokens
    return None
