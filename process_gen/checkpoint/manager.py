"""Checkpoints of a run: written by the training loop, read by everything else.

A working directory holds `config.json` (the resolved settings, for people) and
`checkpoints/<step>/` with one folder per part:

    params     weights
    ema        averaged weights, where the run keeps them
    optimizer  state of the update rule, `step` and `total_steps`
    data       state of the data iterator, JSON
    meta       settings, versions, step, validation metrics, hashes of packing plan and tokenizer,
               JSON
    hashes.json  sizes and SHA-256 sums of all files (`integrity`)

Parts are separate so that a reader takes the weights and leaves the rest. Orbax (its v1 interface)
writes them in the background and makes a step visible only when it is whole.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.metadata
import json
import logging
import platform
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
from etils import epath
from orbax.checkpoint import v1 as ocp

from process_gen.checkpoint import adapters, integrity
from process_gen.checkpoint.integrity import DamagedError
from process_gen.checkpoint.stored import (
    FORMAT_VERSION,
    Restore,
    absolute,
    check_shapes,
    load,
    metric,
    migrate,
    newest_meta,
    open_context,
    problem,
    read_config,
    read_meta,
    root_cause,
    score,
    step_path,
    steps_in,
    stored_shapes,
)
from process_gen.core import configs, trees
from process_gen.core.errors import CheckpointError

# Settings that a run may change when it goes on; all others decide what its numbers mean.
_FREE = (
    *("train", "mesh", "sampler", "data.prefetch", "data.workers", "data.timeout", "data.strict"),
    *("model.layers", "model.remat", "model.attention"),
    *("loss.vocab_chunk", "optimizer.accumulate", "optimizer.ema_memory"),
)
_FIXED = ("train.seed",)
_PARTIAL = ".orbax-checkpoint-tmp"  # what a folder that is being written is called
_LATE = (TimeoutError, jax.errors.JaxRuntimeError)  # other processes were not there in time
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "process_gen")

_log = logging.getLogger("process_gen")


class CheckpointManager:
    """Saves one run and finds what it saved. Use it as a context manager, or call `close`.

    Args:
      workdir: of the run, local or remote (`gs://`).
      config: of the run.

    Raises:
      CheckpointError: the directory holds checkpoints of another config; nothing was written.
    """

    def __init__(self, workdir: epath.PathLike, config: configs.Config) -> None:
        self._config = config
        self.workdir = absolute(workdir)
        self.directory = self.workdir / "checkpoints"
        check_workdir(workdir, config)
        name = config.train.best_metric
        policies = ocp.training.preservation_policies
        best = policies.BestN(
            get_metric_fn=lambda metrics: score(name, metric(metrics, name)),
            n=1,
            keep_checkpoints_without_metrics=False,
        )
        wanted: list[Any] = [policies.LatestN(config.train.keep), best]
        if config.train.keep_every:
            wanted.append(policies.EveryNSteps(config.train.keep_every))
        # Any: orbax annotates its own policies with another class than the checkpointer asks for.
        kept: Any = policies.AnyPreservationPolicy(wanted)
        self._checkpointer = ocp.training.Checkpointer(
            self.directory,
            # A function of its own: orbax copies what it is given, and with a method its object.
            context=open_context(lambda: self._before_commit()),
            preservation_policy=kept,
            cleanup_tmp_directories=True,
        )
        self._restored_as: Restore = "latest"
        self._writing: int | None = None
        self._response: Any = None  # of orbax to the save that is being written
        self._broken: str | None = None  # why it could not even begin
        self._failure: str | None = None  # of the newest save that is over
        self._failed = 0
        if jax.process_index() == 0:
            text = json.dumps(configs.to_mapping(config), indent=2) + "\n"
            (self.workdir / "config.json").write_text(text)

    def __enter__(self) -> CheckpointManager:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, _: Any) -> None:
        try:
            self.close(alone=error is not None)
        except CheckpointError as own:
            if error is None:
                raise
            _log.warning("%s", own)

    @property
    def latest_step(self) -> int | None:
        """Step of the newest checkpoint, None where there is none."""
        latest = self._checkpointer.latest
        return None if latest is None else latest.step

    @property
    def best_value(self) -> float | None:
        """The best value of `train.best_metric` among the kept checkpoints."""
        name = self._config.train.best_metric
        found = [metric(c.metrics, name) for c in self._checkpointer.checkpoints]
        values = [value for value in found if value is not None]
        return max(values, key=lambda v: score(name, v), default=None)

    def counters(self) -> dict[str, float]:
        """For the log: saves that failed since this process began; empty while there are none."""
        return {"failed_saves": float(self._failed)} if self._failed else {}

    def save(
        self,
        step: int,
        trees: Mapping[str, Any],
        data: Mapping[str, Any],
        meta: Mapping[str, Any],
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Starts writing a checkpoint and returns when the arrays may be changed again.

        A save that fails, such as for a full disk, is reported, counted, and leaves the older
        checkpoints alone; only `close` makes an error of it, if no later one went well. One that
        fails in one of several processes fails in all (`wait`).

        Args:
          step: updates made so far; a step that is there already is left as it is.
          trees: `params`, `optimizer` and perhaps `ema`, trees of arrays; None is left out.
          data: JSON state of the data iterator, which must not have been asked for the next batch.
          meta: further JSON facts; settings, versions and step are added.
          metrics: of the validation at this very step, if there was one.
        """
        self.wait()
        if step == self.latest_step:
            return
        facts = {
            "format_version": FORMAT_VERSION,
            "step": step,
            "config": configs.to_mapping(self._config),
            "versions": versions(),
            "plan_hash": data.get("plan_hash"),
            "tokenizer": data.get("tokenizer"),
            "best_metric": self._config.train.best_metric,
            "metrics": metrics,
            "restore": self._restored_as,
            **meta,
        }
        parts = {name: tree for name, tree in trees.items() if tree is not None}
        self._writing = step
        try:
            self._response = self._checkpointer.save_checkpointables_async(
                step,
                {**parts, "data": dict(data), "meta": facts},
                force=True,
                metrics=None if metrics is None else dict(metrics),
            )
        except Exception as error:  # whatever a storage library raises
            self._broken = root_cause(error)
            if jax.process_count() == 1:
                self.wait()

    def restore(
        self, abstract: Mapping[str, Any], which: Restore = "latest"
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        """Reads a checkpoint back into the given shardings.

        Its files are compared with their sums, its arrays with the shapes and types wanted. A
        newest one that is damaged is set aside (`integrity.set_aside`) for the one before it. When
        another than the newest is asked for, the newer ones are set aside; the checkpoints that
        the run writes from there on remember it, so that the same question, asked again by a
        restarted command, means the newest of those.

        Args:
          abstract: like `save`'s trees, of `jax.ShapeDtypeStruct`s with shardings.
          which: "latest", "best" by `train.best_metric`, or a step.

        Returns:
          `(trees, data, meta)`; `meta` is as this version would have written it.

        Raises:
          CheckpointError: there is none, the one asked for is damaged, or all are.
        """
        self.wait()
        wanted = {name: tree for name, tree in abstract.items() if tree is not None}
        there = steps_in(self.directory)
        if which != "latest" and there:
            newest = newest_meta(self.directory)
            if newest is None or newest.get("restore") != which:
                there = [int(step_path(self.directory, which).name)]
            self._restored_as = which
        problems: list[tuple[int, str]] = []
        for step in reversed(there):
            path = self.directory / str(step)
            wrong = integrity.agreed(problem(path, wanted))
            if wrong is None:
                self._forget([s for s in steps_in(self.directory) if s > step], dict(problems))
                loaded = load(path, {"data": None, "meta": None, **wanted})
                data, meta = loaded.pop("data"), migrate(loaded.pop("meta"), path)
                return loaded, data, meta
            problems.append((step, wrong))
        if not problems:
            step_path(self.directory, "latest")  # says that there is none
        others = f"; the older ones are no better: {problems[1:]}" if problems[1:] else ""
        raise DamagedError(f"{problems[0][1]}{others}")

    def _forget(self, newer: Sequence[int], problems: Mapping[int, str]) -> None:
        """Sets checkpoints aside: damaged ones, and those after the one that was asked for."""
        if not newer:
            return
        for step in newer:
            if jax.process_index() == 0:
                why = problems.get(step, f"the run goes on from an older one than {step}")
                place = integrity.set_aside(self.directory / str(step), self.workdir)
                _log.warning("%s; it was set aside as %s", why, place)
        integrity.agreed(None)  # the others wait until it is done
        self._checkpointer.reload()

    def wait(self, alone: bool = False) -> None:
        """Waits until the last save is over; one that failed is reported.

        All processes must call it, and find the same: a save that failed in one of them failed.
        The others learn of it when they have waited for its files for `stored.SAVE_LIMIT`.

        Args:
          alone: do not ask the others, which may not be here: this process ends with an error.
        """
        if self._writing is None:
            return
        wrong, self._broken = self._broken or self._outcome(), None
        found = [wrong] if alone else integrity.gathered(wrong)
        if any(found):
            several = len(found) > 1
            self._report(
                "; ".join(f"process {n}: {w}" if several else w for n, w in enumerate(found) if w)
            )
        else:
            self._writing, self._failure = None, None

    def _outcome(self) -> str | None:
        """Waits for the writing threads of this process; returns what went wrong."""
        response, self._response = self._response, None
        try:
            if response is not None:
                response.result()  # else its thread and three open files would stay
            self._checkpointer.wait()
        except Exception as error:  # whatever a storage library raises
            with contextlib.suppress(Exception):  # orbax says it to each who waits
                self._checkpointer.wait()
            while isinstance(error, _LATE) and isinstance(error.__context__, Exception):
                error = error.__context__  # this process failed, then waited for the others
            return root_cause(error)
        return None

    def _before_commit(self) -> None:
        """Called by the first process's writing thread when all files are there."""
        partial = self.directory / f"{self._writing}{_PARTIAL}"
        integrity.record(partial if partial.exists() else self.directory / str(self._writing))

    def _report(self, why: str) -> None:
        step, self._writing = self._writing, None
        self._failed += 1
        self._failure = f"the checkpoint of step {step} could not be written ({why})"
        partial = self.directory / f"{step}{_PARTIAL}"
        if jax.process_index() == 0 and partial.exists():
            partial.rmtree(missing_ok=True)
        self._checkpointer.reload()
        _log.warning(
            "%s; the run goes on, its newest checkpoint is %s", self._failure, self.latest_step
        )

    def close(self, alone: bool = False) -> None:
        """Waits until everything is written; `alone` is that of `wait`.

        Raises:
          CheckpointError: the last save failed.
        """
        self.wait(alone)
        newest = self.latest_step
        self._checkpointer.close()
        if self._failure:
            raise CheckpointError(
                f"{self._failure}; the newest is of step {newest}. Make room, then start the same "
                "command again to go on from there"
            )


def check_workdir(workdir: epath.PathLike, config: configs.Config) -> None:
    """Makes sure that a run with `config` may go on in `workdir`; writes nothing.

    An empty directory will do, and one whose checkpoints differ in nothing but what may change
    (docs/checkpoints.md lists it).

    Raises:
      CheckpointError: names the settings that differ.
    """
    if not steps(workdir):
        return
    directory = absolute(workdir) / "checkpoints"
    meta = newest_meta(directory)
    if meta is None:
        return  # reading one will say what is wrong with all of them
    path = directory / str(meta["step"])
    saved = _flatten(json.loads(json.dumps(configs.to_mapping(read_config(meta, path)))))
    wanted = _flatten(json.loads(json.dumps(configs.to_mapping(config))))
    different = [
        f"{key} is {saved.get(key)!r} there and {wanted.get(key)!r} here"
        for key in sorted(saved.keys() | wanted.keys())
        if saved.get(key) != wanted.get(key) and not _may_change(key)
    ]
    if different:
        more = f", and {len(different) - 3} more" if len(different) > 3 else ""
        raise CheckpointError(
            f"{path} belongs to another config: {', '.join(different[:3])}{more}; "
            "choose another working directory"
        )


def load_for_sampling(
    path: epath.PathLike,
    weights: Literal["ema", "params"] = "ema",
    step: int | Literal["latest", "best"] = "latest",
    like: Any = None,
) -> tuple[configs.Config, Any, dict[str, Any]]:
    """Loads the settings and one set of weights, without the optimiser's state.

    Args:
      path: a run's working directory, or one checkpoint `.../checkpoints/<step>` in it.
      weights: the averaged weights (of a run that keeps none, the plain ones) or the plain ones.
      step: which checkpoint of a working directory; "best" is by its `train.best_metric`.
      like: tree of `jax.ShapeDtypeStruct`s with shardings, which the weights must fit and are
        placed and cast by; by default they go to the first device as they are.

    Returns:
      `(config, params, meta)`; `params` is a nested dict; `meta` is the checkpoint's, and its
      `weights` and `path` tell what was loaded. Adapters are worked into the weights: both `params`
      and `config` are those of a model without them.

    Raises:
      CheckpointError: nothing is there, or it is damaged, of another shape than `like`, or its
        settings cannot be read.
    """
    chosen, weights, config, meta = find(path, weights, step)
    integrity.check(chosen, ("params", weights, "meta"), integrity.own_share())
    stored = stored_weights(chosen, weights)
    if like is None:
        first = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        like = jax.tree.map(
            lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=first),
            adapters.without(stored),
        )
    check_shapes(adapters.without(stored), like, chosen)
    params = _load_weights(chosen, weights, adapters.beside(stored, like))
    if config.model.lora.rank:
        shardings = jax.tree.map(lambda s: s.sharding, like)
        merge = functools.partial(adapters.merge, scale=config.model.lora.scale)
        base, halves = adapters.split(params)
        params = jax.jit(merge, donate_argnums=0, out_shardings=shardings)(base, halves)
        plain = dataclasses.replace(config.model, lora=configs.LoraConfig())
        config = dataclasses.replace(config, model=plain)
    return config, params, {**meta, "weights": weights, "path": str(chosen)}


def find(
    path: epath.PathLike,
    weights: Literal["ema", "params"] = "ema",
    step: int | Literal["latest", "best"] = "latest",
) -> tuple[epath.Path, Literal["ema", "params"], configs.Config, dict[str, Any]]:
    """Chooses a checkpoint and reads its settings; the arguments are `load_for_sampling`'s.

    Returns:
      `(folder, weights, config, meta)`; `weights` is the part that is there.

    Raises:
      CheckpointError: there is none, or it has lost the averaged weights that it was written with.
    """
    root = absolute(path)
    if (root / "meta").exists():
        chosen = root
    elif (root / "checkpoints").exists():
        chosen = step_path(root / "checkpoints", step)
    else:
        chosen = step_path(root, step)
    meta = read_meta(chosen)
    config = read_config(meta, chosen)
    if weights == "ema" and not (chosen / "ema").exists():
        if integrity.was_written(chosen, "ema"):
            raise DamagedError(
                f"checkpoint {chosen} is damaged: its part ema, the averaged weights, is missing; "
                "put it back, or, where a command has --weights, take --weights=params"
            )
        weights = "params"
    return chosen, weights, config, meta


def settings_in(workdir: epath.PathLike) -> configs.Config | None:
    """Settings of a run's newest checkpoint that can be read; None where there is none.

    A damaged newest one is no reason to stop: restoring will set it aside.
    """
    directory = absolute(workdir) / "checkpoints"
    meta = newest_meta(directory)
    return None if meta is None else read_config(meta, directory / str(meta["step"]))


def steps(workdir: epath.PathLike) -> list[int]:
    """Steps of a run's finished checkpoints, rising; the same on every process of a run."""
    return steps_in(absolute(workdir) / "checkpoints")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide what a checkpoint means."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def _load_weights(path: epath.Path, weights: str, like: Any) -> Any:
    """Reads `like`; what has no average of its own, because it is not trained, from the weights."""
    own = stored_shapes(path, weights)
    wanted = {weights: trees.take(like, own)}
    if weights != "params":
        rest = trees.overlay(like, jax.tree.map(lambda _: ocp.PLACEHOLDER, own))
        if any(leaf is not ocp.PLACEHOLDER for leaf in jax.tree.leaves(rest)):
            wanted["params"] = rest
    loaded = load(path, wanted)
    return trees.overlay(loaded.get("params", loaded[weights]), loaded[weights])


def stored_weights(path: epath.Path, weights: str) -> dict[str, Any]:
    """Like `stored_shapes`, of all weights: averages where they are kept, else plain ones."""
    return trees.overlay(stored_shapes(path, "params"), stored_shapes(path, weights))


def _may_change(key: str) -> bool:
    return key not in _FIXED and any(key == f or key.startswith(f + ".") for f in _FREE)


def _flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted keys of nested dicts and lists."""
    if isinstance(tree, dict) and tree:
        items = tree.items()
    elif isinstance(tree, list) and tree:
        items = enumerate(tree)
    else:
        return {prefix: tree}
    flat = {}
    for key, value in items:
        flat.update(_flatten(value, f"{prefix}.{key}" if prefix else str(key)))
    return flat
