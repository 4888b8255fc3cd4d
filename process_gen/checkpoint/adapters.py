"""Low-rank adapters among the weights, and weights with their adapters worked in.

A linear map with an adapter has, beside its `kernel`, an entry `lora` with `a` and `b`; it computes
what one with the kernel `kernel + scale a b` computes. Arrays may have leading axes of layers, and
be of NumPy or JAX.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from process_gen.core import trees

NAME = "lora"


def without(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The entries that are no adapters."""
    return split(tree)[0]


def split(tree: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The entries that are no adapters, and those that are."""
    base = trees.select(tree, lambda path, leaf: NAME not in path)
    return base, trees.select(tree, lambda path, leaf: NAME in path)


def beside(stored: Mapping[str, Any], like: Mapping[str, Any]) -> dict[str, Any]:
    """`like`, and for each adapter of `stored` where it is to be put: a copy on every device.

    Args:
      stored: tree with the shapes and types of weights and adapters.
      like: tree of `jax.ShapeDtypeStruct`s with shardings, without adapters.
    """
    placed: dict[str, Any] = {}
    for name, value in stored.items():
        if name == NAME:
            at = like["kernel"].sharding
            whole = NamedSharding(at.mesh, PartitionSpec()) if hasattr(at, "mesh") else at
            placed[name] = {
                half: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole)
                for half, leaf in value.items()
            }
        else:
            placed[name] = beside(value, like[name]) if isinstance(value, Mapping) else like[name]
    return placed


def merge(base: Mapping[str, Any], halves: Mapping[str, Any], scale: float) -> dict[str, Any]:
    """The weights of the model without adapters that computes the same.

    Args:
      base: weights that are no adapters, JAX arrays.
      halves: those that are, see `split`.
      scale: `LoraConfig.scale` of the model.

    Returns:
      A tree like `base`, kernels in their own types.
    """
    merged = {
        name: merge(value, halves.get(name, {}), scale) if isinstance(value, Mapping) else value
        for name, value in base.items()
    }
    if NAME in halves:
        kernel = base["kernel"]
        merged["kernel"] = add(kernel, halves[NAME], scale).astype(kernel.dtype)
    return merged


def add(kernel: Any, halves: Mapping[str, Any], scale: float) -> Any:
    """``kernel + scale a b`` in float32."""
    numpy = np if isinstance(kernel, np.ndarray) else jnp
    a, b = (halves[name].astype(np.float32) for name in "ab")
    return kernel.astype(np.float32) + scale * numpy.matmul(a, b)
