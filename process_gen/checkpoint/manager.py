"""Checkpoints of a run: written by the training loop, read by everything else.

A working directory holds `config.json` (the resolved settings, for people) and
`checkpoints/<step>/` with one folder per part:

    params     weights
    ema        averaged weights, where the run keeps them
    optimizer  state of the update rule, `step` and `total_steps`
    data       state of the data iterator, JSON
    meta       settings, versions, step, validation metrics, hashes of packing plan and tokenizer,
               JSON

Parts are separate so that a reader takes the weights and leaves the rest. Orbax (its v1 interface)
writes them in the background and makes a step visible only when it is whole.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import json
import math
import platform
from collections.abc import Mapping
from typing import Any, Literal

import jax
from etils import epath
from orbax.checkpoint import v1 as ocp

from process_gen.checkpoint import adapters
from process_gen.core import configs, trees
from process_gen.core.errors import CheckpointError, ConfigError

FORMAT_VERSION = 1

# Settings that a run may change when it goes on; all others decide what its numbers mean.
_FREE = (
    *("train", "mesh", "sampler", "data.prefetch", "data.workers", "data.strict"),
    *("model.layers", "model.remat", "model.attention"),
    *("loss.vocab_chunk", "optimizer.accumulate", "optimizer.ema_memory"),
)
_FIXED = ("train.seed",)
_WHOLE = "commit_success.txt"  # what orbax writes last
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "process_gen")


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
            get_metric_fn=lambda metrics: score(name, _metric(metrics, name)),
            n=1,
            keep_checkpoints_without_metrics=False,
        )
        # Any: orbax annotates its own policies with another class than the checkpointer asks for.
        kept: Any = policies.AnyPreservationPolicy([policies.LatestN(config.train.keep), best])
        self._checkpointer = ocp.training.Checkpointer(
            self.directory, context=open_context(), preservation_policy=kept
        )
        if jax.process_index() == 0:
            text = json.dumps(configs.to_mapping(config), indent=2) + "\n"
            (self.workdir / "config.json").write_text(text)

    def __enter__(self) -> CheckpointManager:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    @property
    def latest_step(self) -> int | None:
        """Step of the newest checkpoint, None where there is none."""
        latest = self._checkpointer.latest
        return None if latest is None else latest.step

    @property
    def best_value(self) -> float | None:
        """The best value of `train.best_metric` among the kept checkpoints."""
        name = self._config.train.best_metric
        found = [_metric(c.metrics, name) for c in self._checkpointer.checkpoints]
        values = [value for value in found if value is not None]
        return max(values, key=lambda v: score(name, v), default=None)

    def save(
        self,
        step: int,
        trees: Mapping[str, Any],
        data: Mapping[str, Any],
        meta: Mapping[str, Any],
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Starts writing a checkpoint and returns when the arrays may be changed again.

        Args:
          step: updates made so far; a step that is there already is left as it is.
          trees: `params`, `optimizer` and perhaps `ema`, trees of arrays; None is left out.
          data: JSON state of the data iterator, which must not have been asked for the next batch.
          meta: further JSON facts; settings, versions and step are added.
          metrics: of the validation at this very step, if there was one.
        """
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
            **meta,
        }
        parts = {name: tree for name, tree in trees.items() if tree is not None}
        self._checkpointer.save_checkpointables_async(
            step,
            {**parts, "data": dict(data), "meta": facts},
            force=True,
            metrics=None if metrics is None else dict(metrics),
        )

    def restore(
        self, abstract: Mapping[str, Any], step: int | None = None
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        """Reads a checkpoint back into the given shardings.

        Args:
          abstract: like `save`'s trees, of `jax.ShapeDtypeStruct`s with shardings.
          step: which one; the newest by default.

        Returns:
          `(trees, data, meta)`.

        Raises:
          CheckpointError: there is none, or it is damaged.
        """
        self._checkpointer.wait()
        path = _step_path(self.directory, "latest" if step is None else step)
        wanted = {name: tree for name, tree in abstract.items() if tree is not None}
        loaded = _load(path, {"data": None, "meta": None, **wanted})
        data, meta = loaded.pop("data"), loaded.pop("meta")
        return loaded, data, meta

    def close(self) -> None:
        """Waits until everything is written."""
        self._checkpointer.close()


def check_workdir(workdir: epath.PathLike, config: configs.Config) -> None:
    """Makes sure that a run with `config` may go on in `workdir`; writes nothing.

    An empty directory will do, and one whose checkpoints differ in nothing but `train` (except
    `train.seed`), `mesh`, `sampler`, `data.prefetch`, `data.workers` and `data.strict`.

    Raises:
      CheckpointError: names the settings that differ.
    """
    if not steps(workdir):
        return
    path = _step_path(absolute(workdir) / "checkpoints", "latest")
    saved = _flatten(json.loads(json.dumps(configs.to_mapping(_config(_meta(path), path)))))
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
    stored = stored_weights(chosen, weights)
    if like is None:
        first = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        like = jax.tree.map(
            lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=first),
            adapters.without(stored),
        )
    _check_shapes(adapters.without(stored), like, chosen)
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
    """
    root = absolute(path)
    if (root / "meta").exists():
        chosen = root
    elif (root / "checkpoints").exists():
        chosen = _step_path(root / "checkpoints", step)
    else:
        chosen = _step_path(root, step)
    meta = _meta(chosen)
    config = _config(meta, chosen)
    if weights == "ema" and not (chosen / "ema").exists():
        weights = "params"
    return chosen, weights, config, meta


def steps(workdir: epath.PathLike) -> list[int]:
    """Steps of a run's finished checkpoints, rising; the same on every process of a run."""
    return _steps(absolute(workdir) / "checkpoints")


def absolute(path: epath.PathLike) -> epath.Path:
    """The path as Orbax wants it; a remote one, such as gs://, is absolute already."""
    return epath.Path(path) if "://" in str(path) else epath.Path(path).resolve()


def score(name: str, value: float | None) -> float:
    """Ranks values of a metric, larger is better: "...exact" rises, everything else falls."""
    if value is None or math.isnan(value):
        return -math.inf
    return value if name.endswith("exact") else -value


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide what a checkpoint means."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def _metric(metrics: Any, name: str) -> float | None:
    return (metrics or {}).get(name)


def open_context() -> ocp.Context:
    """How orbax reads and writes the parts of a checkpoint; used in a `with` block."""
    registry = ocp.handlers.local_registry()
    for name in ("data", "meta"):  # plain JSON files, readable without orbax
        registry.add(ocp.handlers.JsonHandler, checkpointable_name=name)
    context = ocp.Context()
    context.checkpointables.registry = registry
    return context


def _steps(directory: epath.Path) -> list[int]:
    """Steps under a `checkpoints` folder, rising; unfinished ones have other names, or no mark."""
    if not directory.exists():
        return []
    found = [path for path in directory.iterdir() if path.name.isdigit()]
    if "://" in str(directory):  # folders of a bucket cannot be renamed when they are whole
        found = [path for path in found if (path / _WHOLE).exists()]
    return sorted(int(path.name) for path in found)


def _step_path(directory: epath.Path, step: int | str) -> epath.Path:
    steps = _steps(directory)
    if not steps:
        raise CheckpointError(f"no checkpoint in {directory}; is this a run's working directory?")
    if step == "latest":
        return directory / str(steps[-1])
    if step == "best":
        metas = {s: _meta(directory / str(s)) for s in steps}

        def rank(s: int) -> float:
            name = metas[s]["best_metric"]
            return score(name, _metric(metas[s]["metrics"], name))

        best = max(steps, key=rank)
        if rank(best) == -math.inf:
            raise CheckpointError(f"no checkpoint in {directory} was validated: there is no best")
        return directory / str(best)
    if step not in steps:
        raise CheckpointError(f"no checkpoint of step {step} in {directory}; there are {steps}")
    return directory / str(step)


def _load(path: epath.Path, abstract: Mapping[str, Any]) -> dict[str, Any]:
    with _guard(path), open_context():
        return ocp.load_checkpointables(path, dict(abstract))


def _meta(path: epath.Path) -> dict[str, Any]:
    meta = _load(path, {"meta": None})["meta"]
    if meta.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"checkpoint {path} has format {meta.get('format_version')!r}, "
            f"this version reads {FORMAT_VERSION}"
        )
    return meta


def _load_weights(path: epath.Path, weights: str, like: Any) -> Any:
    """Reads `like`; what has no average of its own, because it is not trained, from the weights."""
    own = stored_shapes(path, weights)
    wanted = {weights: trees.take(like, own)}
    if weights != "params":
        rest = trees.overlay(like, jax.tree.map(lambda _: ocp.PLACEHOLDER, own))
        if any(leaf is not ocp.PLACEHOLDER for leaf in jax.tree.leaves(rest)):
            wanted["params"] = rest
    loaded = _load(path, wanted)
    return trees.overlay(loaded.get("params", loaded[weights]), loaded[weights])


def stored_weights(path: epath.Path, weights: str) -> dict[str, Any]:
    """Like `stored_shapes`, of all weights: averages where they are kept, else plain ones."""
    return trees.overlay(stored_shapes(path, "params"), stored_shapes(path, weights))


def stored_shapes(path: epath.Path, part: str) -> Any:
    """Tree of a part's arrays, each with `shape` and `dtype`."""
    with _guard(path), open_context():
        found = ocp.checkpointables_metadata(path).metadata[part]
        if found is None:
            raise OSError(f"{part} cannot be read")
    return found


def _check_shapes(stored: Any, wanted: Any, path: epath.Path) -> None:
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
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        lines = str(cause).strip().splitlines() or [type(cause).__name__]
        raise CheckpointError(
            f"checkpoint {self._path} is damaged or of another model ({lines[0][:160]}); "
            "remove that folder to go on from an older one"
        ) from error


def _config(meta: Mapping[str, Any], path: epath.Path) -> configs.Config:
    try:
        return configs.from_mapping(meta["config"])
    except ConfigError as error:
        raise CheckpointError(f"the settings in {path} cannot be read: {error}") from error


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
