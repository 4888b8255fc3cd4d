"""Tests of sharding.mesh and sharding.rules on whatever devices there are."""

from __future__ import annotations

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, PartitionSpec

from process_gen.core import axes
from process_gen.core.configs import DataConfig, MeshConfig, ModelConfig
from process_gen.core.encoder_sizes import VitSizes
from process_gen.core.errors import ConfigError
from process_gen.sharding import mesh as mesh_lib
from process_gen.sharding import rules


@pytest.fixture
def mesh():
    return mesh_lib.make_mesh(MeshConfig(), jax.devices()[:1])


def test_every_logical_axis_has_a_rule_and_only_known_mesh_axes():
    assert set(rules.RULES) == set(axes.LOGICAL_AXES)
    assert {a for parts in rules.RULES.values() for a in parts} <= set(mesh_lib.MESH_AXES)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ((axes.LAYERS, axes.EMBED, axes.HEADS), PartitionSpec(None, ("fsdp", "context"), "tensor")),
        ((axes.LAYERS, axes.MLP, axes.EMBED), PartitionSpec(None, "tensor", ("fsdp", "context"))),
        ((axes.BATCH, axes.SEQUENCE), PartitionSpec(("data", "fsdp"), "context")),
        # What is spent on rows and tokens cannot cut an activation's embed too.
        ((axes.BATCH, axes.SEQUENCE, axes.EMBED), PartitionSpec(("data", "fsdp"), "context", None)),
        ((None, axes.EMBED), PartitionSpec(None, ("fsdp", "context"))),
        ((), PartitionSpec()),
    ],
)
def test_partition_spec(names, expected):
    assert rules.partition_spec(names) == expected


def test_unknown_name_raises():
    with pytest.raises(ConfigError, match="'embd'"):
        rules.partition_spec(("embd",))


def test_mesh_fills_the_open_axis_and_refuses_a_misfit():
    devices = jax.devices()[:1]
    assert dict(mesh_lib.make_mesh(MeshConfig(), devices).shape) == dict.fromkeys(
        mesh_lib.MESH_AXES, 1
    )
    with pytest.raises(ConfigError, match=r"tensor=2.*does not fit 1 device"):
        mesh_lib.make_mesh(MeshConfig(tensor=2), devices)
    with pytest.raises(ConfigError, match="does not fit"):
        mesh_lib.make_mesh(MeshConfig(data=3), devices)


def test_logical_to_sharding_keeps_the_tree(mesh):
    tree = {"a": {"kernel": (axes.EMBED, axes.MLP)}, "b": (axes.EMBED,)}
    shapes = {"a": {"kernel": jnp.zeros((4, 6))}, "b": jnp.zeros(4)}
    got = rules.logical_to_sharding(tree, mesh, shapes)
    assert got["a"]["kernel"].spec == PartitionSpec(("fsdp", "context"), "tensor")
    assert got["b"].spec == PartitionSpec(("fsdp", "context"))


def test_indivisible_axis_names_the_weight():
    mesh = AbstractMesh((1, 1, 4, 1), mesh_lib.MESH_AXES)
    tree = {"layers": {"k": {"kernel": (axes.LAYERS, axes.EMBED, axes.KV_HEADS, axes.HEAD_DIM)}}}
    shape = types.SimpleNamespace(shape=(3, 8, 2, 4))
    with pytest.raises(ConfigError, match=r"layers/k/kernel: axis 'kv_heads' of size 2.*tensor"):
        rules._check_shape(
            "layers/k/kernel",
            tree["layers"]["k"]["kernel"],
            rules.partition_spec(tree["layers"]["k"]["kernel"]),
            shape.shape,
            mesh,
        )
    with pytest.raises(ConfigError, match="but logical axes"):
        rules.logical_to_sharding(
            {"w": (axes.EMBED,)},
            mesh_lib.make_mesh(MeshConfig(), jax.devices()[:1]),
            {"w": shape},
        )


def test_rows_must_divide():
    mesh = AbstractMesh((2, 2, 1, 1), mesh_lib.MESH_AXES)
    rules.check_rows(8, mesh)
    with pytest.raises(ConfigError, match="data.rows=6"):
        rules.check_rows(6, mesh)


def test_lengths_of_a_pack_must_divide():
    mesh = AbstractMesh((1, 1, 1, 4), mesh_lib.MESH_AXES)
    for name in ("text_len", "und_len", "gen_len"):
        data = dataclasses.replace(DataConfig(), **{name: 82})
        with pytest.raises(ConfigError, match=rf"data.{name}=82 .*mesh.context = 4"):
            rules.check_lengths(data, mesh)
        rules.check_lengths(dataclasses.replace(data, **{name: 84}), mesh)


def test_heads_must_divide():
    mesh = AbstractMesh((1, 1, 4, 1), mesh_lib.MESH_AXES)
    model = ModelConfig(num_heads=8, num_kv_heads=4)
    rules.check_heads(model, mesh)
    for changes, said in (
        ({"num_heads": 6, "num_kv_heads": 2}, "model.num_heads=6"),
        ({"num_kv_heads": 2}, "model.num_kv_heads=2"),
        ({"und_encoder": "siglip", "vit": VitSizes(num_heads=2)}, "model.vit.num_heads=2"),
    ):
        with pytest.raises(ConfigError, match=rf"{said} .*mesh.tensor = 4"):
            rules.check_heads(dataclasses.replace(model, **changes), mesh)


def test_put_batch_and_constrain(mesh):
    batch = {"x": np.arange(6, dtype=np.int32).reshape(2, 3)}
    put = rules.put_batch(batch, mesh)
    np.testing.assert_array_equal(put["x"], batch["x"])
    assert put["x"].sharding.spec == PartitionSpec(("data", "fsdp"), "context")
    assert rules.constrain(put["x"], (axes.BATCH, axes.SEQUENCE)) is put["x"]
    with pytest.raises(ConfigError):
        rules.constrain(put["x"], ("rows", None))
