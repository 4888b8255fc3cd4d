"""The loop on four fake devices, in a process of its own: same numbers, any mesh, any restart."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

SCRIPT = """
import sys, tempfile, types
import jax, jax.numpy as jnp, numpy as np
from process_gen.core import axes, configs
from process_gen.sharding.mesh import make_mesh
from process_gen.sharding.rules import constrain
from process_gen.train import loop, optimizer, state as state_lib, writers

assert jax.device_count() == 4
W = 8
FNS = types.SimpleNamespace(
    init=lambda key: {"layers": {"w": jax.random.normal(key, (2, W, W))}, "b": jnp.zeros(W)},
    logical_axes={"layers": {"w": (axes.LAYERS, axes.EMBED, axes.MLP)}, "b": (axes.EMBED,)},
)

class Numbers:
    n = 0
    def __next__(self):
        self.n += 1
        return {"x": np.random.default_rng(self.n).normal(size=(8, W)).astype(np.float32)}
    def get_state(self): return {"n": self.n}
    def set_state(self, state): self.n = state["n"]

def run(workdir, steps, devices, **mesh):
    config = configs.from_mapping({
        "train": {"steps": steps, "eval_every": 0, "log_every": 1}, "data": {"rows": 8},
        "optimizer": {"name": "muon", "schedule": "constant", "warmup_steps": 0, "ema_decay": 0.9},
        "mesh": mesh})
    tx, schedule = optimizer.make_optimizer(config.optimizer, FNS.logical_axes)
    def step(state, batch, key):
        def loss(p):
            h = constrain(batch["x"] @ p["layers"]["w"][0], (axes.BATCH, axes.EMBED))
            return ((h @ p["layers"]["w"][1] + p["b"][None] - batch["x"]) ** 2).mean()
        value, grads = jax.value_and_grad(loss)(state.params)
        state, update = state_lib.advance(state, grads, tx, schedule, key)
        return state, {"loss": (value, jnp.float32(1)), **update}
    lowered = []
    state = loop.fit(
        config, workdir, fns=FNS, tx=tx, train_step=step, eval_step=None, dataset=Numbers(),
        eval_batches=[], mesh=make_mesh(config.mesh, jax.devices()[:devices]),
        writer=writers.MetricWriter(),
        on_start=lambda s: print(workdir[-1], int(s.step), s.params["layers"]["w"].sharding.spec))
    return jax.device_get(state)

root = tempfile.mkdtemp()
one = run(root + "/a", 4, 1)
cut = run(root + "/b", 2, 4, data=1, fsdp=2, tensor=2)
assert np.abs(cut.params["b"] - one.params["b"]).max() > 1e-5  # it is not there yet
four = run(root + "/b", 4, 4, data=4, fsdp=1, tensor=1)  # another mesh after the restart
for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(four), strict=True):
    np.testing.assert_allclose(a, b, atol=2e-5)

mesh = make_mesh(configs.MeshConfig(data=2, fsdp=2), jax.devices())
x = jax.ShapeDtypeStruct((8, W), jnp.float32)
with jax.set_mesh(mesh):
    text = jax.jit(lambda x: constrain(x + 1, (axes.BATCH, axes.EMBED))).lower(x).as_text()
assert "sdy.sharding_constraint" in text, text
text = jax.jit(lambda x: constrain(x + 1, (axes.BATCH, axes.EMBED))).lower(x).as_text()
assert "sdy.sharding_constraint" not in text  # without a mesh in force there is nothing to say
print("done")
"""


@pytest.mark.multidevice
def test_meshes_agree_and_a_restart_may_change_the_mesh():
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines() == [
        "a 0 P(None, ('fsdp', 'context'), 'tensor')",
        "b 0 P(None, ('fsdp', 'context'), 'tensor')",
        "b 2 P(None, ('fsdp', 'context'), 'tensor')",
        "done",
    ]
