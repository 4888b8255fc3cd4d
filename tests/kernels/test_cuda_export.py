"""The 7B training and denoising steps lower for CUDA on four devices, and hold no S x S array.

StableHLO for the platform "cuda" with its shardings, before any compiler of GPUs sees it; with one
`tests/launch/test_compile_check.py` goes on from there.
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
import json, sys
import jax
from configs import bagel_7b
from process_gen.aot import programs
from process_gen.aot.hlo_shapes import has_dims
from process_gen.core import configs
from process_gen.sharding.mesh import make_mesh

given = json.loads(sys.argv[1])
mapping = bagel_7b.get_config().to_dict()
mapping["model"] |= {"attention": given["attention"]}
mapping["data"] |= {"rows": 4}
mapping["sampler"] |= {"batch": 4, "denoise_steps": 2}
mapping["mesh"] |= given["mesh"]
config = configs.from_mapping(mapping)
mesh = make_mesh(config.mesh)
data, sampler = config.data, config.sampler
tokens = data.text_len + data.und_len + data.gen_len
# Pairs of queries and keys: of a pack and of its patches; of a picture and a full cache.
pairs = {
    "train": [(tokens, tokens), (data.und_len, data.und_len)],
    "denoise": [(2 * (32 * 32 + 2), sampler.max_context)],
}
report = {}
for name in pairs:
    program = programs.PROGRAMS[name](config, mesh)
    with jax.set_mesh(mesh):
        exported = jax.export.export(program.jitted, platforms=["cuda"])(*program.arguments)
    text = exported.mlir_module()
    report[name] = {
        "platforms": exported.platforms,
        "devices": exported.nr_devices,
        "square": [has_dims(text, *pair) for pair in pairs[name]],
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
