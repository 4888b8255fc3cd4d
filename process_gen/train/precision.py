"""Numbers of few bits that small changes still reach.

A weight of 16 bits has 8 of them for its value: a change of less than a 256th part of it is lost
when the sum is rounded to the nearest. Rounded up or down by chance, with the odds that make the
expected value exact, such changes arrive in the mean (stochastic rounding, arXiv 2010.06192).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp


def store(tree: Any, like: Any, key: jax.Array) -> Any:
    """Rounds a tree of float32 arrays to the types of the arrays of `like`.

    float32 stays as it is; bfloat16 is rounded stochastically, every leaf from its own part of
    `key`. What is not finite stays what it is.
    """
    leaves, structure = jax.tree.flatten(tree)
    types = [leaf.dtype for leaf in jax.tree.leaves(like)]
    rounded = [
        leaf if dtype == jnp.float32 else _round(leaf, dtype, jax.random.fold_in(key, number))
        for number, (leaf, dtype) in enumerate(zip(leaves, types, strict=True))
    ]
    return jax.tree.unflatten(structure, rounded)


def _round(x: jax.Array, dtype: Any, key: jax.Array) -> jax.Array:
    if dtype != jnp.bfloat16:
        raise ValueError(f"weights are float32 or bfloat16, not {dtype}")
    # bfloat16 is the upper half of a float32. Adding less than one unit of that half carries into
    # it with the right odds; cutting the lower half off then is exact.
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    chance = jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)
    upper = (bits + chance) & jnp.uint32(0xFFFF0000)
    near = jax.lax.bitcast_convert_type(upper, jnp.float32)
    return jnp.where(jnp.isfinite(x), near, x).astype(dtype)
