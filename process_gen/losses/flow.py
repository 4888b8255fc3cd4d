"""Flow-matching loss, one value a latent token, in velocity units whatever the head predicts."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def velocity_error(velocity_BxGxP: jax.Array, target_BxGxP: jax.Array) -> jax.Array:
    """``float32[B, G]``: squared error, mean over a token's features, as in BAGEL."""
    error = velocity_BxGxP.astype(jnp.float32) - target_BxGxP.astype(jnp.float32)
    return jnp.mean(jnp.square(error), -1)
