"""Linear maps follow the devices that a program is made for, not those that are here."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax.sharding import AbstractDevice, AbstractMesh, use_abstract_mesh

from process_gen.core import axes
from process_gen.models import products as products_lib
from process_gen.models.layers import Linear
from process_gen.models.products import WIDE
from process_gen.sharding.mesh import MESH_AXES

nnx.use_eager_sharding(False)

TPU = AbstractDevice("TPU v5e", 1, "tpu")
CPU = AbstractDevice("cpu", None, "cpu")


@pytest.mark.parametrize(
    ("device", "tensor", "products"), [(CPU, 1, 2), (TPU, 1, 1), (TPU, 4, 1), (CPU, 4, 1)]
)
def test_only_one_cpu_takes_rows_apart(device, tensor, products, monkeypatch):
    """The head of two rows of text, as it is written: ``[2, D]``."""
    monkeypatch.setattr(products_lib, "available", lambda: False)
    head = Linear(8, 8 * WIDE, names=(axes.EMBED, axes.VOCAB), rngs=nnx.Rngs(0))
    with use_abstract_mesh(AbstractMesh((1, 1, tensor, 1), MESH_AXES, abstract_device=device)):
        traced = jax.make_jaxpr(lambda x: head(x))(jnp.ones((2, 8)))
    assert str(traced).count("dot_general") == products
