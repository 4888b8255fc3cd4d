"""Paintings on disk: `trajectories.jsonl`, an object a line, and its pictures as PNG files.

    trajectories.jsonl             sorted by prompt, then by sample; written when all is painted
    trajectories.part.jsonl        the same lines in the order of painting, while they are painted
    trajectories.earlier.jsonl     those of an interrupted run, while one that goes on copies them
    pictures/00003-0.png           the final picture of prompt 3, sample 0
    steps/00003-0-1-sketch.png     pictures of its first step; "-refined" where there is one

docs/sampling.md describes a line field by field. Nothing here loads a device.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from process_gen.core.errors import DataError, TrajectoryError
from process_gen.core.trajectory import (
    Image,
    Sampled,
    Step,
    Trajectory,
    decode_image,
    encode_png,
    validate,
)

FINISHED = "trajectories.jsonl"
PART = "trajectories.part.jsonl"
EARLIER = "trajectories.earlier.jsonl"  # `PART` of an earlier run, until a new one has its lines
PICTURES, STEPS = "pictures", "steps"
PICTURE_NAME = re.compile(r"\d{5,}-\d+(-\d+-(sketch|refined|input))?\.png")


def stem(sampled: Sampled) -> str:
    """How the file names of a painting begin."""
    return f"{sampled.index:05d}-{sampled.sample}"


class Recorder:
    """Writes paintings as they are finished; use it as a context manager.

    Leaving it in order sorts the lines into `FINISHED` and removes `PART`; an exception leaves
    `PART` with everything that was painted until then.

    Args:
      folder: where the files go, local or remote; made if need be. Files of the same name are
        overwritten.
      before: lines of an earlier run whose pictures are there, see `unfinished`.
    """

    def __init__(self, folder: str | os.PathLike[str], before: Sequence[Mapping[str, Any]] = ()):
        self.folder, self._before = epath.Path(folder), before
        self._places: list[tuple[int, int, int, int]] = []  # index, sample, offset, bytes
        self._end = 0

    def __enter__(self) -> Recorder:
        for name in (PICTURES, STEPS):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        part, earlier = self.folder / PART, self.folder / EARLIER
        if self._before and part.exists() and not earlier.exists():
            part.replace(earlier)
        self._file = part.open("wb")
        try:
            for record in self._before:
                self._write(record)
        except BaseException:
            self._file.close()
            raise
        earlier.unlink(missing_ok=True)
        return self

    def add(self, trajectory: Trajectory) -> dict[str, Any]:
        """Writes the pictures, then the line, which is returned as a dict.

        Raises:
          DataError: the trajectory was not sampled.
        """
        sampled = trajectory.sampled
        if sampled is None:
            raise DataError("only sampled trajectories have an index, a sample and a seed")
        record = self._record(trajectory, sampled)
        self._write(record)
        return record

    def _write(self, record: Mapping[str, Any]) -> None:
        line = json.dumps(record, allow_nan=False).encode() + b"\n"
        self._file.write(line)
        self._file.flush()
        self._places.append((record["index"], record["sample"], self._end, len(line)))
        self._end += len(line)

    def _record(self, trajectory: Trajectory, sampled: Sampled) -> dict[str, Any]:
        name = stem(sampled)
        record: dict[str, Any] = {
            "index": sampled.index,
            "sample": sampled.sample,
            "prompt": trajectory.prompt,
            "seed": sampled.seed,
            "mode": trajectory.mode,
            "finish_reason": trajectory.finish_reason,
            "nfe": sampled.nfe,
            "seconds": sampled.seconds,
            "final_image": self._picture(f"{PICTURES}/{name}.png", trajectory.final_image),
            "text": trajectory.text,
            "metadata": dict(trajectory.metadata),
            "steps": [
                {
                    "plan": step.plan,
                    "sketch": self._picture(f"{STEPS}/{name}-{i}-sketch.png", step.sketch),
                    "inspection": step.inspection,
                    "refined_plan": step.refined_plan,
                    "refined": self._picture(f"{STEPS}/{name}-{i}-refined.png", step.refined),
                }
                for i, step in enumerate(trajectory.steps, 1)
            ],
        }
        if trajectory.inputs:
            record["inputs"] = [
                self._picture(f"{STEPS}/{name}-{i}-input.png", image)
                for i, image in enumerate(trajectory.inputs, 1)
            ]
        return record

    def _picture(self, name: str, image: Image | None) -> str | None:
        if image is None:
            return None
        (self.folder / name).write_bytes(encode_png(image))
        return name

    def __exit__(self, kind: Any, *_: Any) -> None:
        self._file.close()
        if kind is not None:
            return
        part, whole = self.folder / PART, self.folder / f"{FINISHED}.tmp"
        with part.open("rb") as lines, whole.open("wb") as out:
            for _index, _sample, offset, count in sorted(self._places):
                lines.seek(offset)
                out.write(lines.read(count))
        whole.replace(self.folder / FINISHED)
        part.unlink()


def read(path: str | os.PathLike[str]) -> Iterator[Trajectory]:
    """Reads paintings back, one at a time; fields that are not known are ignored.

    Args:
      path: of `trajectories.jsonl` or `trajectories.part.jsonl`, or of the folder that holds the
        former. The last line of a part file may be cut off; it is left out.

    Raises:
      DataError: no such file, or a line that is not a painting; the text names the line.
    """
    file = _file(path)
    return (_load(record, file.parent, where) for record, where in _lines(file))


def lines(path: str | os.PathLike[str]) -> Iterator[dict[str, Any]]:
    """The lines of paintings as dicts, without their pictures; `load` reads one's pictures.

    Args:
      path: see `read`.

    Raises:
      DataError: no such file, or a line that is no JSON object; what it holds is not checked.
    """
    return (record for record, _ in _lines(_file(path)))


def load(record: Mapping[str, Any], folder: str | os.PathLike[str]) -> Trajectory:
    """The painting of a line, with its pictures out of the records' folder.

    Raises:
      DataError: the line is not a painting, or a picture cannot be read.
    """
    return _load(record, epath.Path(folder), f"painting in {folder}")


def unfinished(folder: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """What a run that goes on need not paint again: its lines, without those that were stopped.

    Raises:
      DataError: a line that is no JSON object with its place.
    """
    found: dict[tuple[int, int], dict[str, Any]] = {}
    for name in (FINISHED, EARLIER, PART):
        if not (epath.Path(folder) / name).exists():
            continue
        for record, where in _lines(epath.Path(folder) / name):
            place = _take(record, "index", (int,), where), _take(record, "sample", (int,), where)
            if record.get("finish_reason") != "stopped":
                found[place] = record
    return list(found.values())


def pictures(record: Mapping[str, Any]) -> int:
    """Number of painted pictures of a line."""
    steps = [step[name] for step in record["steps"] for name in ("sketch", "refined")]
    count = sum(name is not None for name in steps)
    return count if record["steps"] else int(record["final_image"] is not None)


def _file(path: str | os.PathLike[str]) -> epath.Path:
    file = epath.Path(path)
    if file.is_dir():
        file = file / FINISHED
    if not file.exists():
        raise DataError(f"no paintings at {file}")
    return file


def _lines(file: epath.Path) -> Iterator[tuple[dict[str, Any], str]]:
    """Each line's object, and where it stands."""
    with file.open("rb") as rows:
        for number, line in enumerate(rows, 1):
            if not line.endswith(b"\n") and file.name in (PART, EARLIER):
                return
            if not line.strip():
                continue
            where = f"{file}, line {number}"
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise DataError(f"{where}: {error}") from error
            if not isinstance(record, dict):
                raise DataError(f"{where}: wanted an object, got {str(record)[:40]!r}")
            yield record, where


def _load(record: Mapping[str, Any], folder: epath.Path, where: str) -> Trajectory:
    try:
        trajectory = _from_record(record, folder, where)
        validate(trajectory)
    except DataError:
        raise
    except (TrajectoryError, ValueError, RecursionError) as error:
        raise DataError(f"{where}: {error}") from error
    return trajectory


_NULL = type(None)
_NUMBER = (int, float)


def _take(record: Any, key: str, kinds: tuple[type, ...], where: str) -> Any:
    value = record.get(key) if isinstance(record, Mapping) else None
    known = isinstance(record, Mapping) and (key in record or _NULL in kinds)
    if not known or not isinstance(value, kinds) or isinstance(value, bool):
        names = " or ".join("null" if kind is _NULL else kind.__name__ for kind in kinds)
        raise DataError(f"{where}: {key!r} must be {names}, got {str(value)[:40]!r}")
    return value


def _image(record: Any, key: str, folder: epath.Path, where: str) -> Image | None:
    name = _take(record, key, (str, _NULL), where)
    return None if name is None else _image_file(name, folder, f"{where}: {key!r}")


def _image_file(name: str, folder: epath.Path, where: str) -> Image:
    # A file that somebody sends must not read others beside it.
    if "\0" in name or os.path.isabs(name) or ".." in name.replace("\\", "/").split("/"):
        raise DataError(f"{where} is not a path below the file's folder: {name[:80]!r}")
    try:
        return decode_image((folder / name).read_bytes())
    except OSError as error:
        raise DataError(f"{where}: cannot read {name[:80]!r}: {error.strerror}") from error


def _from_record(record: Any, folder: epath.Path, where: str) -> Trajectory:
    text = (str, _NULL)
    steps = []
    for i, item in enumerate(_take(record, "steps", (list,), where), 1):
        own = f"{where}, step {i}"
        steps.append(
            Step(
                plan=_take(item, "plan", (str,), own),
                sketch=_image(item, "sketch", folder, own),
                inspection=_take(item, "inspection", text, own),
                refined_plan=_take(item, "refined_plan", text, own),
                refined=_image(item, "refined", folder, own),
            )
        )
    inputs = _take(record, "inputs", (list, _NULL), where) or []
    if not all(isinstance(name, str) for name in inputs):
        raise DataError(f"{where}: 'inputs' must be a list of paths")
    return Trajectory(
        prompt=_take(record, "prompt", (str,), where),
        mode=_take(record, "mode", (str,), where),
        inputs=tuple(_image_file(name, folder, f"{where}: 'inputs'") for name in inputs),
        steps=tuple(steps),
        final_image=_image(record, "final_image", folder, where),
        text=_take(record, "text", text, where),
        finish_reason=_take(record, "finish_reason", text, where),
        metadata=_take(record, "metadata", (dict,), where),
        sampled=Sampled(
            index=_take(record, "index", (int,), where),
            sample=_take(record, "sample", (int,), where),
            seed=_take(record, "seed", (int,), where),
            nfe=_take(record, "nfe", (int,), where),
            seconds=_take(record, "seconds", _NUMBER, where),
        ),
    )
