"""Norms of gradients and updates, of each part of a model and of the whole.

They are sums of squares inside the compiled step: scalars that leave the device with its other
metrics, one step late, so that nobody waits for them.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

Norms = dict[str, tuple[jax.Array, jax.Array]]


def part(path: Any) -> str:
    """The part that a weight is counted under.

    The experts' layers are `und` and `gen`; everything else goes by its top-level name, as in
    `optimizer.frozen`.
    """
    names = jax.tree_util.keystr(path, simple=True, separator="/").split("/")
    return names[1] if names[0] == "layers" and len(names) > 2 else names[0]


def norms(name: str, tree: Any) -> Norms:
    """Metrics of a tree like the weights: `name`, and `name/PART` for every part of it.

    Args:
      name: "grad_norm" or "update_norm".
      tree: nested dict of float32 arrays.

    Returns:
      Euclidean norms as (value, 1), float32 scalars.
    """
    squares: dict[str, jax.Array] = {}
    for path, leaf in jax.tree.leaves_with_path(tree):
        at = part(path)
        squares[at] = squares.get(at, jnp.float32(0.0)) + jnp.sum(jnp.square(leaf))
    one = jnp.float32(1.0)
    found = {f"{name}/{at}": (jnp.sqrt(square), one) for at, square in squares.items()}
    return {name: (jnp.sqrt(sum(squares.values(), jnp.float32(0.0))), one), **found}
