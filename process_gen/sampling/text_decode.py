"""Choosing the next token."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def next_token(
    logits_BxW: jax.Array,
    keys_B: jax.Array,
    temperature: jax.Array | float,
    top_p: jax.Array | float,
) -> jax.Array:
    """Samples ``int32[B]`` by the Gumbel trick, one key a row.

    Args:
      logits_BxW: float32; -inf where a token is not legal.
      keys_B: random keys.
      temperature: 0 takes the likeliest token.
      top_p: tokens outside the smallest set whose probability reaches this are left out (nucleus
        sampling, Holtzman et al. 1904.09751); the likeliest is always in it.
    """
    sharp_BxW = logits_BxW / jnp.maximum(temperature, 1e-4)
    falling_BxW = -jnp.sort(-sharp_BxW, -1)
    probability_BxW = jax.nn.softmax(falling_BxW, -1)
    before_BxW = jnp.cumsum(probability_BxW, -1) - probability_BxW
    kept_BxW = jnp.where(before_BxW < top_p, falling_BxW, jnp.inf)
    least_Bx1 = jnp.min(kept_BxW, -1, keepdims=True)
    allowed_BxW = jnp.where(sharp_BxW >= least_Bx1, sharp_BxW, -jnp.inf)
    noise_BxW = jax.vmap(lambda key: jax.random.gumbel(key, logits_BxW.shape[1:]))(keys_B)
    sampled_B = jnp.argmax(allowed_BxW + noise_BxW, -1)
    greedy_B = jnp.argmax(logits_BxW, -1)
    return jnp.where(jnp.asarray(temperature) > 0, sampled_B, greedy_B).astype(jnp.int32)
