"""The training loop: the same order of things at every step, whatever is trained.

    step -> metrics of the step before -> validation -> hooks -> save -> next batch

A checkpoint therefore holds the state after step n and a data iterator that has not been asked for
batch n + 1: a run that stops and goes on sees exactly what an uninterrupted one sees.
"""

from __future__ import annotations

import dataclasses
import math
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from process_gen.checkpoint import adapters, manager
from process_gen.core import configs
from process_gen.core.configs import Config
from process_gen.core.errors import ConfigError
from process_gen.core.interrupts import finish_on_interrupt
from process_gen.sharding import rules
from process_gen.train import agreement, optimizer, progress, start, writers
from process_gen.train import metrics as metrics_lib
from process_gen.train import state as state_lib
from process_gen.train.guard import Guard, Rollback, TrainingError
from process_gen.train.state import TrainState
from process_gen.train.watchdog import Watchdog

# A training step on CPUs takes 0.9 of the time with Eigen's matrix products, which are XLA's where
# it is told to use YNN for convolutions alone, and with whole AVX-512 registers, where there are
# any (docs/performance.md).
_ON_CPU = {
    "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_CONVOLUTION",
    "xla_cpu_prefer_vector_width": 512,
}


class Dataset(Protocol):
    """What the loop asks of a data iterator.

    It may have `counters() -> dict`, scalars that are logged with the training metrics, such as the
    number of records left out; and `plan_facts`, words that say what is read next and must be the
    same on all processes.
    """

    def __next__(self) -> Any:
        """The next batch of this process, a tree of numpy arrays [local rows, ...]."""

    def get_state(self) -> Mapping[str, Any]:
        """JSON state; `plan_hash` and `tokenizer` in it are copied into the checkpoint's meta."""

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Goes on from a state."""


class Hook(NamedTuple):
    """Something done on the way, such as painting.

    Attributes:
      every: in steps; 0 at the end of training only. The last step always counts.
      call: `(step, state) -> what it found, or None`: numbers, and pictures uint8 [H, W, 3]. They
        are logged as "hook/name", and `train.best_metric` may name a number so. It must not keep
        the state's arrays: the next step overwrites them.
    """

    every: int
    call: Callable[[int, TrainState], Mapping[str, float | np.ndarray] | None]


TrainStep = Callable[[TrainState, Any, jax.Array], tuple[TrainState, metrics_lib.StepMetrics]]
EvalStep = Callable[[Any, Any, jax.Array], metrics_lib.StepMetrics]


def fit(
    config: Config,
    workdir: epath.PathLike,
    *,
    fns: Any,
    tx: optimizer.UpdateRule,
    train_step: TrainStep,
    eval_step: EvalStep,
    dataset: Dataset,
    eval_batches: Sequence[Any],
    mesh: Mesh,
    hooks: Mapping[str, Hook] | None = None,
    writer: writers.MetricWriter | None = None,
    open_writer: Callable[[epath.PathLike, int], writers.MetricWriter] = writers.default_writer,
    check_batch: Callable[[Any], None] = lambda batch: None,
    prepare: Callable[[Any], Any] | None = None,
    on_start: Callable[[TrainState], None] | None = None,
    restore: manager.Restore = "latest",
) -> TrainState:
    """Trains to the end, or goes on where a checkpoint in `workdir` stopped.

    On Ctrl-C the current step is finished and saved, then KeyboardInterrupt is raised; on SIGTERM
    `Preempted` is. A second one does not wait. Of several processes, all save the same step,
    whichever of them got the signal.

    Args:
      config: of the run.
      workdir: for checkpoints, `config.json` and metrics.
      fns: has `init(key) -> params` and `logical_axes`.
      tx: from `optimizer.make_optimizer`, the one inside `train_step`.
      train_step: `(state, batch, key) -> (state, metrics)`, pure and not jitted; `key` is the same
        at every step, so it must fold in `state.step`.
      eval_step: `(params, batch, key) -> metrics`, pure and not jitted.
      dataset: iterator over training batches.
      eval_batches: host batches of the fixed held-out split; may be empty.
      mesh: from `sharding.mesh.make_mesh`; it is put into force.
      hooks: by name.
      writer: takes the metrics; by default what `open_writer` gives on the first process.
      open_writer: called with `workdir` and the step at which this process starts.
      check_batch: called with each host batch; raises on one that the model cannot take.
      prepare: brings a host batch to the devices before the step or the validation, and may do
        more, such as encoding its pictures with frozen weights; by default `rules.put_batch`.
      on_start: called once with the first or restored state.
      restore: the checkpoint to go on from, see `CheckpointManager.restore`.

    Returns:
      The final state.

    Raises:
      CheckpointError: `workdir` holds another config's checkpoints, or a damaged one.
      LostDataError: processes have different plans of the data.
      ConfigError: the batch does not fit the mesh; `train.best_metric` is not measured.
      TrainingError: too many updates in a row had a loss or a gradient that is not finite.
    """
    started = time.monotonic()
    _check_packs(config, mesh)
    hooks = dict(hooks or {})
    prepare = prepare or (lambda batch: rules.put_batch(batch, mesh))
    _check_best_metric(config.train.best_metric, hooks)
    with (
        Watchdog(config.train.stall_minutes) as watchdog,
        jax.set_mesh(mesh),
        manager.CheckpointManager(workdir, config) as checkpoints,
    ):
        evaluate = _make_evaluate(eval_step, eval_batches, prepare) if eval_batches else None
        first_data = dataset.get_state()
        before: Guard | None = None
        while True:
            state, meta = _first_state(config, checkpoints, fns, tx, dataset, mesh, restore)
            step = int(state.step)
            if on_start is not None and before is None:
                on_start(state)
            log = writers.MetricWriter() if writer is None else writer
            if writer is None and jax.process_index() == 0:
                log = open_writer(workdir, step)
            known = meta.get("guard")
            guard = before.resumed(known, step) if before else Guard(config, workdir, known, step)
            run = _Run(
                config=config,
                checkpoints=checkpoints,
                dataset=dataset,
                evaluate=evaluate,
                hooks=hooks,
                writer=log,
                budget=progress.TimeBudget(config.train.minutes, started, _timed(config, meta)),
                best=checkpoints.best_value,
                guard=guard,
                watchdog=watchdog,
            )
            if step == 0:
                log.write_hparams(configs.to_mapping(config))
            try:
                return _loop(run, state, train_step, check_batch, prepare)
            except Rollback:
                before, restore = guard, "latest"
                if checkpoints.latest_step is None:  # back to where everything began
                    dataset.set_state(first_data)
            finally:
                log.flush()
                if writer is None:
                    log.close()


def _check_packs(config: Config, mesh: Mesh) -> None:
    rules.check_rows(config.data.rows, mesh)
    # Heads need no check here: those that the mesh does not divide are left whole.
    rules.check_lengths(config.data, mesh)
    parts, devices = config.optimizer.accumulate, rules.row_blocks(mesh)[1]
    if config.data.rows % (parts * devices):
        raise ConfigError(
            f"data.rows={config.data.rows} cannot be dealt to {devices} device(s) in "
            f"optimizer.accumulate={parts} parts; choose a multiple of {parts * devices}"
        )


def _check_best_metric(name: str, hooks: Mapping[str, Hook]) -> None:
    hook, slash, _ = name.partition("/")
    if slash and hook not in hooks:
        known = ", ".join(sorted(hooks)) or "none"
        raise ConfigError(f"train.best_metric={name!r} names no hook of this run; hooks: {known}")


def _first_state(
    config: Config,
    checkpoints: manager.CheckpointManager,
    fns: Any,
    tx: optimizer.UpdateRule,
    dataset: Dataset,
    mesh: Mesh,
    restore: manager.Restore,
) -> tuple[TrainState, dict[str, Any]]:
    """The state to start from, and what its checkpoint, if there is one, says besides."""
    train = config.train
    # Before timing, enough steps to time.
    total = max(train.steps, 3 * progress.TimeBudget.interval) if train.minutes else train.steps
    checkpoints.wait()
    if checkpoints.latest_step is None:
        key = jax.random.fold_in(jax.random.key(train.seed), 0)
        state = state_lib.init_state(fns, tx, key, total, mesh)
        if train.init_from:
            like = jax.tree.map(
                lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype, sharding=p.sharding),
                adapters.without(state.params),
            )
            params = start.weights(train.init_from, like)
            state = state_lib.with_weights(state, params, config.optimizer)
        return state, {}
    abstract = state_lib.abstract_state(fns, tx, total, mesh)
    trees, data, meta = checkpoints.restore(state_lib.to_parts(abstract), restore)
    dataset.set_state(data)
    state = state_lib.from_parts(trees)
    return (state if _timed(config, meta) else state_lib.with_total(state, total)), meta


def _timed(config: Config, meta: Mapping[str, Any]) -> bool:
    """Whether the total of a restored state comes from timing already."""
    return config.train.minutes > 0 and bool(meta.get("timed"))


def _make_evaluate(
    eval_step: EvalStep, eval_batches: Sequence[Any], prepare: Callable[[Any], Any]
) -> Callable[[Any], dict[str, float]]:
    """Builds `params -> metrics over all batches`, with the same times and noise at every call."""
    jitted = jax.jit(eval_step)
    key = jax.random.key(0)  # not the run's: runs with other seeds are compared on the same noise

    def evaluate(params: Any) -> dict[str, float]:
        total: Any = None
        for number, batch in enumerate(eval_batches):
            placed = prepare(batch)
            new = metrics_lib.collect(jitted(params, placed, jax.random.fold_in(key, number)))
            total = new if total is None else metrics_lib.merge(total, new)
            jax.block_until_ready(total)
        return metrics_lib.compute(total)

    return evaluate


class _Log:
    """Adds up metrics on the device, and writes a window of them one step after it ended."""

    def __init__(self, writer: writers.MetricWriter, step: int) -> None:
        self._writer = writer
        self.progress = progress.Progress(step)
        self._sums: Any = None
        self._pending: tuple[int, Any, dict[str, float]] | None = None

    def add(self, step_metrics: metrics_lib.StepMetrics) -> None:
        """Adds the metrics of one step."""
        counted = {name: pair for name, pair in step_metrics.items() if name != "finite"}
        new = metrics_lib.collect(counted)
        self._sums = new if self._sums is None else metrics_lib.merge(self._sums, new)

    def end_window(self, step: int, total_steps: int, counters: Mapping[str, float]) -> None:
        """Closes the window; `write` writes it later, with what was counted so far."""
        rates = self.progress.mark(step, total_steps)
        self._pending = (step, self._sums, {**counters, **rates})
        self._sums = None

    def write(self) -> None:
        """Writes the closed window, if there is one. Waits for its steps.

        Raises:
          TrainingError: a value is not finite.
        """
        if self._pending is None:
            return
        (step, sums, rates), self._pending = self._pending, None
        values = _finite(metrics_lib.compute(sums), step)
        self._writer.write_scalars(step, {f"train/{k}": v for k, v in (rates | values).items()})
        self._writer.flush()

    def check(self, step: int) -> None:
        """Raises TrainingError unless everything up to `step` is finite, before it is saved."""
        self.write()
        if self._sums is not None:
            _finite(metrics_lib.compute(self._sums), step)


def _finite(values: dict[str, float], step: int) -> dict[str, float]:
    wrong = [name for name, value in values.items() if not math.isfinite(value)]
    if wrong:
        raise TrainingError(
            f"{', '.join(wrong)} not finite at or shortly before step {step}, and the update was "
            "made all the same; nothing was saved since"
        )
    return values


@dataclasses.dataclass
class _Run:
    """What the loop carries beside the state."""

    config: Config
    checkpoints: manager.CheckpointManager
    dataset: Dataset
    evaluate: Callable[[Any], dict[str, float]] | None
    hooks: dict[str, Hook]
    writer: writers.MetricWriter
    budget: progress.TimeBudget
    best: float | None
    guard: Guard
    watchdog: Watchdog

    def counters(self) -> dict[str, float]:
        """What the data left out and what went wrong, for the log."""
        data = getattr(self.dataset, "counters", dict)()
        return {**data, **self.guard.counters(), **self.checkpoints.counters()}

    def due(self, step: int, last: bool) -> list[str]:
        """What is to be measured after this step: "eval" and names of hooks."""
        names = [n for n, h in self.hooks.items() if last or (h.every and step % h.every == 0)]
        every = self.config.train.eval_every
        if self.evaluate is not None and every and (last or step % every == 0):
            names.insert(0, "eval")
        return names

    def measure(self, due: Sequence[str], step: int, state: TrainState) -> dict[str, float]:
        """Runs validation (bare names) and hooks ("hook/name"), and logs what they found."""
        found: dict[str, float] = {}
        for name in due:
            self.watchdog.at(f"{name} after step {step}")
            if name == "eval" and self.evaluate is not None:
                values = self.evaluate(state_lib.averaged(state))
                found.update(values)
            else:
                values = self._ask(name, step, state)
                found.update({f"{name}/{k}": v for k, v in values.items()})
            self.writer.write_scalars(step, {f"{name}/{k}": v for k, v in values.items()})
        return found

    def _ask(self, name: str, step: int, state: TrainState) -> dict[str, float]:
        """Calls a hook and logs its pictures; gives its numbers."""
        values = dict(self.hooks[name].call(step, state) or {})
        pictures = {k: v for k, v in values.items() if isinstance(v, np.ndarray)}
        self.writer.write_images(step, {f"{name}/{k}": v for k, v in pictures.items()})
        return {k: float(v) for k, v in values.items() if k not in pictures}

    def improves(self, due: Sequence[str], found: Mapping[str, float]) -> bool:
        """Whether this is the best model so far, by `train.best_metric`; remembers it."""
        name = self.config.train.best_metric
        if name not in found:
            if name.partition("/")[0] in due or ("/" not in name and "eval" in due):
                known = ", ".join(sorted(found))
                raise ConfigError(f"train.best_metric={name!r} is not measured; known: {known}")
            return False
        if self.best is not None and manager.score(name, found[name]) <= manager.score(
            name, self.best
        ):
            return False
        self.best = found[name]
        return True

    def save(self, step: int, state: TrainState, found: Mapping[str, float]) -> None:
        """Starts writing a checkpoint of this step."""
        self.checkpoints.save(
            step,
            state_lib.to_parts(state),
            self.dataset.get_state(),
            {"timed": self.budget.estimated, "guard": self.guard.state()},
            found if self.config.train.best_metric in found else None,
        )


def jit_step(train_step: TrainStep, state: TrainState) -> Any:
    """The step as it is compiled: it gives up the state's buffers, and keeps its shardings.

    Args:
      train_step: pure.
      state: arrays or `jax.ShapeDtypeStruct`s with shardings.
    """
    shardings = jax.tree.map(lambda x: x.sharding, state)
    (platform,) = {device.platform for device in shardings.step.device_set}
    return jax.jit(
        train_step,
        donate_argnums=0,
        out_shardings=(shardings, None),
        compiler_options=compiler_options(platform),
    )


def compiler_options(platform: str) -> dict[str, Any] | None:
    """Those of a training step that is compiled for these devices."""
    return _ON_CPU if platform == "cpu" else None


def _loop(
    run: _Run,
    state: TrainState,
    train_step: TrainStep,
    check_batch: Callable[[Any], None],
    prepare: Callable[[Any], Any],
) -> TrainState:
    train = run.config.train
    step, total = int(state.step), int(state.total_steps)
    if step >= total:
        run.writer.write_texts(step, {"train": f"this run of {total} steps is complete"})
        return state
    key = jax.random.fold_in(jax.random.key(train.seed), 1)
    jitted = jit_step(train_step, state)
    log = _Log(run.writer, step)
    previous: Any = None
    alone = jax.process_count() == 1
    # Several processes leave SIGTERM to jax, whose handler tells the others.
    numbers = (signal.SIGINT, signal.SIGTERM) if alone else (signal.SIGINT,)
    with finish_on_interrupt(numbers) as interrupted:
        run.watchdog.at("the plan of the data")
        plan = agreement.same_plan(run.dataset, "")
        while step < total:
            run.watchdog.at(f"the batch of step {step + 1}")
            batch = run.guard.draw(run.dataset)
            plan = agreement.same_plan(run.dataset, plan)  # a batch may end in the next one
            run.watchdog.at(f"step {step + 1}")
            check_batch(batch)
            state, step_metrics = jitted(state, prepare(batch), key)
            if previous is None:
                log.progress.restart(step)
            step += 1
            # One step ahead and no further: what is read below has been computed while this step
            # was prepared, and steps with collectives do not queue up.
            jax.block_until_ready(previous)
            run.guard.settle()
            run.guard.watch(step, batch, step_metrics)
            log.write()
            log.add(step_metrics)
            previous = step_metrics
            if (
                train.minutes
                and (new := agreement.agreed_total(run.budget.update(step, total))) != total
            ):
                total = new
                state = state_lib.with_total(state, total)
            last = step >= total
            if last or step % train.log_every == 0:
                log.end_window(step, total, run.counters())
            due = run.due(step, last)
            if due:
                log.write()
            found = run.measure(due, step, state)
            best = run.improves(due, found)
            stop = interrupted() if alone else agreement.agreed_stop(interrupted(), step)
            if stop and not last and step % train.log_every:
                log.end_window(step, total, run.counters())  # its sums are in no checkpoint
            if best or stop or last or (train.save_every and step % train.save_every == 0):
                run.guard.settle()
                log.check(step)
                run.watchdog.at(f"the checkpoint of step {step}")
                run.save(step, state, found)
            if stop and not last:
                run.checkpoints.wait()  # while all processes are here
                raise stop
    return state
