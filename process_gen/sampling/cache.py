"""What the pieces of painting share: weights, pools of KV caches, keys of random numbers."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from process_gen.core.attention_mask import NEVER
from process_gen.core.batch import Place
from process_gen.core.configs import ModelConfig
from process_gen.models.transformer import Cache

FOREVER = NEVER - 1  # visible to the end of the row's only trajectory


class Weights(NamedTuple):
    """What painting needs of a checkpoint.

    Attributes:
      model: as `models.functional` has them.
      vae: of the codec; None where it has none.
    """

    model: Any
    vae: Any


class Pool(NamedTuple):
    """Keys and values of several rows, ``[L, R, C, K, Dh]``."""

    k: jax.Array
    v: jax.Array


def make_pool(model: ModelConfig, rows: int, slots: int) -> Pool:
    """Empty caches in the model's type."""
    shape = (model.num_layers, rows, slots, model.num_kv_heads, model.head_dim)
    return Pool(jnp.zeros(shape, model.dtype), jnp.zeros(shape, model.dtype))


def write(cache: Cache, k: jax.Array, v: jax.Array, place: Place, slot_BxS: jax.Array) -> Cache:
    """Writes new tokens into cache slots; a slot outside the cache drops its token."""

    def row(cached: jax.Array, new: jax.Array, slot_S: jax.Array) -> jax.Array:
        return cached.at[..., slot_S, :, :].set(new, mode="drop")

    over_batch = jax.vmap(row, in_axes=(1, 1, 0), out_axes=1)
    integers = jax.vmap(lambda cached, new, slot: cached.at[slot].set(new, mode="drop"))
    return Cache(
        over_batch(cache.k_LxBxCxKxDh, k, slot_BxS),
        over_batch(cache.v_LxBxCxKxDh, v, slot_BxS),
        integers(cache.visible_from_BxC, place.visible_from, slot_BxS),
        integers(cache.visible_to_BxC, place.visible_to, slot_BxS),
    )


def empty_part(batch: int, features: int) -> tuple[Place, jax.Array, jax.Array]:
    """A part without tokens: its place, its features and its table ids."""
    none = jnp.zeros((batch, 0), jnp.int32)
    return Place(none, none, none, none), jnp.zeros((batch, 0, features)), none


def keys(seed_Bx4: jax.Array) -> jax.Array:
    """A key a row, from the request and the segment alone, never from batch mates.

    Args:
      seed_Bx4: uint32: the request's seed, prompt index, sample and segment number.
    """

    def key(seed_4: jax.Array) -> jax.Array:
        out = jax.random.key(seed_4[0])
        for number in seed_4[1:]:
            out = jax.random.fold_in(out, number)
        return out

    return jax.vmap(key)(seed_Bx4)


def noise(seed_Bx4: jax.Array, shape: tuple[int, ...], use: int | None = None) -> jax.Array:
    """Standard normal draws ``[B, *shape]``.

    Args:
      seed_Bx4: see `keys`.
      shape: of a row.
      use: None for what a picture starts from; a number for another use of the same segment.
    """

    def draw(key: jax.Array) -> jax.Array:
        return jax.random.normal(key if use is None else jax.random.fold_in(key, use), shape)

    return jax.vmap(draw)(keys(seed_Bx4))


READING = 1  # the use of a draw for a picture that a context reads
