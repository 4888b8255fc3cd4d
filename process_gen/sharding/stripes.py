"""Joining streams of one row without moving tokens between the devices that share the row.

Put end to end, two streams that are cut over `context` would have to change hands, for the first
devices would hold the first stream alone. The order of tokens in memory means nothing here (masks
and positions are integers that travel with them), so each device joins its own pieces instead:

    device 0: a0 a1 b0    device 1: a2 a3 b1     instead of     a0 a1 a2 | a3 b0 b1
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp


def join(parts: Sequence[jax.Array], pieces: int) -> jax.Array:
    """Concatenates ``[B, N, ...]`` arrays along N, piece by piece; 1 piece is a plain one.

    Args:
      parts: may be empty along N.
      pieces: into how many pieces N is cut, `rules.pieces(axes.SEQUENCE)`.

    Raises:
      ValueError: a part does not divide.
    """
    parts = [part for part in parts if part.shape[1]] or parts[:1]
    if len(parts) == 1:
        return parts[0]
    if pieces == 1:
        return jnp.concatenate(parts, 1)
    for part in parts:
        if part.shape[1] % pieces:
            raise ValueError(f"{part.shape[1]} tokens do not divide into {pieces} pieces")
    cut = [x.reshape(x.shape[0], pieces, x.shape[1] // pieces, *x.shape[2:]) for x in parts]
    joined = jnp.concatenate(cut, 2)
    return joined.reshape(joined.shape[0], -1, *joined.shape[3:])


def split(joined: jax.Array, lengths: Sequence[int], pieces: int) -> list[jax.Array]:
    """Undoes `join` of parts with `lengths` tokens."""
    b, _, *rest = joined.shape
    cut = joined.reshape(b, pieces, -1, *rest) if pieces > 1 else joined[:, None]
    parts, at = [], 0
    for length in lengths:
        n = length // pieces
        parts.append(cut[:, :, at : at + n].reshape(b, length, *rest))
        at += n
    return parts
