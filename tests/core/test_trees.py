"""Tests of nested dicts that are parts of one another."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from process_gen.core import trees

TREE = {"a": {"x": 1, "y": {"z": 2}}, "b": 3, "c": {"x": 4}}


def test_select_take_and_overlay_fit_together():
    part = trees.select(TREE, lambda path, leaf: path[-1] == "z" or leaf == 3)
    assert part == {"a": {"y": {"z": 2}}, "b": 3}
    assert trees.take(TREE, part) == part
    changed = trees.overlay(TREE, {"a": {"y": {"z": 7}}})
    assert changed == {"a": {"x": 1, "y": {"z": 7}}, "b": 3, "c": {"x": 4}}
    assert trees.overlay(TREE, {}) == TREE and trees.take(TREE, {}) == {}
    assert TREE["a"]["y"]["z"] == 2  # nothing is changed in place


def test_a_part_without_leaves_has_no_empty_dicts():
    assert trees.select(TREE, lambda path, leaf: leaf > 9) == {}


def test_a_fingerprint_names_every_byte():
    tree = {
        "a": {"x": np.arange(6, dtype=np.float32).reshape(2, 3), "y": jnp.ones((), jnp.bfloat16)},
        "b": None,
    }
    name = trees.fingerprint(tree)
    assert name == trees.fingerprint({"a": {"y": tree["a"]["y"], "x": jnp.asarray(tree["a"]["x"])}})
    x = np.asarray(tree["a"]["x"])
    for other in (x.reshape(3, 2), x.astype(np.float16), np.where(x == 5, 5.5, x)):
        assert trees.fingerprint({"a": {**tree["a"], "x": other}}) != name
    assert trees.fingerprint({"a": {"z": x, "y": tree["a"]["y"]}}) != name
