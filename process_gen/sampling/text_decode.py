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

    def nucleus(sharp_BxW: jax.Array) -> jax.Array:
        falling_BxW = -jnp.sort(-sharp_BxW, -1)
        probability_BxW = jax.nn.softmax(falling_BxW, -1)
        before_BxW = jnp.cumsum(probability_BxW, -1) - probability_BxW
        kept_BxW = jnp.where(before_BxW < top_p, falling_BxW, jnp.inf)
        least_Bx1 = jnp.min(kept_BxW, -1, keepdims=True)
        return jnp.where(sharp_BxW >= least_Bx1, sharp_BxW, -jnp.inf)

    def sampled(logits_BxW: jax.Array) -> jax.Array:
        sharp_BxW = logits_BxW / jnp.maximum(temperature, 1e-4)
        # Sorting a vocabulary takes longer than a small model's step.
        whole = jnp.asarray(top_p) >= 1
        allowed_BxW = jax.lax.cond(whole, lambda sharp: sharp, nucleus, sharp_BxW)
        noise_BxW = jax.vmap(lambda key: jax.random.gumbel(key, logits_BxW.shape[1:]))(keys_B)
        return _likeliest(allowed_BxW + noise_BxW)

    return jax.lax.cond(jnp.asarray(temperature) > 0, sampled, _likeliest, logits_BxW)


def _likeliest(x_BxW: jax.Array) -> jax.Array:
    """``jnp.argmax`` as two passes that are made of vectors; XLA's own goes number by number."""
    place_BxW = jax.lax.broadcasted_iota(jnp.int32, x_BxW.shape, 1)
    last = x_BxW.shape[1] - 1  # of what has no largest, which is nothing but NaN
    return jnp.min(jnp.where(x_BxW == jnp.max(x_BxW, -1, keepdims=True), place_BxW, last), -1)
