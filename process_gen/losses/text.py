"""Next-token cross-entropy, one value a token."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def cross_entropy(logits_BxTxW: jax.Array, label_BxT: jax.Array) -> jax.Array:
    """``float32[B, T]``: softmax cross-entropy in float32, no label smoothing, no z-loss.

    Negative labels carry no loss: 0.
    """
    logits = logits_BxTxW.astype(jnp.float32)
    safe_BxT = jnp.maximum(label_BxT, 0)
    picked_BxT = jnp.take_along_axis(logits, safe_BxT[..., None], -1)[..., 0]
    loss_BxT = jax.nn.logsumexp(logits, -1) - picked_BxT
    return jnp.where(label_BxT >= 0, loss_BxT, 0.0)
