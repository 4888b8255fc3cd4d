"""Rows of other projects' data sets as trajectories.

    bagel_edit   parquet: image_list (bytes), instruction_list (choices of words for each edit)
    thinkmorph   parquet: image_list, instruction_list, output_text_list; or as published:
                 problem_image_0, question, resoning_thought_0, reasoning_image_0, ..., answer
    t2i          parquet: image (bytes), captions (a JSON object of alternatives)
    vlm_sft      JSON lines: conversations (from human / gpt), image (a path or several)
    genref       tar, JSON, JSON lines or parquet: a bad picture, a good one, and what to change

Which names were read in the other projects' code stands in docs/imports.md. A row that cannot be
used is counted with its place and reason (`skips.Skips`), or is an error where that is asked for.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from PIL import Image as PILImage

from process_gen.core.checks import check, fraction
from process_gen.core.errors import DataError
from process_gen.core.grammar import Supervise
from process_gen.core.trajectory import (
    MAX_PIXELS,
    Image,
    Step,
    Trajectory,
    Turn,
    decode_image,
    plan_text,
    validate,
)
from process_gen.data.augment import WORDINGS
from process_gen.data.foreign_rows import picture_file, read_any
from process_gen.data.parquet_rows import Row, as_bytes, as_text
from process_gen.data.skips import Skips, Unusable
from process_gen.strokes import phrases

MARK = "<image>"  # stands in the words of vlm_sft where a picture does
MAX_PICTURES = 64  # of one row


@dataclasses.dataclass(frozen=True)
class ImportOptions:
    """How rows are taken over.

    Attributes:
      images: folder of pictures that rows name by path.
      max_side: longer pictures are shrunk to this side; 0 leaves them as they are.
      positives: of genref: good pictures that are approved, for each bad one that is refused. The
        paper has one for two.
    """

    images: str = ""
    max_side: int = 0
    positives: float = 0.5

    def __post_init__(self) -> None:
        """Checks ranges."""
        check(self.max_side >= 0, f"max_side must be >= 0, got {self.max_side}")
        fraction("import", positives=self.positives)


DEFAULTS = ImportOptions()


class _Reader:
    """Cells of a row as what trajectories are made of."""

    def __init__(self, row: Row, options: ImportOptions):
        self.row, self.options, self.pixels = row, options, 0

    def picture(self, data: bytes, name: str) -> Image:
        """A decoded picture; the size is looked at before pixels are."""
        try:
            image = decode_image(data, MAX_PIXELS - self.pixels)
        except ValueError as error:  # TrajectoryError
            raise Unusable("picture", f"{name}: {error}") from error
        self.pixels += image.shape[0] * image.shape[1]
        side = self.options.max_side
        if side and max(image.shape[:2]) > side:
            small = PILImage.fromarray(image)
            small.thumbnail((side, side), PILImage.Resampling.BICUBIC)
            image = np.asarray(small)
        return image

    def pictures(self, column: str, least: int) -> list[Image]:
        """A column of encoded pictures."""
        cells = self.row.cells_of(column)
        if not least <= len(cells) <= MAX_PICTURES:
            wanted = f"{least} to {MAX_PICTURES}"
            raise Unusable("picture", f"{column} promises {wanted} pictures and has {len(cells)}")
        return [
            self.picture(as_bytes(cell, f"{column}[{i}]"), f"{column}[{i}]")
            for i, cell in enumerate(cells)
        ]

    def named(self, name: Any) -> Image:
        """A picture that the row names by path."""
        text = as_text(name, "the name of a picture")
        return self.picture(picture_file(self.options.images, text), text)


def _words(text: str, name: str) -> str:
    if not text.strip():
        raise Unusable("prompt", f"{name} is empty")
    return text


def _wordings(choices: list[list[str]]) -> Mapping[str, Any]:
    return {WORDINGS: choices} if any(len(one) > 1 for one in choices) else {}


def _bagel_edit(read: _Reader) -> Trajectory:
    images = read.pictures("image_list", 2)
    cells = read.row.cells_of("instruction_list")
    if len(cells) != len(images) - 1:
        what = f"{len(images)} pictures, but instructions for {len(cells)} edits"
        raise Unusable("column", what)
    choices = []
    for i, cell in enumerate(cells):
        name = f"instruction_list[{i}]"
        several = cell if isinstance(cell, (list, tuple)) else [cell]
        choices.append([_words(as_text(x, name), name) for x in several])
        if not several:
            raise Unusable("prompt", f"{name} offers no words")
    first, metadata = choices[0][0], _wordings(choices)
    if len(images) == 2:
        edited = {"inputs": (images[0],), "final_image": images[1]}
        return Trajectory(first, mode="edit", metadata=metadata, **edited)
    turns = [Turn(False, image=images[0])]
    for words, image in zip(choices, images[1:], strict=True):
        turns += [Turn(False, text=words[0]), Turn(True, image=image)]
    return Trajectory(first, mode="edit", turns=tuple(turns), metadata=metadata)


def _thinkmorph(read: _Reader) -> Trajectory:
    cells = read.row.cells
    if "image_list" in cells:
        images = read.pictures("image_list", 1)
        questions, outputs = read.row.texts("instruction_list"), read.row.texts("output_text_list")
        if len(questions) != 1:
            raise Unusable("column", f"{len(questions)} instructions, wanted one question")
        question = questions[0]
    else:
        question, outputs, images = _published(read)
    _words(question, "the question")
    if not outputs or len(images) - 1 > len(outputs):
        what = f"{len(images)} pictures and {len(outputs)} texts; one text leads to each picture"
        raise Unusable("column", what)
    if len(images) == len(outputs) == 1:
        answer = {"inputs": tuple(images), "text": _words(outputs[0], "the answer")}
        return Trajectory(question, mode="understand", **answer)
    turns = [Turn(False, image=images[0]), Turn(False, text=question)]
    for i, text in enumerate(outputs):
        turns.append(Turn(True, text=_words(text, f"output_text_list[{i}]")))
        turns += [Turn(True, image=image) for image in images[i + 1 : i + 2]]
    return Trajectory(question, mode="understand", turns=tuple(turns))


def _published(read: _Reader) -> tuple[str, list[str], list[Image]]:
    """Question, texts and pictures of a row as published, with the tags that training adds."""
    row = read.row
    answer = row.text("answer")
    problem = read.picture(row.blob("problem_image_0"), "problem_image_0")
    images, thoughts = [problem], []
    # In a table a shorter row has empty cells where a longer one has further thoughts.
    while row.cells.get(f"resoning_thought_{len(thoughts)}") is not None:  # so spelt
        number = len(thoughts)
        thoughts.append(row.text(f"resoning_thought_{number}"))
        if row.cells.get(name := f"reasoning_image_{number}") is not None:
            if len(images) != number + 1:
                raise Unusable("column", f"{name}, but an earlier thought has no picture")
            images.append(read.picture(row.blob(name), name))
    if not thoughts:
        raise Unusable("column", "the column 'resoning_thought_0' is missing or empty")
    if len(thoughts) >= MAX_PICTURES:  # further ones would stand in columns that are not read
        raise Unusable("column", f"{MAX_PICTURES} thoughts or more")
    filled = sum(row.cells.get(name) is not None for name in _THOUGHTS)
    if filled > len(thoughts) + len(images) - 1:
        raise Unusable("column", f"thoughts or pictures after the last of {len(thoughts)} thoughts")
    texts = [f"<think>{thought}</think>" for thought in thoughts]
    for i in range(len(images) - 1):
        texts[i] += "<image_start>"
        if i + 1 < len(texts):
            texts[i + 1] = "<image_end>" + texts[i + 1]
    texts[-1] += f"<answer>{answer}</answer>"
    return row.text("question"), texts, images


def _t2i(read: _Reader) -> Trajectory:
    image = read.picture(read.row.blob("image"), "image")
    said = read.row.text("captions")
    try:
        captions = json.loads(said)
    except (ValueError, RecursionError) as error:
        raise Unusable("JSON", f"captions: {error}") from error
    if not isinstance(captions, dict):
        raise Unusable("column", f"captions: {type(captions).__name__}, wanted an object")
    choices = [as_text(x, f"captions[{key!r}]") for key, x in captions.items()]
    choices = [text for text in choices if text.strip()]
    if not choices:
        raise Unusable("prompt", "captions say nothing")
    metadata = _wordings([choices])
    return Trajectory(choices[0], mode="one_shot", final_image=image, metadata=metadata)


def _vlm_sft(read: _Reader) -> Trajectory:
    cells = read.row.cells
    if "video" in cells:
        raise Unusable("video", "videos are not read")
    names = cells.get("image") or []
    names = names if isinstance(names, list) else [names]
    if len(names) > MAX_PICTURES:
        raise Unusable("picture", f"{len(names)} pictures, more than {MAX_PICTURES}")
    left = iter(names)
    turns: list[Turn] = []
    for i, said in enumerate(read.row.cells_of("conversations")):
        if not isinstance(said, Mapping) or said.get("from") not in ("human", "gpt"):
            raise Unusable("column", f"conversations[{i}] is from nobody known")
        text = as_text(said.get("value"), f"conversations[{i}]")
        if said["from"] == "gpt":
            turns.append(Turn(True, text=_words(text, f"conversations[{i}]")))
            continue
        parts = text.split(MARK)
        for number, part in enumerate(parts):
            words = part.strip() if len(parts) > 1 else part
            if words.strip():
                turns.append(Turn(False, text=words))
            if number < len(parts) - 1:
                if (name := next(left, None)) is None:
                    what = f"more {MARK} marks than the {len(names)} pictures"
                    raise Unusable("picture", what)
                turns.append(Turn(False, image=read.named(name)))
    if any(True for _ in left):
        raise Unusable("picture", f"{len(names)} pictures, but fewer {MARK} marks")
    prompt = next((t.text for t in turns if not t.by_model and t.text), None)
    if prompt is None:
        raise Unusable("prompt", "nobody asks anything")
    given, rest = [t for t in turns[:-2] if t.image is not None], turns[-2:]
    if len(given) == len(turns) - 2 and [t.by_model for t in rest] == [False, True]:
        if rest[0].text is not None:  # the common form: pictures, a question, an answer
            inputs = tuple(t.image for t in given if t.image is not None)
            return Trajectory(prompt, mode="understand", inputs=inputs, text=rest[1].text)
    return Trajectory(prompt, mode="understand", turns=tuple(turns))


_REFLECTIONS = ("instruction", "reflection", "reflection_prompt", "reflection.txt")


def _genref(read: _Reader) -> Iterator[Trajectory]:
    """The refused bad picture with its correction, then the approved good one."""
    row, cells = read.row, read.row.cells

    def picture(*names: str) -> Image:
        for name in names:
            if (cell := cells.get(name)) is not None:
                if isinstance(cell, str):
                    return read.named(cell)
                return read.picture(as_bytes(cell, name), name)
        raise Unusable("picture", f"promises a picture {' or '.join(names)} and has none")

    prompt = _words(_first(row, ("prompt", "caption", "prompt.txt")), "the prompt")
    told = _words(_reflection(row), "the reflection")
    if "refine>" in told:
        raise Unusable("column", "the reflection holds a <refine> tag")
    plan = plan_text(prompt, prompt)
    subset = cells.get("subset.txt") or cells.get("subset")
    metadata = {} if subset is None else {"subset": as_text(subset, "subset")}
    bad = picture("bad_image", "bad_image.jpg", "src_img.bytes", "src_img")
    good = picture("good_image", "good_image.jpg", "edited_img.bytes", "edited_img")
    verdict = phrases.NO_FIT_INSTRUCTION.rstrip(":")
    fault = f"{phrases.FITS_PROMPT} {verdict}. <refine>{told}</refine>"
    yield Trajectory(
        prompt, steps=(Step(plan, bad, fault, None, good),), final_image=good, metadata=metadata
    )
    fine = f"{phrases.FITS_PROMPT} {phrases.FITS_INSTRUCTION} {phrases.COMPLETE}"
    yield Trajectory(prompt, steps=(Step(plan, good, fine),), final_image=good, metadata=metadata)


def _first(row: Row, names: tuple[str, ...]) -> str:
    found = next((name for name in names if row.cells.get(name) is not None), names[0])
    return row.text(found)


def _reflection(row: Row) -> str:
    alternatives = row.cells.get("reflection_dict")
    if isinstance(alternatives, Mapping) and alternatives:
        return as_text(next(iter(alternatives.values())), "reflection_dict")
    edits = row.cells.get("edited_prompt_list")
    if isinstance(edits, (list, tuple)) and edits:
        return as_text(edits[-1], "edited_prompt_list")
    return _first(row, _REFLECTIONS)


class Format(NamedTuple):
    """A kind of rows.

    Attributes:
      columns: that are read of parquet files.
      convert: a row's trajectory; of genref, both.
      supervise: what of them is to be learned.
    """

    columns: tuple[str, ...]
    convert: Callable[[_Reader], Trajectory | Iterator[Trajectory]]
    supervise: Supervise = "all"


_THOUGHTS = tuple(
    f"{x}_{i}" for i in range(MAX_PICTURES) for x in ("resoning_thought", "reasoning_image")
)
_PAIR = ("good_image", "bad_image", "src_img", "src_img.bytes", "edited_img", "edited_img.bytes")
FORMATS = {
    "bagel_edit": Format(("image_list", "instruction_list"), _bagel_edit),
    "thinkmorph": Format(
        ("image_list", "instruction_list", "output_text_list")
        + ("problem_image_0", "question", "answer", *_THOUGHTS),
        _thinkmorph,
    ),
    "t2i": Format(("image", "captions"), _t2i),
    "vlm_sft": Format((), _vlm_sft),
    "genref": Format(
        (*_PAIR, "prompt", "caption", "subset", "reflection_dict", "edited_prompt_list")
        + _REFLECTIONS,
        _genref,
        "last_repair",
    ),
}


def import_rows(
    name: str, source: str, skips: Skips, options: ImportOptions = DEFAULTS
) -> Iterator[Trajectory]:
    """Trajectories of a file or a folder of files, one row in memory at a time.

    Args:
      name: of `FORMATS`.
      source: file or folder.
      skips: takes the rows that cannot be used.
      options: how they are taken over.

    Raises:
      DataError: an unknown format, no such file; under ``Skips(strict=True)``, a row.
      ConfigError: pyarrow is wanted and not installed.
    """
    if name not in FORMATS:
        raise DataError(f"unknown format {name!r}; known: {', '.join(FORMATS)}")
    form = FORMATS[name]
    pairs = 0
    for row in read_any(source, form.columns, skips):
        try:
            made = form.convert(_Reader(row, options))
            both = [made] if isinstance(made, Trajectory) else list(made)
            for trajectory in both:
                validate(trajectory)
        except DataError as error:
            skips.add(row.where, error)
            continue
        except ValueError as error:  # TrajectoryError, and Pillow's about strange sizes
            skips.add(row.where, str(error), "trajectory")
            continue
        yield both[0]
        if len(both) > 1:
            pairs += 1
            if int(pairs * options.positives) > int((pairs - 1) * options.positives):
                yield both[1]
