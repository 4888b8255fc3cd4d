"""Trajectories as rows of other projects' parquet files; the way back from `imports`.

Pictures are written as PNG, which loses nothing: what was imported, exported and imported again is
what it was.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from process_gen.core.errors import DataError
from process_gen.core.trajectory import Trajectory, Turn, encode_png
from process_gen.data.augment import wordings_of
from process_gen.data.skips import Skips, Unusable


def _turns(trajectory: Trajectory) -> list[Turn]:
    if trajectory.turns:
        return list(trajectory.turns)
    given = [Turn(False, image=image) for image in trajectory.inputs]
    reply = Turn(True, text=trajectory.text, image=trajectory.final_image)
    return [*given, Turn(False, text=trajectory.prompt), reply]


def _shape(turns: Iterable[Turn]) -> str:
    """A letter a turn: words or picture, capital where the model's."""
    letters = ("w" if turn.image is None else "p" for turn in turns)
    return "".join(
        x.upper() if turn.by_model else x for x, turn in zip(letters, turns, strict=True)
    )


def _wrong(trajectory: Trajectory, wanted: str) -> Unusable:
    return Unusable("form", f"{trajectory.mode} {trajectory.prompt[:60]!r} is not {wanted}")


def _wordings(trajectory: Trajectory) -> Sequence[Sequence[str]]:
    try:
        return wordings_of(trajectory)
    except DataError as error:
        raise Unusable("column", str(error)) from error


def _bagel_edit(trajectory: Trajectory) -> dict[str, Any]:
    turns = _turns(trajectory)
    edits = (len(turns) - 1) // 2
    if trajectory.mode != "edit" or _shape(turns) != "p" + edits * "wP" or not edits:
        raise _wrong(trajectory, "a picture and edits of it")
    said = [[turn.text] for turn in turns if turn.text is not None]
    return {
        "image_list": [encode_png(turn.image) for turn in turns if turn.image is not None],
        "instruction_list": _wordings(trajectory) or said,
    }


def _thinkmorph(trajectory: Trajectory) -> dict[str, Any]:
    turns = _turns(trajectory)
    shape = _shape(turns)
    pairs = shape.count("P")
    if trajectory.mode != "understand" or not (
        shape.startswith("pw" + pairs * "WP") and set(shape[2 + 2 * pairs :]) <= {"W"}
    ):
        raise _wrong(trajectory, "a picture, a question, thoughts and their pictures")
    return {
        "image_list": [encode_png(turn.image) for turn in turns if turn.image is not None],
        "instruction_list": [trajectory.prompt],
        "output_text_list": [turn.text for turn in turns if turn.text is not None][1:],
    }


def _t2i(trajectory: Trajectory) -> dict[str, Any]:
    if trajectory.mode != "one_shot" or trajectory.final_image is None:
        raise _wrong(trajectory, "a prompt and a picture")
    choices = (_wordings(trajectory) or [[trajectory.prompt]])[0]
    captions = {f"caption_{i}": text for i, text in enumerate(choices)}
    image = encode_png(trajectory.final_image)
    return {"image": image, "captions": json.dumps(captions, ensure_ascii=False)}


class Layout(NamedTuple):
    """Columns, as `parquet_rows.ParquetWriter` takes them, and how a row is made."""

    columns: Mapping[str, str]
    convert: Callable[[Trajectory], dict[str, Any]]


_PICTURES = {"image_list": "pictures"}
LAYOUTS = {
    "bagel_edit": Layout({**_PICTURES, "instruction_list": "choices"}, _bagel_edit),
    "thinkmorph": Layout(
        {**_PICTURES, "instruction_list": "texts", "output_text_list": "texts"}, _thinkmorph
    ),
    "t2i": Layout({"image": "bytes", "captions": "text"}, _t2i),
}


def export_rows(
    name: str, records: Any, where: str, skips: Skips, limit: int = 0
) -> Iterator[dict[str, Any]]:
    """Rows of the trajectories that the layout can express; the others are counted.

    Args:
      name: of `LAYOUTS`.
      records: has a length and gives a trajectory for an index, as `builders.TrajectoryFolder`.
      where: what it is called in messages.
      skips: takes what cannot be read or expressed.
      limit: trajectories looked at; 0 looks at all.

    Raises:
      DataError: an unknown layout; under ``Skips(strict=True)``, a record.
    """
    if name not in LAYOUTS:
        raise DataError(f"unknown layout {name!r}; known: {', '.join(LAYOUTS)}")
    for index in range(min(limit or len(records), len(records))):
        try:
            yield LAYOUTS[name].convert(records[index])
        except Unusable as error:
            skips.add(f"{where}, record {index}", error)
        except DataError as error:  # names its place
            skips.add(where, error, "record")
