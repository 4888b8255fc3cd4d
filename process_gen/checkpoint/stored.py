"""What lies in a checkpoint's folder: finding it, reading it, judging it.

`manager` says what the parts of a checkpoint are.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
from etils import epath
from orbax.checkpoint import v1 as ocp

from process_gen.checkpoint import integrity
from process_gen.checkpoint.integrity import DamagedError
from process_gen.core import configs
from process_gen.core.errors import CheckpointError, ConfigError

FORMAT_VERSION = 2
Restore = Literal["latest", "best"] | int

# Seconds that all processes together may take to write a checkpoint. Where the write of one fails,
# the others wait for it that long, in the background, before the save has failed for all.
SAVE_LIMIT = 1200

_WHOLE = "commit_success.txt"  # what orbax writes last

_log = logging.getLogger("process_gen")


def absolute(path: epath.PathLike) -> epath.Path:
    """The path as Orbax wants it; a remote one, such as gs://, is absolute already."""
    return epath.Path(path) if "://" in str(path) else epath.Path(path).resolve()


def score(name: str, value: float | None) -> float:
    """Ranks values of a metric, larger is better: "...exact" rises, everything else falls."""
    if value is None or math.isnan(value):
        return -math.inf
    return value if name.endswith("exact") else -value


def metric(metrics: Any, name: str) -> float | None:
    """One of the metrics of a validation, None where there was none."""
    return (metrics or {}).get(name)


def open_context(before_commit: Callable[[], None] | None = None) -> ocp.Context:
    """How orbax reads and writes the parts of a checkpoint; used in a `with` block.

    Args:
      before_commit: called when the files of a checkpoint are there and it is not yet visible.
    """
    registry = ocp.handlers.local_registry()
    for name in ("data", "meta"):  # plain JSON files, readable without orbax
        registry.add(ocp.handlers.JsonHandler, checkpointable_name=name)
    context = ocp.Context()
    context.checkpointables.registry = registry
    context.asynchronous.post_finalization_callback = before_commit
    context.asynchronous.timeout_secs = SAVE_LIMIT
    return context


def steps_in(directory: epath.Path) -> list[int]:
    """Steps under a `checkpoints` folder, rising; unfinished ones have other names, or no mark."""
    if not directory.exists():
        return []
    found = [path for path in directory.iterdir() if path.name.isdigit()]
    if "://" in str(directory):  # folders of a bucket cannot be renamed when they are whole
        found = [path for path in found if (path / _WHOLE).exists()]
    return sorted(int(path.name) for path in found)


def step_path(directory: epath.Path, step: int | str) -> epath.Path:
    """The folder of a step, of the newest or of the best, under a `checkpoints` folder."""
    steps = steps_in(directory)
    if not steps:
        raise CheckpointError(f"no checkpoint in {directory}; is this a run's working directory?")
    if step == "latest":
        return directory / str(steps[-1])
    if step == "best":
        metas = {}
        for s in steps:
            with contextlib.suppress(DamagedError):  # it cannot say how good it is
                metas[s] = read_meta(directory / str(s))

        def rank(s: int) -> float:
            name = metas[s]["best_metric"]
            return score(name, metric(metas[s]["metrics"], name))

        best = max(metas, key=rank, default=None)
        if best is None or rank(best) == -math.inf:
            raise CheckpointError(f"no checkpoint in {directory} was validated: there is no best")
        return directory / str(best)
    if step not in steps:
        raise CheckpointError(f"no checkpoint of step {step} in {directory}; there are {steps}")
    return directory / str(step)


def load(path: epath.Path, abstract: Mapping[str, Any]) -> dict[str, Any]:
    """Reads parts of a checkpoint as they are described."""
    with _guard(path), open_context():
        return ocp.load_checkpointables(path, dict(abstract))


def read_meta(path: epath.Path) -> dict[str, Any]:
    """The part `meta` of a checkpoint, as this version would have written it."""
    if not (path / "meta").exists():
        raise DamagedError(f"{path} has no part meta: it is no checkpoint of process_gen")
    integrity.check(path, ("meta",))
    return migrate(load(path, {"meta": None})["meta"], path)


def migrate(meta: Any, path: epath.Path) -> dict[str, Any]:
    """What a checkpoint's `meta` would be had this version written it.

    Format 1 knows neither `restore` nor a guard of the numbers (`train.guard`), and has no sums of
    its files.

    Raises:
      DamagedError: it is no JSON object with a format.
      CheckpointError: a later version wrote it.
    """
    found = meta.get("format_version") if isinstance(meta, dict) else None
    if not isinstance(found, int):
        raise DamagedError(f"{path} is no checkpoint of process_gen: its meta names no format")
    if not 1 <= found <= FORMAT_VERSION:
        raise CheckpointError(
            f"checkpoint {path} has format {found}, this version reads 1 to {FORMAT_VERSION}; "
            "a newer process_gen wrote it"
        )
    if found == 1:
        meta = {"restore": "latest", "guard": None, **meta, "format_version": 2}
    return meta


def newest_meta(directory: epath.Path) -> dict[str, Any] | None:
    """Of the newest checkpoint that has one, or None."""
    for step in reversed(steps_in(directory)):
        try:
            return read_meta(directory / str(step))
        except DamagedError:
            continue
    return None


def problem(path: epath.Path, wanted: Mapping[str, Any]) -> str | None:
    """What speaks against reading `wanted` from a checkpoint, or None.

    Raises:
      CheckpointError: a later version wrote it; an older checkpoint is no way out.
    """
    try:
        read_meta(path)
        if not integrity.check(path, share=integrity.own_share()):
            _log.info("checkpoint %s has no sums of its files to compare with", path)
        for part, tree in wanted.items():
            if not (path / part).exists():
                raise DamagedError(f"checkpoint {path} is damaged: it has no part {part}")
            _check_arrays(part, stored_shapes(path, part), tree, path)
    except DamagedError as error:
        return str(error)
    return None


def stored_shapes(path: epath.Path, part: str) -> Any:
    """Tree of a part's arrays, each with `shape` and `dtype`."""
    with _guard(path), open_context():
        found = ocp.checkpointables_metadata(path).metadata[part]
        if found is None:
            raise OSError(f"{part} cannot be read")
    return found


def _check_arrays(part: str, stored: Any, wanted: Any, path: epath.Path) -> None:
    """Compares names, shapes and types of arrays.

    Raises:
      DamagedError: names the first array that differs.
    """
    have, want = (
        {
            jax.tree_util.keystr(at, simple=True, separator="/"): (
                f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"
            )
            for at, leaf in jax.tree.leaves_with_path(tree)
        }
        for tree in (stored, wanted)
    )
    for name in sorted(have.keys() | want.keys()):
        if have.get(name) != want.get(name):
            raise DamagedError(
                f"checkpoint {path} is damaged or of another model: {part}/{name} is "
                f"{have.get(name, 'missing')} there and {want.get(name, 'unknown')} here"
            )


def check_shapes(stored: Any, wanted: Any, path: epath.Path) -> None:
    """Compares names and shapes of weights."""
    have, want = (
        {
            jax.tree_util.keystr(at, simple=True, separator="/"): tuple(leaf.shape)
            for at, leaf in jax.tree.leaves_with_path(tree)
        }
        for tree in (stored, wanted)
    )
    for name in sorted(have.keys() | want.keys()):
        if have.get(name) != want.get(name):
            raise CheckpointError(
                f"checkpoint {path} is of another model: weight {name} has shape "
                f"{have.get(name, 'none')} there and {want.get(name, 'none')} here"
            )


class _guard:  # noqa: N801  (reads as a statement)
    """Turns whatever a storage library raises into one line about the checkpoint."""

    def __init__(self, path: epath.Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        if not self._path.exists():
            raise CheckpointError(f"no checkpoint at {self._path}")

    def __exit__(self, kind: Any, error: BaseException | None, _: Any) -> None:
        if error is None or not isinstance(error, Exception):
            return
        if isinstance(error, CheckpointError):
            return
        raise DamagedError(
            f"checkpoint {self._path} is damaged or of another model ({root_cause(error)})"
        ) from error


def root_cause(error: BaseException) -> str:
    """The first line of what an error goes back to."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200]


def read_config(meta: Mapping[str, Any], path: epath.Path) -> configs.Config:
    """The settings in a checkpoint's `meta`."""
    try:
        return configs.from_mapping(meta["config"])
    except ConfigError as error:
        raise CheckpointError(f"the settings in {path} cannot be read: {error}") from error
