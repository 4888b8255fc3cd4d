"""What a painting is: inputs, steps of plan -> sketch -> inspection -> refinement, a final image.

`Trajectory` is the meeting point of the project. Builders write it, the data pipeline reads it, the
sampler returns it, the report draws it. Nothing here knows of tokens, tensors or devices.

Images are ``uint8[height, width, 3]`` sRGB arrays.
"""

from __future__ import annotations

import base64
import dataclasses
import enum
import io
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from PIL import Image as PILImage

from process_gen.core.errors import TrajectoryError

Image = np.ndarray

FORMAT_VERSION = 1
MODES = ("process", "one_shot", "think", "edit", "understand")
FINISH_REASONS = (
    "finished",
    "max_images",
    "max_text",
    "malformed",
    "stopped",
    "refused",
)
MAX_IMAGE_SIDE = 4096
MAX_PIXELS = 1 << 28  # of all pictures of a record together
MAX_TEXT = 1 << 17  # characters of any text; longer than any pack


class Stage(enum.IntEnum):
    """What a token belongs to. The values are stored in packs; never renumber them."""

    PROMPT = 0
    PLAN = 1
    SKETCH = 2
    INSPECT = 3
    REFINE = 4
    ONE_SHOT = 5
    ANSWER = 6
    CONTROL = 7


# Not one expression for all of a plan: its time grows with the square of the length of a text that
# repeats the tags.
_BETWEEN = re.compile(r"</ins>\s*<des>")


def plan_text(instruction: str, description: str) -> str:
    """Writes a plan: what to paint next, and the whole scene as it should look afterwards."""
    return f"<ins>{instruction}</ins><des>{description}</des>"


def parse_plan(text: str) -> tuple[str, str] | None:
    """Reads ``(instruction, description)`` out of a plan; None when it is malformed."""
    text = text.strip()
    if not text.startswith("<ins>") or not text.endswith("</des>"):
        return None
    middle = _BETWEEN.search(text, len("<ins>"), len(text) - len("</des>"))
    if middle is None:
        return None
    return text[len("<ins>") : middle.start()], text[middle.end() : -len("</des>")]


def refine_command(inspection: str) -> str | None:
    """The corrective instruction of an inspection; None when it finds no fault.

    Raises:
      TrajectoryError: a ``<refine>`` tag is opened but not closed, or the reverse.
    """
    command = _command(inspection)
    if command is None and ("<refine>" in inspection or "</refine>" in inspection):
        raise TrajectoryError(f"inspection has an unbalanced <refine> tag: {inspection[:80]!r}")
    return command


def _command(inspection: str) -> str | None:
    """What stands between the first ``<refine>`` and the next ``</refine>``; None without both."""
    _, _, rest = inspection.partition("<refine>")
    command, closed, _ = rest.partition("</refine>")
    return command if closed else None


@dataclasses.dataclass(frozen=True, eq=False)
class Step:
    """One cycle of painting.

    Attributes:
      plan: ``<ins>..</ins><des>..</des>``.
      sketch: the picture drawn for the plan. None in text-only planning data.
      inspection: what is seen in the sketch, then the verdict; None where nobody inspected.
      refined_plan: the re-emitted plan when the inspection found a *conflict* (the instruction
        contradicts the prompt).
      refined: the corrected picture; follows at once after a *misalignment* (the instruction is
        right, the drawing is wrong), or after `refined_plan`.
    """

    plan: str
    sketch: Image | None = None
    inspection: str | None = None
    refined_plan: str | None = None
    refined: Image | None = None

    @property
    def rejected(self) -> bool:
        """Whether the inspection found a fault: it holds a whole ``<refine>`` command.

        Sampled text may hold half a tag, which is no command; `validate` and the grammar say so.
        """
        return self.inspection is not None and _command(self.inspection) is not None

    @property
    def image(self) -> Image | None:
        """The picture that the step ends with."""
        return self.refined if self.refined is not None else self.sketch


@dataclasses.dataclass(frozen=True, eq=False)
class Turn:
    """Words or a picture of a conversation; exactly one of the two.

    Attributes:
      by_model: whether the model said or painted it, and is to learn it; else the user gave it.
      text: the words.
      image: the picture.
    """

    by_model: bool
    text: str | None = None
    image: Image | None = None


@dataclasses.dataclass(frozen=True)
class Sampled:
    """Where a sampled trajectory came from.

    Attributes:
      index: place of the prompt in the request, from 0.
      sample: number of this painting among those of its prompt, from 0.
      seed: the request's seed.
      nfe: evaluations of the velocity network, guidance branches not counted twice.
      seconds: wall time from the row's admission to its end.
    """

    index: int
    sample: int
    seed: int
    nfe: int
    seconds: float


@dataclasses.dataclass(frozen=True, eq=False)
class Trajectory:
    """A prompt (and input images), the steps painted for it, and what came out.

    Attributes:
      prompt: the user's words, without any wrapper.
      mode: one of `MODES`.
      inputs: images given with the prompt (editing, understanding).
      steps: the painting process; empty in the other modes.
      final_image: the finished picture; None where none was painted.
      text: the written answer (understanding) or thought (think); None otherwise.
      turns: for imported rows that say more than input pictures, a prompt and one reply: the whole
        conversation in order, instead of `inputs`, `steps`, `final_image` and `text`. The prompt is
        then the first words of the user.
      finish_reason: one of `FINISH_REASONS`; None for training data.
      metadata: the requirement in GenEval's schema, and whatever else came with the prompt.
      sampled: set by the sampler.
    """

    prompt: str
    mode: str = "process"
    inputs: tuple[Image, ...] = ()
    steps: tuple[Step, ...] = ()
    final_image: Image | None = None
    text: str | None = None
    turns: tuple[Turn, ...] = ()
    finish_reason: str | None = None
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    sampled: Sampled | None = None

    @property
    def images(self) -> tuple[Image, ...]:
        """Every painted picture, in order."""
        pictures = [image for s in self.steps for image in (s.sketch, s.refined)]
        pictures = [image for image in pictures if image is not None]
        if not self.steps and self.final_image is not None:
            pictures.append(self.final_image)
        pictures += [t.image for t in self.turns if t.by_model and t.image is not None]
        return tuple(pictures)

    @property
    def all_images(self) -> tuple[Image, ...]:
        """Every given picture, then every painted one."""
        given = [t.image for t in self.turns if not t.by_model and t.image is not None]
        return (*self.inputs, *given, *self.images)


def validate(trajectory: Trajectory) -> None:
    """Checks the rules that hold for training data and for sampled paintings alike.

    Raises:
      TrajectoryError: names the step and the rule that is broken.
    """

    def fail(what: str) -> None:
        raise TrajectoryError(f"trajectory {trajectory.prompt[:60]!r}: {what}")

    if trajectory.mode not in MODES:
        fail(f"mode {trajectory.mode!r} is not one of {', '.join(MODES)}")
    if trajectory.finish_reason is not None and trajectory.finish_reason not in FINISH_REASONS:
        fail(f"finish_reason {trajectory.finish_reason!r} is not one of {FINISH_REASONS}")
    for name, text in _texts(trajectory):
        if len(text) > MAX_TEXT:
            fail(f"{name} has {len(text)} characters, more than {MAX_TEXT}")
    for name, image in (
        *((f"input {i}", x) for i, x in enumerate(trajectory.inputs)),
        *((f"picture {i}", x) for i, x in enumerate(trajectory.images)),
        *((f"turn {i}", x.image) for i, x in enumerate(trajectory.turns) if x.image is not None),
    ):
        if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
            fail(f"{name} is not a uint8 array")
        if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
            fail(f"{name} has shape {image.shape}, wanted (height, width, 3)")
        if max(image.shape[:2]) > MAX_IMAGE_SIDE:
            fail(f"{name} has a side of {max(image.shape[:2])} px, more than {MAX_IMAGE_SIDE}")
    complete = trajectory.finish_reason in (None, "finished")
    if not complete:
        return
    if not trajectory.prompt.strip():
        fail("the prompt is empty")
    if trajectory.mode == "one_shot":
        if trajectory.steps:
            fail("a one-shot trajectory has steps")
        if trajectory.final_image is None:
            fail("a one-shot trajectory has no picture")
    if wrong := _wrong_reply(trajectory):
        fail(wrong)
    for i, step in enumerate(trajectory.steps):
        if parse_plan(step.plan) is None:
            fail(f"step {i}: the plan is not <ins>..</ins><des>..</des>: {step.plan[:80]!r}")
        if step.refined_plan is not None and parse_plan(step.refined_plan) is None:
            fail(f"step {i}: the re-emitted plan is malformed: {step.refined_plan[:80]!r}")
        if step.inspection is not None:
            refine_command(step.inspection)
        if step.inspection is not None and step.sketch is None:
            fail(f"step {i}: an inspection without a sketch")
        if step.refined is not None and not step.rejected:
            fail(f"step {i}: a refinement, but the inspection has no <refine> command")
        if step.refined_plan is not None and not step.rejected:
            fail(f"step {i}: a re-emitted plan, but the inspection has no <refine> command")
        last = i == len(trajectory.steps) - 1
        if step.rejected and step.refined is None and not last:
            fail(f"step {i}: the inspection found a fault that no refinement repairs")
    undrawn = all(step.sketch is None for step in trajectory.steps)
    if trajectory.steps and trajectory.final_image is not None and undrawn:
        fail("a finished picture, but no step has one")
    painted = trajectory.steps[-1].image if trajectory.steps else None
    if painted is not None and trajectory.final_image is not None:
        if not np.array_equal(painted, trajectory.final_image):
            fail("the final image is not the last step's picture")


def _texts(trajectory: Trajectory) -> Iterator[tuple[str, str]]:
    """Every text with its name."""
    yield "the prompt", trajectory.prompt
    for i, step in enumerate(trajectory.steps):
        yield f"step {i}: the plan", step.plan
        yield f"step {i}: the inspection", step.inspection or ""
        yield f"step {i}: the re-emitted plan", step.refined_plan or ""
    for i, turn in enumerate(trajectory.turns):
        yield f"turn {i}", turn.text or ""
    yield "the answer", trajectory.text or ""


def _wrong_reply(trajectory: Trajectory) -> str:
    """What an edit, an answer or a conversation lacks; empty when it is whole."""
    mode, turns = trajectory.mode, trajectory.turns
    if not turns:
        if mode == "edit" and (not trajectory.inputs or trajectory.final_image is None):
            return "an edit needs the picture to be edited and the edited one"
        if mode == "understand" and not (trajectory.text or "").strip():
            return "an answer is missing"
        return ""
    beside = bool(trajectory.inputs or trajectory.steps or trajectory.text is not None)
    if mode not in ("edit", "understand", "think"):
        return f"turns in mode {mode!r}"
    if beside or trajectory.final_image is not None:
        return "turns, and a reply beside them"
    for i, turn in enumerate(turns):
        if (turn.text is None) == (turn.image is None):
            return f"turn {i} is neither words nor a picture, or both"
    words = [turn.text for turn in turns if turn.text is not None and not turn.by_model]
    if not words or words[0] != trajectory.prompt:
        return "the prompt is not the first words of the user"
    if mode == "edit" and all(turn.image is None or turn.by_model for turn in turns):
        return "an edit needs the picture to be edited"
    if not any(turn.by_model for turn in turns):
        return "the model has no turn"
    return ""


def same(a: Trajectory, b: Trajectory) -> bool:
    """Equality by value, pictures included."""
    return to_json(a) == to_json(b)


# ---- JSON: one object a trajectory, pictures as base64 PNG ---------------------------------------


def encode_png(image: Image) -> bytes:
    """Encodes ``uint8[H, W, 3]`` as PNG."""
    out = io.BytesIO()
    PILImage.fromarray(image).save(out, format="PNG")
    return out.getvalue()


def decode_image(data: bytes, most: int = MAX_PIXELS) -> Image:
    """Decodes PNG, JPEG or WebP bytes into ``uint8[H, W, 3]``; alpha is laid on white.

    Args:
      data: of one picture. Its size is looked at before any pixel is decoded.
      most: pixels that it may have.

    Raises:
      TrajectoryError: not one of these formats, damaged, larger than `MAX_IMAGE_SIDE` or `most`.
    """
    try:
        with PILImage.open(io.BytesIO(data), formats=("PNG", "JPEG", "WEBP")) as picture:
            if max(picture.size) > MAX_IMAGE_SIDE:
                raise TrajectoryError(
                    f"an image of {picture.size[0]}x{picture.size[1]} px is larger than "
                    f"{MAX_IMAGE_SIDE} px a side"
                )
            if picture.size[0] * picture.size[1] > most:
                raise TrajectoryError(f"the pictures of a record have over {MAX_PIXELS} pixels")
            if "A" in picture.getbands() or "transparency" in picture.info:
                rgba = picture.convert("RGBA")
                white = PILImage.new("RGBA", rgba.size, (255, 255, 255, 255))
                picture = PILImage.alpha_composite(white, rgba)
            return np.asarray(picture.convert("RGB"))
    except TrajectoryError:
        raise
    except Exception as error:  # Pillow's decoders raise many unrelated types on damaged bytes.
        raise TrajectoryError(f"cannot decode an image of {len(data)} bytes: {error}") from error


def _image_to_json(image: Image | None) -> str | None:
    return None if image is None else base64.b64encode(encode_png(image)).decode("ascii")


class _Pictures:
    """Decodes the pictures of one record, `MAX_PIXELS` of them together."""

    def __init__(self) -> None:
        self._left = MAX_PIXELS

    def __call__(self, text: Any) -> Image | None:
        if text is None:
            return None
        if not isinstance(text, str):
            raise TrajectoryError(f"an image must be a base64 string, got {type(text).__name__}")
        try:
            data = base64.b64decode(text, validate=True)
        except ValueError as error:
            raise TrajectoryError(f"an image is not valid base64: {error}") from error
        image = decode_image(data, self._left)
        self._left -= image.shape[0] * image.shape[1]
        return image


def to_json(trajectory: Trajectory) -> dict[str, Any]:
    """A plain dict that `json.dumps` accepts; `from_json` gives the trajectory back."""
    turns = [
        {"by_model": t.by_model, "text": t.text, "image": _image_to_json(t.image)}
        for t in trajectory.turns
    ]
    return {
        "version": FORMAT_VERSION,
        "prompt": trajectory.prompt,
        "mode": trajectory.mode,
        "inputs": [_image_to_json(image) for image in trajectory.inputs],
        "steps": [
            {
                "plan": step.plan,
                "sketch": _image_to_json(step.sketch),
                "inspection": step.inspection,
                "refined_plan": step.refined_plan,
                "refined": _image_to_json(step.refined),
            }
            for step in trajectory.steps
        ],
        "final_image": _image_to_json(trajectory.final_image),
        "text": trajectory.text,
        **({"turns": turns} if turns else {}),
        "finish_reason": trajectory.finish_reason,
        "metadata": dict(trajectory.metadata),
        "sampled": dataclasses.asdict(trajectory.sampled) if trajectory.sampled else None,
    }


def _take(
    record: Mapping[str, Any], key: str, kinds: tuple[type, ...], where: str, default: Any = None
) -> Any:
    value = record.get(key, default)
    if not isinstance(value, kinds):
        wanted = " or ".join("null" if k is type(None) else k.__name__ for k in kinds)
        raise TrajectoryError(f"{where}: {key!r} must be {wanted}, got {type(value).__name__}")
    return value


def from_json(record: Mapping[str, Any]) -> Trajectory:
    """Reads what `to_json` wrote, and validates it.

    Raises:
      TrajectoryError: a field is missing, unknown, of the wrong type, or breaks a rule.
    """
    if not isinstance(record, Mapping):
        raise TrajectoryError(f"a trajectory must be an object, got {type(record).__name__}")
    if record.get("version") != FORMAT_VERSION:
        raise TrajectoryError(
            f"trajectory format {record.get('version')!r}; this code reads {FORMAT_VERSION}"
        )
    fields = {f.name for f in dataclasses.fields(Trajectory)} | {"version"}
    unknown = sorted(set(record) - fields)
    if unknown:
        raise TrajectoryError(f"unknown trajectory field(s): {', '.join(map(str, unknown))}")
    none = type(None)
    picture = _Pictures()
    steps = []
    for i, item in enumerate(_take(record, "steps", (list,), "trajectory")):
        if not isinstance(item, Mapping):
            raise TrajectoryError(f"step {i} must be an object, got {type(item).__name__}")
        where = f"step {i}"
        unknown = sorted(set(item) - {f.name for f in dataclasses.fields(Step)})
        if unknown:
            raise TrajectoryError(f"{where}: unknown field(s): {', '.join(map(str, unknown))}")
        steps.append(
            Step(
                plan=_take(item, "plan", (str,), where),
                sketch=picture(item.get("sketch")),
                inspection=_take(item, "inspection", (str, none), where),
                refined_plan=_take(item, "refined_plan", (str, none), where),
                refined=picture(item.get("refined")),
            )
        )
    inputs = []
    for i, item in enumerate(_take(record, "inputs", (list,), "trajectory")):
        image = picture(item)
        if image is None:
            raise TrajectoryError(f"trajectory: input {i} is null")
        inputs.append(image)
    turns = []
    for i, item in enumerate(_take(record, "turns", (list,), "trajectory", default=[])):
        where = f"turn {i}"
        if not isinstance(item, Mapping) or set(item) - {f.name for f in dataclasses.fields(Turn)}:
            raise TrajectoryError(f"{where} must be an object of by_model, text and image")
        said = _take(item, "text", (str, none), where)
        image = picture(item.get("image"))
        turns.append(Turn(_take(item, "by_model", (bool,), where), said, image))
    sampled = _take(record, "sampled", (Mapping, none), "trajectory")
    for name, value in (sampled or {}).items():
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TrajectoryError(f"trajectory: 'sampled' is malformed: {name!r} must be a number")
    try:
        provenance = Sampled(**sampled) if sampled is not None else None
    except TypeError as error:
        raise TrajectoryError(f"trajectory: 'sampled' is malformed: {error}") from error
    trajectory = Trajectory(
        prompt=_take(record, "prompt", (str,), "trajectory"),
        mode=_take(record, "mode", (str,), "trajectory"),
        inputs=tuple(inputs),
        steps=tuple(steps),
        final_image=picture(record.get("final_image")),
        text=_take(record, "text", (str, none), "trajectory"),
        turns=tuple(turns),
        finish_reason=_take(record, "finish_reason", (str, none), "trajectory"),
        metadata=_take(record, "metadata", (Mapping,), "trajectory"),
        sampled=provenance,
    )
    validate(trajectory)
    return trajectory
