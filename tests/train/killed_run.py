"""A run of the loop on a tiny model, as a process that may be killed at any moment."""

from __future__ import annotations

import os
import time
from pathlib import Path


def train(workdir: str, devices: int, place: str, number: int, count: int, steps: int) -> None:
    """Trains in `count` processes of `devices` devices; writes a line a step to `seen_N`."""
    log = os.open(f"{workdir}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
    import jax
    import jax.numpy as jnp
    import numpy as np

    if count > 1:
        jax.distributed.initialize(place, count, number)

    from process_gen.core import configs
    from process_gen.sharding import rules
    from process_gen.sharding.mesh import make_mesh
    from process_gen.train import loop, optimizer
    from process_gen.train import metrics as metrics_lib
    from process_gen.train import state as state_lib
    from tests.train.test_loop import FNS, ROWS, Numbers, errors

    config = configs.from_mapping(
        {
            "train": {"steps": steps, "log_every": 1, "eval_every": 0, "save_every": 2},
            "data": {"rows": ROWS},
            "optimizer": {"schedule": "constant", "warmup_steps": 0, "ema_decay": 0.9},
        }
    )
    mesh = make_mesh(config.mesh)
    blocks, parts = rules.row_blocks(mesh)
    mine = [
        row for block in blocks for row in range(block * ROWS // parts, (block + 1) * ROWS // parts)
    ]

    class Own(Numbers):
        def __next__(self):
            time.sleep(0.02)
            return {"x": super().__next__()["x"][mine]}

    tx, schedule = optimizer.make_optimizer(config.optimizer, FNS.logical_axes)

    def step(state, batch, key):
        key = jax.random.fold_in(key, state.step)
        loss, grads = jax.value_and_grad(lambda p: errors(p, batch, key).mean())(state.params)
        state, update = state_lib.advance(state, grads, tx, schedule, key, loss)
        metrics = {"loss": (loss, jnp.float32(1.0)), **update}
        return state, metrics_lib.only_if(metrics.pop("finite"), metrics)

    state = loop.fit(
        config,
        workdir,
        fns=FNS,
        tx=tx,
        train_step=step,
        eval_step=lambda *_: {},
        dataset=Own(),
        eval_batches=[],
        mesh=mesh,
        writer=None,
    )
    if number == 0:
        leaves = [np.asarray(x.addressable_data(0)) for x in jax.tree.leaves(state)]
        np.savez(Path(workdir) / "end.npz", *leaves)
    if count > 1:
        jax.distributed.shutdown()
