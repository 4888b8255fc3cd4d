"""Arrays written one at a time come back in any shards, and a shard is read without the rest."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import tensorstore

from process_gen.checkpoint import manager, streaming
from process_gen.core.configs import Config

ROOT = Path(__file__).parents[2]
CHECKPOINT = ROOT / "tests" / "parity" / "fixtures" / "checkpoint"
STACKED = np.random.default_rng(0).integers(0, 1 << 16, (4, 64, 256)).astype(np.float32)


def write(folder, piece, monkeypatch):
    monkeypatch.setattr(streaming, "_PIECE", piece)
    monkeypatch.setattr(streaming, "_AT_ONCE", 1 << 14)  # several saves
    arrays = {"layers/w": STACKED, "small": STACKED[0, 0], "layers/b": STACKED[:, 0]}
    streaming.write(folder, Config(), iter(arrays.items()), {"tokenizer": "print"})
    return arrays


def test_what_is_written_comes_back(tmp_path, monkeypatch):
    arrays = write(tmp_path / "d", 1 << 12, monkeypatch)
    config, params, meta = manager.load_for_sampling(tmp_path / "d")
    assert config == Config() and meta["tokenizer"] == "print" and meta["step"] == 0
    found = {"small": params["small"], **{f"layers/{k}": v for k, v in params["layers"].items()}}
    assert found.keys() == arrays.keys()
    for path, array in arrays.items():
        np.testing.assert_array_equal(found[path], array)
        one = streaming.read_one(
            meta_path := manager.find(tmp_path / "d")[0],
            "params",
            path,
            manager.stored_shapes(meta_path, "params"),
        )
        np.testing.assert_array_equal(one, array)


def fetched():
    name = "/tensorstore/kvstore/file/bytes_read"
    found = tensorstore.experimental_collect_matching_metrics(name)
    return sum(value["value"] for metric in found for value in metric["values"])


@pytest.mark.parametrize(("piece", "most"), [(1 << 12, 0.3), (1 << 30, 1.1)])
def test_a_quarter_is_read_without_the_rest(piece, most, tmp_path, monkeypatch):
    """With one piece for everything, the partner, a quarter costs the whole array."""
    write(tmp_path / "d", piece, monkeypatch)
    base = f"file://{tmp_path}/d/checkpoints/0/params/"
    store = {"driver": "ocdbt", "base": base, "path": "layers.w/"}
    array = tensorstore.open({"driver": "zarr3", "kvstore": store}).result()
    before = fetched()
    part = array[:, 16:32].read().result()
    share = (fetched() - before) / STACKED.nbytes
    np.testing.assert_array_equal(part, STACKED[:, 16:32])
    assert most - 0.3 < share < most


SCRIPT = """
import sys
import jax, numpy as np
from launch import common, import_bagel
from process_gen.checkpoint import manager, streaming
from process_gen.core.configs import MeshConfig
from process_gen.models import functional
from process_gen.sharding import rules
from process_gen.sharding.mesh import make_mesh

streaming._PIECE = 1 << 10
flags = ["x", f"--source={sys.argv[1]}", f"--output={sys.argv[2]}", "--tokenizer=bytes"]
common.run(import_bagel.main, import_bagel.define_flags, "", flags)
config, whole, _ = manager.load_for_sampling(sys.argv[2])
fns = functional.build(config.model)
shapes = manager.stored_shapes(manager.find(sys.argv[2])[0], "params")
mesh = make_mesh(MeshConfig(data=1, fsdp=4))
shardings = rules.logical_to_sharding(fns.logical_axes, mesh, shapes)
like = jax.tree.map(
    lambda s, at: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=at), shapes, shardings)
cut = manager.load_for_sampling(sys.argv[2], like=like)[1]
assert jax.tree.structure(cut) == jax.tree.structure(whole)
bytes_here = 0
for path, leaf in jax.tree.leaves_with_path(cut):
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    wanted = np.asarray(dict(jax.tree.leaves_with_path(whole))[path])
    assert leaf.dtype == wanted.dtype and np.asarray(leaf).tobytes() == wanted.tobytes(), name
    for shard in leaf.addressable_shards:
        assert np.asarray(shard.data).tobytes() == wanted[shard.index].tobytes(), name
    bytes_here += leaf.addressable_shards[0].data.nbytes
first, *_, last = cut["embed"]["table"].addressable_shards
assert np.asarray(first.data).tobytes() != np.asarray(last.data).tobytes()  # not all one value
print(bytes_here / sum(x.nbytes for x in jax.tree.leaves(whole)))
"""


@pytest.mark.multidevice
def test_an_import_restored_into_four_shards_is_the_same_bit_for_bit(tmp_path):
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(CHECKPOINT), str(tmp_path / "d")],
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    # The weights are cut, all but a few small ones.
    assert 0.25 <= float(done.stdout.splitlines()[-1]) < 0.3
    assert jax.device_count() == 1  # the four devices are the other process's
