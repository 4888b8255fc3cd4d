"""Watches a run's numbers: updates that were left out, and losses that jump.

A step says itself whether its update was made (`state.advance`); this reads the answer when the
next step is on its way, counts, keeps the batch, and ends a run that only goes on failing. What it
remembers is part of a checkpoint, so that a run that was cut off decides as one that was not.
"""

from __future__ import annotations

import io
import json
import logging
import statistics
from collections import deque
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath

from process_gen.core.configs import Config
from process_gen.core.errors import ProcessGenError
from process_gen.train import metrics as metrics_lib

_WINDOW = 50  # losses that a spike is judged by
_MAX_DUMPS = 20  # batches kept of a run

_log = logging.getLogger("process_gen")


class TrainingError(ProcessGenError):
    """Training cannot go on."""


class Rollback(Exception):  # noqa: N818  (no error: the run goes on)
    """The run shall go back to its last checkpoint; its guard knows what to leave out then."""


class _Watched(NamedTuple):
    step: int
    draw: int
    batch: Any
    finite: jax.Array
    loss: jax.Array


class Guard:
    """Counts what went wrong with a run's numbers, and stops it where that is too much.

    Args:
      config: of the run.
      workdir: of the run; offending batches go to its folder `skipped`.
      state: `state()` of a checkpoint; by default that of a new run at step `step`.
      step: updates made so far.
    """

    def __init__(
        self,
        config: Config,
        workdir: epath.PathLike,
        state: Mapping[str, Any] | None = None,
        step: int = 0,
    ) -> None:
        state = state or {}
        self._config, self._workdir = config, epath.Path(workdir)
        self._settings = config.train
        self._folder = self._workdir / "skipped"
        self._draws = int(state.get("draws", step))
        self._skipped = int(state.get("skipped", 0))
        self._in_a_row = int(state.get("in_a_row", 0))
        self._spikes = int(state.get("spikes", 0))
        self._rollbacks = int(state.get("rollbacks", 0))
        self._left_out = set(state.get("left_out", ()))
        self._losses = deque(map(float, state.get("losses", ())), _WINDOW)
        self._watched: _Watched | None = None

    def state(self) -> dict[str, Any]:
        """A small JSON object; what `settle` has seen is in it."""
        return {
            "draws": self._draws,
            "skipped": self._skipped,
            "in_a_row": self._in_a_row,
            "spikes": self._spikes,
            "rollbacks": self._rollbacks,
            "left_out": sorted(self._left_out),
            "losses": list(self._losses),
        }

    def counters(self) -> dict[str, float]:
        """For the log, over the whole run so far; empty while nothing was ever wrong."""
        counts = {
            "skipped_updates": self._skipped,
            "loss_spikes": self._spikes,
            "rollbacks": self._rollbacks,
        }
        return (
            {name: float(count) for name, count in counts.items()} if any(counts.values()) else {}
        )

    def draw(self, dataset: Any) -> Any:
        """The next batch, without those that a rollback leaves out."""
        while True:
            batch = next(dataset)
            self._draws += 1
            if self._draws not in self._left_out:
                return batch

    def watch(self, step: int, batch: Any, step_metrics: metrics_lib.StepMetrics) -> None:
        """Remembers the step that was just started, for `settle`.

        Args:
          step: updates with this one.
          batch: of this step, as it came from the data.
          step_metrics: with `finite`; of a step that does not say, nothing is watched.
        """
        if "finite" not in step_metrics:
            return
        finite, loss = step_metrics["finite"][0], step_metrics["loss"][0]
        finite.copy_to_host_async()
        if self._settings.spike_factor:
            loss.copy_to_host_async()
        self._watched = _Watched(step, self._draws, batch, finite, loss)

    def settle(self) -> None:
        """Judges the watched step; waits for it, unless it is over.

        Raises:
          TrainingError: too many updates in a row were left out, or too many rollbacks asked for.
          Rollback: the loss jumped, and the run may go back.
        """
        if self._watched is None:
            return
        watched, self._watched = self._watched, None
        if not bool(watched.finite):
            self._skip(watched)
            return
        self._in_a_row = 0
        if self._settings.spike_factor:
            self._judge(watched, float(watched.loss))

    def _skip(self, watched: _Watched) -> None:
        self._skipped += 1
        self._in_a_row += 1
        where = self._dump(watched)
        _log.warning(
            "step %d: the loss or a gradient is not finite, the update was left out (%d so far); "
            "%s",
            watched.step,
            self._skipped,
            where,
        )
        if self._in_a_row > self._settings.max_skipped:
            raise TrainingError(
                f"{self._in_a_row} updates in a row were left out, up to step {watched.step}, "
                "because the loss or a gradient was not finite; lower optimizer.learning_rate or "
                f"optimizer.clip_norm, or look at the data: {where}. The last checkpoint is good; "
                "train.max_skipped is how many in a row are borne"
            )

    def _judge(self, watched: _Watched, loss: float) -> None:
        usual = statistics.median(self._losses) if len(self._losses) == _WINDOW else None
        if usual is None or loss <= self._settings.spike_factor * usual:
            self._losses.append(loss)
            return
        self._spikes += 1
        words = f"step {watched.step}: the loss jumped to {loss:.4g} from a median of {usual:.4g}"
        if not self._settings.max_rollbacks:
            self._losses.append(loss)
            _log.warning("%s (%d so far); %s", words, self._spikes, self._dump(watched))
            return
        if self._rollbacks >= self._settings.max_rollbacks:
            raise TrainingError(
                f"{words}, after train.max_rollbacks={self._rollbacks} rollbacks; lower "
                f"optimizer.learning_rate, or look at the data: {self._dump(watched)}"
            )
        self._rollbacks += 1
        self._left_out.add(watched.draw)
        _log.warning(
            "%s; going back to the last checkpoint, batch %d of the run will be left out; %s",
            words,
            watched.draw,
            self._dump(watched),
        )
        raise Rollback

    def resumed(self, state: Mapping[str, Any] | None, step: int) -> Guard:
        """The guard after a rollback to a checkpoint with `state`, which knows less than this."""
        new = Guard(self._config, self._workdir, state, step)
        new._spikes, new._rollbacks = self._spikes, self._rollbacks
        new._left_out = set(self._left_out)
        return new

    def _dump(self, watched: _Watched) -> str:
        """Writes this process's rows of a batch; says where, or why not."""
        if self._skipped + self._spikes > _MAX_DUMPS:
            return f"{_MAX_DUMPS} such batches are kept in {self._folder}"
        name = f"step_{watched.step}_process_{jax.process_index()}.npz"
        arrays = {
            jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
            for path, leaf in jax.tree.leaves_with_path(watched.batch)
        }
        facts = {"step": watched.step, "batch_of_the_run": watched.draw}
        buffer = io.BytesIO()
        np.savez_compressed(buffer, facts=np.asarray(json.dumps(facts)), **arrays)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            (self._folder / name).write_bytes(buffer.getvalue())
        except OSError as error:  # a full disk does not end a run
            return f"its batch could not be kept ({error})"
        return f"its batch is in {self._folder / name}"
