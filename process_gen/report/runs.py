"""Reading back what painting and scoring left in a folder: one run of a comparison."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from process_gen.core.errors import DataError
from process_gen.core.trajectory import Trajectory
from process_gen.evaluation import judged
from process_gen.evaluation.differences import Limits
from process_gen.evaluation.judged import Judged
from process_gen.evaluation.strokes import verdicts
from process_gen.report.curves import read_history
from process_gen.sampling import records
from process_gen.strokes import oracle
from process_gen.strokes.scene import WORLDS

SCORES, RUN, HISTORY = "scores.json", "run.json", "metrics.jsonl"
# What says how a run was painted, in this order; the sampler's settings follow.
MADE_BY = (
    "checkpoint",
    "checkpoint_hash",
    "step",
    "weights",
    "mode",
    "seed",
    "num",
    "size",
    "prompts_hash",
    "dtype",
    "device",
    "jax",
    "commit",
    "command",
)


@dataclasses.dataclass(frozen=True)
class Run:
    """One side of a comparison.

    Attributes:
      name: what it is called in tables.
      folder: where it was found.
      scores: what `launch.evaluate` wrote; empty where nothing was scored.
      made_by: how it was painted: `MADE_BY`, and the sampler's settings by name.
      judged: its paintings one by one; empty where they are not there.
      history: of its training; empty where it is not there.
      records: file of its paintings; None where they are not there.
    """

    name: str
    folder: str
    scores: Mapping[str, Any]
    made_by: Mapping[str, Any]
    judged: Sequence[Judged]
    history: Sequence[Mapping[str, Any]]
    records: epath.Path | None


def read_run(path: str | os.PathLike[str], name: str) -> Run:
    """Reads a run: an output folder, a folder that holds one (a sweep's trial), or scores alone.

    Files are looked for in the folder itself, then up to two folders deeper; scores, verdicts and
    paintings of a run come from one folder, that of the scores where there are some.

    Raises:
      DataError: nothing to compare is there, a file is damaged, or there are several of a kind.
    """
    folder = epath.Path(path)
    if folder.is_file():
        return _of_file(folder, name)
    if not folder.is_dir():
        raise DataError(f"run {path}: no such folder or file")
    scores_file = find(folder, SCORES)
    if scores_file is None:
        lines = find(folder, records.FINISHED)
    else:  # a nearer folder may hold other paintings, which nobody scored
        beside = scores_file.parent / records.FINISHED
        lines = beside if beside.exists() else None
    near = (scores_file or lines or folder / SCORES).parent
    scores = _json(scores_file) if scores_file else {}
    about = scores or (_json(near / RUN) if (near / RUN).exists() else {})
    history = _history(find(folder, HISTORY), about.get("checkpoint"))
    if not scores and lines is None and not history:
        raise DataError(
            f"run {path} holds none of {SCORES}, {records.FINISHED} and {HISTORY}; paint and score "
            "it with launch.evaluate"
        )
    return Run(name, str(path), scores, _made_by(about), _judged(near, lines), history, lines)


def find(folder: epath.Path, name: str) -> epath.Path | None:
    """The only file of that name in a folder, or up to two folders deeper; the nearest.

    Raises:
      DataError: several are equally near.
    """
    for pattern in (name, f"*/{name}", f"*/*/{name}"):
        found = sorted(folder.glob(pattern))
        if len(found) > 1:
            some = ", ".join(str(file) for file in found[:3])
            raise DataError(f"run {folder} holds several {name} ({some}); name one of the folders")
        if found:
            return found[0]
    return None


def limits(scores: Mapping[str, Any], prefix: str = "") -> dict[str, Limits]:
    """The rates of a file of scores by dotted name: those that have a `_low` and a `_high`."""
    found: dict[str, Limits] = {}
    for name, value in scores.items():
        if isinstance(value, Mapping):
            found |= limits(value, f"{prefix}{name}.")
        elif f"{name}_low" in scores and isinstance(value, int | float):
            low, high = scores[f"{name}_low"], scores[f"{name}_high"]
            found[f"{prefix}{name}"] = Limits(value, low, high)
    return found


def _of_file(file: epath.Path, name: str) -> Run:
    """Scores alone, or what a sweep recorded of a trial."""
    found = _json(file)
    scores = found["scores"] if isinstance(found.get("scores"), Mapping) else found
    if not limits(scores):
        raise DataError(f"run {file}: no scores in it")
    return Run(name, str(file), scores, _made_by(scores), (), (), None)


def _json(file: epath.Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text())
    except ValueError as error:
        raise DataError(f"{file} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise DataError(f"{file} holds no JSON object")
    return found


def _made_by(about: Mapping[str, Any]) -> dict[str, Any]:
    settings = about.get("settings")
    found = {name: about[name] for name in MADE_BY if name in about}
    return found | (dict(settings) if isinstance(settings, Mapping) else {})


def _history(file: epath.Path | None, checkpoint: Any) -> list[dict[str, Any]]:
    if file is None and isinstance(checkpoint, str):  # of the run that the checkpoint belongs to
        file = epath.Path(checkpoint).parent.parent / HISTORY
    return read_history(file) if file is not None and file.exists() else []


def _judged(folder: epath.Path, lines: epath.Path | None) -> list[Judged]:
    if (folder / judged.FILE).exists():
        return list(judged.read(folder / judged.FILE))
    if lines is None:
        return []
    # Nobody kept the verdicts; the oracle knows what its own prompts ask for.
    return [
        judged.of_record(record, strokes_verdicts(records.load(record, lines.parent)))
        for record in records.lines(lines)
    ]


def strokes_verdicts(trajectory: Trajectory) -> dict[str, bool] | None:
    """What the oracle says; None without a requirement that it knows, or in another size.

    Which Strokes world it is follows from the requirement's words and the picture's size.
    """
    image = trajectory.final_image
    for world in WORLDS.values():
        if image is None or image.shape[:2] == (world.size, world.size):
            judge = functools.partial(oracle.judge, world=world)
            found = verdicts(trajectory, judge, world)
            if found is not None:
                return found
    return None
