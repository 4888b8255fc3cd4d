"""The one place that turns a trajectory into segments and back, and says what may come next.

A trajectory becomes a list of *segments*, runs of tokens of one kind. Training packs them; the
sampler walks the same table forward. What comes after a part is learned as a CONTROL label at the
part's closing token:

    after                      legal next
    prompt, process wrapper    text (plan)
    prompt, bare               image (one-shot picture)
    plan, re-emitted plan      image
    sketch                     text (inspection)
    inspection with <refine>   text (plan re-emitted: conflict) or image (misalignment)
    inspection without it      text (next plan) or end
    refined picture            text (next plan) or end
    one-shot picture           nothing: the end, without a label

`text`, `image` and `end` are the tokens ``<|im_start|>``, ``<|vision_start|>`` and
``<|endoftext|>``; `core.batch` knows their numbers.

Edits and answers to questions about pictures, which BAGEL's own data holds, are conversations: what
the user gave is context, what the model replied is learned, and of what comes next nothing is said.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Sequence
from typing import Literal

import numpy as np

from process_gen.core.configs import GrammarConfig
from process_gen.core.errors import GrammarError, TrajectoryError
from process_gen.core.trajectory import (
    Image,
    Stage,
    Step,
    Trajectory,
    Turn,
    parse_plan,
    refine_command,
)

Supervise = Literal["all", "last_inspection", "last_repair"]

PROCESS_WRAPPER = "Please create the image step-by-step: {prompt}"


class Kind(enum.Enum):
    """What a segment's tokens are."""

    TEXT = "text"
    NOISED = "noised"  # latent tokens at a time t, seen by themselves only
    CLEAN = "clean"  # latent tokens at t = 0
    UND = "und"  # understanding patches


class Next(enum.Enum):
    """The decision at a closing token."""

    TEXT = "text"
    IMAGE = "image"
    END = "end"


class Part(enum.Enum):
    """What was just written or painted."""

    PROMPT = "prompt"
    BARE_PROMPT = "bare prompt"
    PLAN = "plan"
    SKETCH = "sketch"
    INSPECTION = "inspection without a fault"
    FAULT = "inspection with a fault"
    REFINED_PLAN = "re-emitted plan"
    REFINED = "refined picture"
    ONE_SHOT = "one-shot picture"
    GIVEN = "given picture"
    ASKED = "words of the user"
    REPLY = "words of a reply"
    REPLY_PICTURE = "picture of a reply"


# What follows a part after each legal decision; None is the end of the trajectory.
TRANSITIONS: dict[Part, dict[Next, Part | None]] = {
    Part.PROMPT: {Next.TEXT: Part.PLAN},
    Part.BARE_PROMPT: {Next.IMAGE: Part.ONE_SHOT},
    Part.PLAN: {Next.IMAGE: Part.SKETCH},
    Part.SKETCH: {Next.TEXT: Part.INSPECTION},
    Part.INSPECTION: {Next.TEXT: Part.PLAN, Next.END: None},
    Part.FAULT: {Next.TEXT: Part.REFINED_PLAN, Next.IMAGE: Part.REFINED},
    Part.REFINED_PLAN: {Next.IMAGE: Part.REFINED},
    Part.REFINED: {Next.TEXT: Part.PLAN, Next.END: None},
    Part.ONE_SHOT: {},
    Part.GIVEN: {},
    Part.ASKED: {},
    Part.REPLY: {},
    Part.REPLY_PICTURE: {},
}

STAGE_OF = {
    Part.PROMPT: Stage.PROMPT,
    Part.BARE_PROMPT: Stage.PROMPT,
    Part.PLAN: Stage.PLAN,
    Part.SKETCH: Stage.SKETCH,
    Part.INSPECTION: Stage.INSPECT,
    Part.FAULT: Stage.INSPECT,
    Part.REFINED_PLAN: Stage.REFINE,
    Part.REFINED: Stage.REFINE,
    Part.ONE_SHOT: Stage.ONE_SHOT,
    Part.GIVEN: Stage.PROMPT,
    Part.ASKED: Stage.PROMPT,
    Part.REPLY: Stage.ANSWER,
    Part.REPLY_PICTURE: Stage.ONE_SHOT,
}


@dataclasses.dataclass(frozen=True, eq=False)
class Segment:
    """A run of tokens of one kind; all that the packer knows of a trajectory.

    Attributes:
      kind: what its tokens are.
      part: what it says or shows.
      text: the words of a text segment.
      image: the picture of the other kinds, ``uint8[H, W, 3]``.
      encoded: what a frozen encoder made of it for latent tokens, ``float32[rows, columns, F]``;
        None where tokens are pixels.
      loss: cross-entropy on a text, flow loss on a noised image.
      next: CONTROL label at its closing token; None carries no label.
      plan: index of the plan's (or prompt's) segment that the picture was drawn for. A text-dropped
        noised copy takes the order slot just before it.
      hidden_after: index of the last segment that sees this one; None is the trajectory's end.
      firm: whether no dropout may take it away.
    """

    kind: Kind
    part: Part
    text: str = ""
    image: Image | None = None
    encoded: np.ndarray | None = None
    loss: bool = False
    next: Next | None = None
    plan: int | None = None
    hidden_after: int | None = None
    firm: bool = False

    @property
    def stage(self) -> Stage:
        """The stage its loss is counted under."""
        return STAGE_OF[self.part]


def after_inspection(inspection: str) -> Part:
    """FAULT or INSPECTION.

    Raises:
      TrajectoryError: unbalanced ``<refine>`` tags.
    """
    return Part.FAULT if refine_command(inspection) is not None else Part.INSPECTION


def legal_next(part: Part) -> tuple[Next, ...]:
    """The decisions that may follow a part."""
    return tuple(TRANSITIONS[part])


def prompt_text(prompt: str, mode: str) -> str:
    """The words of the prompt's segment."""
    return PROCESS_WRAPPER.format(prompt=prompt) if mode == "process" else prompt


def context_kinds(settings: GrammarConfig) -> tuple[Kind, ...]:
    """The copies of a painted picture that later tokens see, in order."""
    kinds = [Kind.CLEAN] if "vae" in settings.context_images else []
    if "vit" in settings.context_images:
        kinds.append(Kind.UND)
    return tuple(kinds)


def hidden_kinds(settings: GrammarConfig) -> tuple[Kind, ...]:
    """The copies of a *rejected* sketch that nothing sees once its inspection is over.

    The inspection itself sees every copy, as it does of a sketch that it will approve: otherwise
    the copies would give the verdict away.
    """
    return {
        "keep": (),
        "vit_only": (Kind.CLEAN,),
        "drop": (Kind.CLEAN, Kind.UND),
    }[settings.rejected_context]


class _Writer:
    """Collects segments; knows which copies a picture needs."""

    def __init__(self, settings: GrammarConfig, firm: bool = False):
        self.settings = settings
        self.firm = firm
        self.segments: list[Segment] = []

    def text(self, part: Part, text: str, loss: bool, following: Next | None) -> int:
        if following is not None and following not in TRANSITIONS[part]:
            raise GrammarError(f"{following.value} may not follow a {part.value}")
        made = Segment(Kind.TEXT, part, text=text, loss=loss, next=following, firm=self.firm)
        self.segments.append(made)
        return len(self.segments) - 1

    def image(
        self,
        part: Part,
        image: Image,
        *,
        plan: int | None,
        target: bool,
        copies: tuple[Kind, ...],
        following: Next | None,
    ) -> list[int]:
        """Noised copies of a flow target, then the copies that later tokens see."""
        if target:
            for _ in range(self.settings.noise_copies):
                noised = Segment(Kind.NOISED, part, image=image, loss=True, plan=plan)
                self.segments.append(noised)
        first = len(self.segments)
        for kind in copies:
            last = kind is copies[-1]
            label = following if last else None
            made = Segment(kind, part, image=image, next=label, plan=plan, firm=self.firm)
            self.segments.append(made)
        return list(range(first, len(self.segments)))


def to_segments(
    trajectory: Trajectory,
    settings: GrammarConfig,
    supervise: Supervise = "all",
) -> list[Segment]:
    """Writes a trajectory as segments.

    Args:
      trajectory: of mode "process", "one_shot", "edit" or "understand", or with turns.
      settings: which copies are seen, which are targets.
      supervise: "all" as docs/grammar.md says; "last_inspection" makes everything context but the
        last inspection, for critiques of other people's sketches; "last_repair" adds to it what
        it leads to: the decision, the re-emitted plan and the refined picture.

    Raises:
      GrammarError: another mode, or a trajectory without what its mode needs.
    """
    out = _Writer(settings)
    everything = supervise == "all"
    if trajectory.mode == "one_shot":
        if trajectory.final_image is None:
            raise GrammarError(f"one-shot trajectory {trajectory.prompt[:60]!r} has no picture")
        prompt = out.text(Part.BARE_PROMPT, trajectory.prompt, False, Next.IMAGE)
        image = trajectory.final_image
        out.image(Part.ONE_SHOT, image, plan=prompt, target=True, copies=(), following=None)
        return out.segments
    if trajectory.turns or trajectory.mode in ("edit", "understand"):
        return _conversation(trajectory, settings)
    if trajectory.mode != "process":
        raise GrammarError(
            f"no grammar for mode {trajectory.mode!r} without turns; known: process, one_shot, "
            "edit, understand"
        )
    if not trajectory.steps:
        raise GrammarError(f"process trajectory {trajectory.prompt[:60]!r} has no steps")
    wrapped = prompt_text(trajectory.prompt, "process")
    out.text(Part.PROMPT, wrapped, False, Next.TEXT if everything else None)
    for i, step in enumerate(trajectory.steps):
        last = i == len(trajectory.steps) - 1
        repair = last and supervise == "last_repair"
        _write_step(out, step, last=last, everything=everything, repair=everything or repair)
    return out.segments


def _turns(trajectory: Trajectory) -> tuple[Turn, ...]:
    """The conversation that a trajectory is."""
    if trajectory.turns:
        return trajectory.turns
    given = [Turn(False, image=image) for image in trajectory.inputs]
    reply = Turn(True, image=trajectory.final_image)
    if trajectory.mode == "understand":
        reply = Turn(True, text=trajectory.text)
    return (*given, Turn(False, text=trajectory.prompt), reply)


def _conversation(trajectory: Trajectory, settings: GrammarConfig) -> list[Segment]:
    """Segments of an edit or of an answer, as BAGEL's data sets have them.

    Where the model paints, pictures have the copies that `context_images` names; a question about a
    picture shows the understanding copy alone, and loses nothing to dropout.
    """
    turns = _turns(trajectory)
    if any(turn.text is None and turn.image is None for turn in turns):
        raise GrammarError(f"{trajectory.mode} {trajectory.prompt[:60]!r} has no reply")
    paints = any(turn.by_model and turn.image is not None for turn in turns)
    copies = context_kinds(settings)
    if not paints and Kind.UND in copies:
        copies = (Kind.UND,)
    out = _Writer(settings, firm=not paints)
    words: int | None = None  # where the words that lead to a picture begin
    for i, turn in enumerate(turns):
        if turn.text is not None:
            part = Part.REPLY if turn.by_model else Part.ASKED
            index = out.text(part, turn.text, turn.by_model, None)
            words = index if words is None else words
        elif turn.image is not None:
            part = Part.REPLY_PICTURE if turn.by_model else Part.GIVEN
            seen = copies if not turn.by_model or i < len(turns) - 1 else ()
            image, target = turn.image, turn.by_model
            out.image(part, image, plan=words, target=target, copies=seen, following=None)
            words = None
    return out.segments


def _write_step(out: _Writer, step: Step, *, last: bool, everything: bool, repair: bool) -> None:
    done = Next.END if last else Next.TEXT

    def label(following: Next) -> Next | None:
        return following if everything else None

    if step.sketch is None:  # text-only planning: nothing is said of what follows the plan
        out.text(Part.PLAN, step.plan, everything, None)
        return
    plan = out.text(Part.PLAN, step.plan, everything, label(Next.IMAGE))
    rejected = step.inspection is not None and after_inspection(step.inspection) is Part.FAULT
    copies = out.image(
        Part.SKETCH,
        step.sketch,
        plan=plan,
        target=everything and (not rejected or out.settings.supervise_rejected),
        copies=context_kinds(out.settings),
        # Without an inspection the sketch is the step's end, which only imported data does.
        following=label(Next.TEXT) if step.inspection is not None else None,
    )
    if step.inspection is None:
        return
    if not rejected:
        # A cut critique has no trajectory after it, so its end says nothing of the decision.
        following = label(done)
        out.text(Part.INSPECTION, step.inspection, everything or last, following)
        return
    correction = Next.TEXT if step.refined_plan is not None else Next.IMAGE
    unknown = step.refined is None
    following = correction if repair and not unknown else None
    inspection = out.text(Part.FAULT, step.inspection, everything or last, following)
    for index in copies:
        if out.segments[index].kind in hidden_kinds(out.settings):
            hidden = dataclasses.replace(out.segments[index], hidden_after=inspection)
            out.segments[index] = hidden
    if step.refined_plan is not None:
        following = Next.IMAGE if repair else None
        plan = out.text(Part.REFINED_PLAN, step.refined_plan, repair, following)
    if step.refined is not None:
        out.image(
            Part.REFINED,
            step.refined,
            plan=plan,
            target=repair,
            copies=context_kinds(out.settings),
            following=label(done),
        )


def from_segments(segments: Sequence[Segment]) -> Trajectory:
    """Reads a painting back out of segments; the inverse of `to_segments`.

    Copies of one picture count once, so the settings that wrote the segments are not needed.
    Conversations have no way back: the mode is not in the segments.

    Raises:
      GrammarError: a part in a place where the table does not allow it.
    """
    if not segments or segments[0].part not in (Part.PROMPT, Part.BARE_PROMPT):
        raise GrammarError("segments do not begin with a prompt")
    first = segments[0]
    if first.part is Part.BARE_PROMPT:
        images = [s.image for s in segments[1:]]
        if not images or any(s.part is not Part.ONE_SHOT for s in segments[1:]):
            raise GrammarError("a bare prompt is followed by its picture and nothing else")
        return Trajectory(prompt=first.text, mode="one_shot", final_image=images[0])
    prefix = PROCESS_WRAPPER.format(prompt="")
    if not first.text.startswith(prefix):
        raise GrammarError(f"a process prompt begins with {prefix!r}, got {first.text[:60]!r}")
    steps: list[Step] = []
    before = Part.PROMPT
    for number, segment in enumerate(segments[1:], start=1):
        part = segment.part
        if part is before and segment.kind is not Kind.TEXT:
            continue  # another copy of the same picture
        followers = set(TRANSITIONS[before].values())
        if Part.INSPECTION in followers:
            followers.add(Part.FAULT)
        if before in (Part.PLAN, Part.SKETCH):
            followers.add(Part.PLAN)  # text-only planning; a sketch that nobody inspected
        if part not in followers:
            raise GrammarError(f"segment {number}: a {part.value} may not follow a {before.value}")
        if part is Part.PLAN:
            steps.append(Step(plan=segment.text))
        elif part is Part.SKETCH:
            steps[-1] = dataclasses.replace(steps[-1], sketch=segment.image)
        elif part in (Part.INSPECTION, Part.FAULT):
            steps[-1] = dataclasses.replace(steps[-1], inspection=segment.text)
        elif part is Part.REFINED_PLAN:
            steps[-1] = dataclasses.replace(steps[-1], refined_plan=segment.text)
        elif part is Part.REFINED:
            steps[-1] = dataclasses.replace(steps[-1], refined=segment.image)
        before = part
    return Trajectory(
        prompt=first.text[len(prefix) :],
        steps=tuple(steps),
        final_image=steps[-1].image if steps else None,
    )


def check_text(part: Part, text: str) -> Part | None:
    """What a sampled text turned out to be; None when it is malformed.

    A plan must hold both tags; an inspection's ``<refine>`` must be closed.
    """
    if part in (Part.PLAN, Part.REFINED_PLAN):
        return part if parse_plan(text) is not None else None
    try:
        return after_inspection(text)
    except TrajectoryError:
        return None
