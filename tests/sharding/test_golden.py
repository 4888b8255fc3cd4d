"""The sharding of every weight of the 7B model, in files to be read and reviewed by diff.

A weight that is suddenly whole on every device, or cut along another axis, costs memory or traffic
and breaks nothing else. Where a change is meant: ``pytest tests/sharding --update-golden``.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import jax
import pytest
from jax.sharding import AbstractMesh

from configs import bagel_7b
from process_gen.core import configs
from process_gen.models import functional
from process_gen.sharding import rules
from process_gen.sharding.mesh import MESH_AXES

GOLDEN = Path(__file__).parent / "golden"
MESHES = {
    "fsdp": (1, 64, 1, 1),
    "tensor_context": (1, 16, 2, 2),
}


@functools.cache
def weights() -> tuple[Any, Any]:
    """Logical axes and shapes."""
    mapping = bagel_7b.get_config().to_dict()
    fns = functional.build(configs.from_mapping(mapping).model)
    return fns.logical_axes, jax.eval_shape(lambda: fns.init(jax.random.key(0)))


def dump(sizes: tuple[int, ...]) -> str:
    """A line a weight: name, type and shape, logical axes, partition, shape on a device."""
    logical_axes, shapes = weights()
    mesh = AbstractMesh(sizes, MESH_AXES)
    shardings = jax.tree.leaves(rules.logical_to_sharding(logical_axes, mesh, shapes))
    names = jax.tree.leaves(logical_axes, is_leaf=lambda x: isinstance(x, tuple))
    lines = [f"# {', '.join(f'{a} {n}' for a, n in zip(MESH_AXES, sizes, strict=True))}"]
    for (path, leaf), logical, at in zip(
        jax.tree.leaves_with_path(shapes), names, shardings, strict=True
    ):
        where = jax.tree_util.keystr(path, simple=True, separator="/")
        cut = ", ".join("+".join(p) if isinstance(p, tuple) else str(p or "-") for p in at.spec)
        own = list(at.shard_shape(leaf.shape))
        axes = ", ".join(str(name or "-") for name in logical)
        lines.append(f"{where}: {leaf.dtype}{list(leaf.shape)} ({axes}) -> ({cut}) {own}")
    return "\n".join(lines) + "\n"


@pytest.mark.golden
@pytest.mark.parametrize("name", MESHES)
def test_every_weight_lies_where_it_did(name, update_golden):
    found, file = dump(MESHES[name]), GOLDEN / f"bagel_7b_{name}.txt"
    if update_golden:
        file.write_text(found)
    assert found == file.read_text(), "if this is meant: pytest tests/sharding --update-golden"


def test_another_rule_is_noticed(monkeypatch):
    before = dump(MESHES["tensor_context"])
    monkeypatch.setattr(rules, "RULES", {**rules.RULES, "mlp": ()})
    assert dump(MESHES["tensor_context"]) != before


def test_little_is_held_whole():
    """Of 14.6 billion weights a device of 64 holds a 64th, and less than 0.3 % more."""
    logical_axes, shapes = weights()
    mesh = AbstractMesh(MESHES["fsdp"], MESH_AXES)
    shardings = rules.logical_to_sharding(logical_axes, mesh, shapes)
    leaves = list(zip(jax.tree.leaves(shapes), jax.tree.leaves(shardings), strict=True))
    everything = sum(leaf.size for leaf, _ in leaves)
    own = sum(functools.reduce(lambda a, b: a * b, at.shard_shape(x.shape)) for x, at in leaves)
    assert everything > 14e9
    assert everything / 64 <= own < 1.003 * everything / 64
