"""The smallest model, and weights with which every part of a model has an effect."""

from __future__ import annotations

from typing import Any

import jax

SMALLEST = {
    "width": 16,
    "mlp_width": 32,
    "num_layers": 2,
    "num_heads": 2,
    "num_kv_heads": 1,
    "head_dim": 8,
    "layers": "scan",
}


@jax.jit
def lively(params: Any) -> Any:
    """Fresh weights with noise on top: heads start at 0, which would hide most of what to find.

    One program: by itself every shape would be one more to compile.
    """
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(7), len(leaves))
    pairs = zip(leaves, keys, strict=True)
    return jax.tree.unflatten(tree, [x + 0.2 * jax.random.normal(k, x.shape) for x, k in pairs])
