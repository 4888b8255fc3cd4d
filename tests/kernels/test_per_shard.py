from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from process_gen.kernels.native_library import compiler

ROOT = Path(__file__).resolve().parents[2]

# Runs in a process of its own: the number of devices is fixed when JAX starts.
PROGRAM = """
import functools
import jax, jax.numpy as jnp, numpy as np
from process_gen.core.attention_mask import NEVER, PAD_ORDER
from process_gen.core.configs import MeshConfig
from process_gen.kernels.by_row import by_row
from process_gen.kernels.flash_tpu import flash
from process_gen.kernels.interval_attention import CachedKeys, KeyBlock, chunked, dense
from process_gen.kernels.native import native
from process_gen.kernels.per_shard import per_shard
from process_gen.sharding.mesh import make_mesh

rng = np.random.default_rng(0)
B, S, H, K, DH = 4, 48, 4, 2, 8
q, k, v, weight = (
    jnp.asarray(rng.normal(size=(B, S, n, DH)), jnp.float32) for n in (H, K, K, H)
)
order = rng.integers(0, 30, (B, S))
order[:, -5:] = PAD_ORDER
start = rng.integers(0, 25, (B, S))
end = start + rng.integers(0, 12, (B, S))
start[:, :7], end[:, :7] = NEVER, PAD_ORDER
order, start, end = (jnp.asarray(x, jnp.int32) for x in (order, start, end))


@functools.partial(jax.jit, static_argnums=0)
def run(attention, q, k, v, order):
    def scalar(q, k, v):
        out = attention(q, order, (KeyBlock(k, v, start, end),))
        return jnp.sum(jnp.sin(out) * weight), out

    return jax.grad(scalar, argnums=(0, 1, 2), has_aux=True)(q, k, v)


def difference(a, b):
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return max(float(np.abs(np.asarray(x) - np.asarray(y)).max()) for x, y in pairs)


expected = run(dense, q, k, v, order)
blocks = {"block_q": 16, "block_k": 16}
for name, attention in (
    ("pallas", functools.partial(flash, **blocks)),
    ("chunked", functools.partial(chunked, chunk=16)),
    ("rows", functools.partial(by_row, block=16)),
    ("native", native),
):
    wrapped = per_shard(attention)
    for sizes in CASES[name]:
        with jax.set_mesh(make_mesh(MeshConfig(**sizes))):
            got = jax.block_until_ready(run(wrapped, q, k, v, order))
        print(name, sizes, difference(got, expected), flush=True)
        assert difference(got, expected) < 1e-5
        assert difference(got, run(dense, q, k, v, order + 1)) > 0.1

if CASES["native"]:
    kept = [jnp.asarray(rng.normal(size=(B, K, *x)), jnp.float32) for x in ((DH, 64), (64, DH))]
    used = jnp.arange(64)[None] < jnp.arange(10, 50, 10)[:, None]
    cache = CachedKeys(*kept, jnp.where(used, 0, NEVER), jnp.where(used, 20, PAD_ORDER))
    blocks = (cache, KeyBlock(k, v, start, end))
    expected = dense(q, order, blocks)
for sizes in CASES["native"]:
    with jax.set_mesh(make_mesh(MeshConfig(**sizes))):
        got = jax.block_until_ready(jax.jit(per_shard(native))(q, order, blocks))
    print("native over a cache", sizes, difference(got, expected), flush=True)
    assert difference(got, expected) < 1e-5
    assert difference(got, dense(q, order, blocks[1:])) > 0.1
"""

FOUR = {
    "chunked": [
        {"data": 4},
        {"data": 1, "fsdp": 2, "tensor": 2},
        {"data": 1, "context": 4},
        {"data": 1, "tensor": 4},  # does not divide two key heads
    ],
    "rows": [{"data": 4}, {"data": 1, "fsdp": 2, "tensor": 2}],
    "native": [{"data": 4}, {"data": 1, "fsdp": 2, "tensor": 2}] if compiler() else [],
    "pallas": [{"data": 1, "tensor": 2, "context": 2}],
}


@pytest.mark.multidevice
def test_the_same_on_every_mesh():
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
    done = subprocess.run(
        [sys.executable, "-c", f"CASES = {FOUR!r}\n{PROGRAM}"],
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
