"""Train a model, or go on with a run that was stopped.

    python -m launch.train --config=configs/strokes_tiny.py --workdir=runs/tiny

--config=FILE[:ARG]         a file with get_config(ARG), see configs/
--config.SECTION.KEY=VALUE  overrides a setting, for example --config.train.minutes=60
--workdir=DIR               where checkpoints, metrics.jsonl, config.json and TensorBoard files go
--restore=latest|best|STEP  the checkpoint to go on from; later ones are set aside
--wandb=PROJECT             also to Weights & Biases (pip install -e '.[wandb]')

The sections are model, data, loss, optimizer, train, mesh and sampler; process_gen/core/*_config.py
describe every key. With a checkpoint of the same config in DIR the run goes on from it; with one
of another config nothing is touched and the exit status is 2. Ctrl-C saves before it stops, and
so does SIGTERM, whose exit status is 75: started again, the run goes on (docs/launching.md).
--config.train.init_from=DIR starts from the weights of a run or of an import (docs/bagel.md).
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
from absl import flags
from clu import parameter_overview

from launch import common, distributed
from process_gen.checkpoint import manager
from process_gen.core.configs import Config
from process_gen.core.errors import ConfigError
from process_gen.data import pipeline
from process_gen.models import functional
from process_gen.report.strips import make_strips
from process_gen.sharding import rules
from process_gen.sharding.mesh import make_mesh
from process_gen.train import flop_budget, latents, loop, optimizer, start, step, writers
from process_gen.train.state import TrainState


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of this command."""
    common.define_config(values)
    distributed.define_flags(values)
    flags.DEFINE_string("workdir", None, "directory of the run", flag_values=values)
    flags.DEFINE_string("restore", "latest", "checkpoint to go on from", flag_values=values)
    flags.DEFINE_string("wandb", "", "project of Weights & Biases", flag_values=values)


def main(values: flags.FlagValues) -> None:
    """Wires data, model and loop together."""
    workdir = common.required(values, "workdir")
    restore = which(values.restore)
    config = start.adopt(common.read_config(values), workdir)
    manager.check_workdir(workdir, config)
    config, budget = flop_budget.settle(config, lambda: pipeline.train_dataset(config))
    common.enable_compilation_cache()
    mesh = make_mesh(config.mesh)
    fns = functional.build(config.model)
    tx, schedule = optimizer.make_optimizer(config.optimizer, fns.logical_axes)
    way = latents.of_model(config.model)
    codec = start.frozen_codec(config)
    prepare = latents.make_prepare(config, codec, mesh)
    blocks, count = rules.row_blocks(mesh)

    def on_start(state: TrainState) -> None:
        if jax.process_index() == 0:
            where = f"{mesh.size} {jax.default_backend()} device(s)"
            if jax.process_count() > 1:
                where += f" of {jax.process_count()} processes"
            print(f"workdir {workdir}, code {common.git_hash()}, {where}")
            print(overview(state.params, fns.logical_axes))
            if budget is not None:
                flop_budget.write(workdir, budget)
                print(f"{budget.flops_per_step:.3g} FLOPs a step, {budget.flops:.3g} in all")
            print(f"from step {int(state.step)} of {int(state.total_steps)}", flush=True)

    loop.fit(
        config,
        workdir,
        fns=fns,
        tx=tx,
        train_step=step.make_train_step(fns, tx, schedule, config, way),
        eval_step=step.make_eval_step(fns, config, way),
        dataset=pipeline.train_dataset(config, blocks, count),
        eval_batches=pipeline.eval_batches(config, blocks, count),
        mesh=mesh,
        hooks=hooks(config, codec),
        open_writer=functools.partial(writers.default_writer, wandb=values.wandb),
        check_batch=lambda batch: step.check_batch(batch, config),
        prepare=prepare,
        on_start=on_start,
        restore=restore,
    )


def which(text: str) -> manager.Restore:
    """What `--restore` names.

    Raises:
      ConfigError: it is none of "latest", "best" and a number.
    """
    if text == "latest" or text == "best":
        return text
    if not text.isdecimal():
        raise ConfigError(f"--restore={text!r} is none of latest, best and the number of a step")
    return int(text)


def hooks(config: Config, codec: Any) -> dict[str, loop.Hook]:
    """What is done on the way besides validation.

    Args:
      config: of the run.
      codec: weights of the picture codec, None where it has none.

    Raises:
      ConfigError: several processes are to paint.
    """
    every = config.train.paint_every
    if not every:
        return {}
    if jax.process_count() > 1:
        raise ConfigError(
            f"train.paint_every={every}: only runs of one process paint; set it to 0 and paint "
            "checkpoints with launch.sample"
        )
    if config.model.codec == "flux" and codec is None:
        raise ConfigError(
            f"train.paint_every={every}: with data.stored_latents the run does not load the "
            "autoencoder, which painting needs; set one of them to 0"
        )
    return {"paint": loop.Hook(every, make_strips(config, codec))}


def overview(params: Any, logical_axes: Any) -> str:
    """A table of the weights: name, shape, type, logical axes, bytes; and their sums."""

    @dataclasses.dataclass
    class Row:
        name: str
        shape: tuple[int, ...]
        dtype: str
        axes: str
        bytes: int

    names = jax.tree.leaves(logical_axes, is_leaf=lambda x: isinstance(x, tuple))
    rows = [
        Row(
            jax.tree_util.keystr(path, simple=True, separator="/"),
            leaf.shape,
            str(leaf.dtype),
            " ".join(str(name) for name in axes),
            leaf.nbytes,
        )
        for (path, leaf), axes in zip(jax.tree.leaves_with_path(params), names, strict=True)
    ]
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    table = parameter_overview.make_table(rows)
    return f"{table}\n{count:,} weights, {sum(row.bytes for row in rows):,} bytes"


if __name__ == "__main__":
    common.run(main, define_flags, __doc__ or "", join=distributed.join)
