"""The 7B training and denoising steps lower for CUDA on four devices, and hold no S x S array.

This is what a machine without a GPU can show: StableHLO for the platform "cuda", with its
shardings. Nothing was compiled by XLA for a GPU, and nothing ran.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

PROGRAM = """
import dataclasses, json, sys
import jax, jax.numpy as jnp, numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from configs import bagel_7b
from process_gen.core import configs
from process_gen.core.batch import PackedBatch, Place
from process_gen.core.configs import MeshConfig
from process_gen.data.tokenizer import load_tokenizer, token_ids
from process_gen.models import functional, vae
from process_gen.sampling.cache import Pool, Weights
from process_gen.sampling.programs import Programs, Rows
from process_gen.sharding import rules
from process_gen.sharding.mesh import make_mesh
from process_gen.train import latents, optimizer, state, step
from process_gen.aot.hlo_shapes import has_dims

mapping = bagel_7b.get_config().to_dict()
mapping["data"]["rows"] = 4
given = json.loads(sys.argv[1])
mapping["model"]["attention"] = given["attention"]
config = configs.from_mapping(mapping)
fns = functional.build(config.model)
mesh = make_mesh(MeshConfig(**given["mesh"]))
data, model = config.data, config.model


def shaped(*shape, dtype=jnp.int32, spec=None):
    spec = rules.token_sharding(shape, mesh) if spec is None else NamedSharding(mesh, spec)
    return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype), sharding=spec)


def train():
    rule, schedule = optimizer.make_optimizer(config.optimizer, fns.logical_axes)
    whole = state.abstract_state(fns, rule, 100, mesh)
    B, T, V, G = data.rows, data.text_len, data.und_len, data.gen_len
    place = lambda n: Place(*(shaped(B, n) for _ in range(4)))
    batch = PackedBatch(
        place(T), place(V), place(G), *(shaped(B, T) for _ in range(3)),
        shaped(B, V, model.und_features, dtype=jnp.uint8), shaped(B, V), shaped(B, V),
        shaped(B, G, 2 * model.latent_features, dtype=jnp.float32),
        *(shaped(B, G) for _ in range(3)),
    )
    run = step.make_train_step(fns, rule, schedule, config, latents.of_model(model))
    seed = shaped(2, dtype=jnp.uint32, spec=PartitionSpec())
    call = lambda state, batch, seed: run(state, batch, jax.random.wrap_key_data(seed))
    tokens = T + V + G
    return call, (whole, batch, seed), [(tokens, tokens), (V, V)]


def denoise():
    tokenizer = load_tokenizer()
    programs = Programs(
        fns, config, token_ids(tokenizer), tokenizer.vocab_size, config.sampler, (512, 512)
    )
    shapes = jax.eval_shape(fns.init, jax.random.key(0))
    shardings = rules.logical_to_sharding(fns.logical_axes, mesh, shapes)
    place = lambda x, s: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16, sharding=s)
    weights = jax.tree.map(place, shapes, shardings)
    codec = nnx.state(nnx.eval_shape(lambda: vae.FluxVae(model.vae, rngs=nnx.Rngs(0))))
    codec = jax.tree.map(
        lambda x: shaped(*x.shape, dtype=x.dtype, spec=PartitionSpec()), nnx.to_pure_dict(codec)
    )
    B, C = 4, config.sampler.max_context
    of_heads = PartitionSpec(None, None, None, rules.partition_spec(("kv_heads",))[0])
    keys = shaped(
        model.num_layers, B + 1, C, model.num_kv_heads, model.head_dim,
        dtype=model.dtype, spec=of_heads,
    )
    one = PartitionSpec()
    number = shaped(B, spec=one)
    rows = Rows(
        number, shaped(B, dtype=bool, spec=one), *(number,) * 5, shaped(B, C, spec=one),
        shaped(B, C, spec=one), shaped(B, 4, dtype=jnp.uint32, spec=one),
    )
    call = lambda weights, pool, rows: programs.denoise(weights, pool, rows, True, 2, 4.0)
    queries = 2 * (32 * 32 + 2)
    return call, (Weights(weights, codec), Pool(keys, keys), rows), [(queries, C)]


report = {}
with jax.set_mesh(mesh):
    for name, build in (("train", train), ("denoise", denoise)):
        call, arguments, pairs = build()
        exported = jax.export.export(jax.jit(call), platforms=["cuda"])(*arguments)
        text = exported.mlir_module()
        report[name] = {
            "platforms": exported.platforms,
            "devices": exported.nr_devices,
            "square": [has_dims(text, *pair) for pair in pairs],
            "cut": sum("sharding" in line for line in text.splitlines()),
        }
print(json.dumps(report))
"""


def export(attention: str, **mesh: int) -> dict:
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
    given = json.dumps({"attention": attention, "mesh": {"data": 1, **mesh}})
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, given],
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("mesh", [{"fsdp": 4}, {"tensor": 4}, {"fsdp": 2, "tensor": 2}])
def test_training_and_denoising_lower_for_cuda(mesh):
    for program in export("chunked", **mesh).values():
        assert program["platforms"] == ["cuda"] and program["devices"] == 4
        assert program["cut"] > 50
        assert not any(program["square"])


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_dense_attention_would_hold_such_arrays():
    for program in export("dense", fsdp=2, tensor=2).values():
        assert all(program["square"])
