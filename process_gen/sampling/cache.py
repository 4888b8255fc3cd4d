"""What the pieces of painting share: weights, pools of KV caches, keys of random numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from process_gen.core.attention_mask import NEVER, PAD_ORDER
from process_gen.core.batch import Place
from process_gen.core.configs import ModelConfig
from process_gen.kernels.native import LANES
from process_gen.models.transformer import Cache
from process_gen.models.unified import Outputs
from process_gen.sampling.threefry import UNROLLED

FOREVER = NEVER - 1  # visible to the end of the row's only trajectory
OUTSIDE = 1 << 30  # a slot that no pool has


class Weights(NamedTuple):
    """What painting needs of a checkpoint.

    Attributes:
      model: as `models.functional` has them.
      vae: of the codec; None where it has none.
    """

    model: Any
    vae: Any


class Pool(NamedTuple):
    """Keys ``[..., R, K, Dh, C]`` and values ``[..., R, K, C, Dh]`` of several rows.

    An array a layer, or one with a leading axis of layers, as `models.transformer.Cache` wants it.
    """

    k: tuple[jax.Array, ...]
    v: tuple[jax.Array, ...]


def make_pool(model: ModelConfig, rows: int, slots: int) -> Pool:
    """Empty caches in the model's type."""
    unrolled = model.layers == "unroll"
    lead = () if unrolled else (model.num_layers,)
    heads, width = model.num_kv_heads, model.head_dim
    count = model.num_layers if unrolled else 1
    k = [jnp.zeros((*lead, rows, heads, width, slots), model.dtype) for _ in range(count)]
    v = [jnp.zeros((*lead, rows, heads, slots, width), model.dtype) for _ in range(count)]
    return Pool(tuple(k), tuple(v))


def grown(pool: Pool, extra: int) -> Pool:
    """The same rows with `extra` more slots each."""

    def pad(x: jax.Array, axis: int) -> jax.Array:
        return jnp.pad(x, [(0, extra if i == x.ndim + axis else 0) for i in range(x.ndim)])

    return Pool(tuple(pad(x, -1) for x in pool.k), tuple(pad(x, -2) for x in pool.v))


def tokens(pool: Pool, row: int) -> tuple[jax.Array, jax.Array]:
    """Keys and values of a row's slots, ``[L, C, K, Dh]``: a copy, for comparisons."""

    def layers(parts: tuple[jax.Array, ...]) -> jax.Array:
        return parts[0][:, row] if _stacked(parts) else jnp.stack([x[row] for x in parts])

    return layers(pool.k).transpose(0, 3, 1, 2), layers(pool.v).swapaxes(1, 2)


def read(
    pool: Pool, index_B: jax.Array, visible_from_BxC: jax.Array, visible_to_BxC: jax.Array
) -> list[Cache]:
    """The first slots of some rows, as many as there are intervals; no cache where there are none.

    A call is handed the intervals of the slots that its rows use, so that short paintings do not
    pay for the room that long ones may need.
    """
    slots = visible_to_BxC.shape[1]
    if not slots:
        return []
    k = tuple(x[..., index_B, :, :, :slots] for x in pool.k)
    v = tuple(x[..., index_B, :, :slots, :] for x in pool.v)
    return [Cache(k, v, visible_from_BxC, visible_to_BxC)]


def look(
    pool: Pool, index_B: jax.Array, visible_from_BxC: jax.Array, visible_to_BxC: jax.Array
) -> list[Cache]:
    """The same without a copy: for a program that does not write the pool, see `PooledKeys`."""
    if _stacked(pool.k) or not visible_to_BxC.shape[1]:
        return read(pool, index_B, visible_from_BxC, visible_to_BxC)
    return [Cache(pool.k, pool.v, visible_from_BxC, visible_to_BxC, index_B)]


def _stacked(parts: tuple[jax.Array, ...]) -> bool:
    """Whether there is one array of all layers."""
    return parts[0].ndim == 5


def write(
    pool: Pool, index_B: jax.Array, slot_BxS: jax.Array, k_LxBxSxKxDh: jax.Array, v: jax.Array
) -> Pool:
    """Writes new tokens into slots of rows; a slot outside the pool drops its token.

    Only the new tokens are touched: with a donated pool nothing else moves.
    """
    index_BxS = jnp.broadcast_to(index_B[:, None], slot_BxS.shape)

    def layers(x: jax.Array) -> Any:
        return [jnp.moveaxis(x, 0, 2)] if _stacked(pool.k) else x

    return Pool(
        tuple(
            old.at[..., index_BxS, :, :, slot_BxS].set(new, mode="drop")
            for old, new in zip(pool.k, layers(k_LxBxSxKxDh), strict=True)
        ),
        tuple(
            old.at[..., index_BxS, :, slot_BxS, :].set(new, mode="drop")
            for old, new in zip(pool.v, layers(v), strict=True)
        ),
    )


def write_read(
    pool: Pool, index_B: jax.Array, slot_BxS: jax.Array, out: Outputs, context: Sequence[Cache]
) -> Pool:
    """Writes the tokens of a forward pass into the pool that it read its context from; see `write`.

    All that reads the pool comes first. The compiler does not find that order by itself: it would
    write to a copy of the whole pool.
    """
    if context:
        # A condition that is never so, which the compiler cannot know.
        never_Bx1 = out.hidden_BxTxD[:, -1, :1] < -jnp.inf
        slot_BxS = jnp.where(never_Bx1, OUTSIDE, slot_BxS)
    return write(pool, index_B, slot_BxS, out.k_LxBxSxKxDh, out.v_LxBxSxKxDh)


# ---- tokens of a loop, kept beside the cache that it reads, a slot a turn ------------------------


def whole_strips(turns: int) -> int:
    """Room for so many turns at least, as `kernels.native` reads it where it lies."""
    return -(-turns // LANES) * LANES


def make_notes(model: ModelConfig, rows: int, turns: int) -> Cache:
    """No tokens yet, and room for one a row and turn."""
    never = jnp.full((rows, turns), NEVER, jnp.int32)
    return Cache(*make_pool(model, rows, turns), never, jnp.full_like(never, PAD_ORDER))


class Newest(NamedTuple):
    """Tokens of a loop's last turn, one a row, which its notes do not hold yet.

    Attributes:
      k_LxBx1xKxDh, v_LxBx1xKxDh: their keys and values.
      order_B: int32; a row of order -1 has none.
    """

    k_LxBx1xKxDh: jax.Array
    v_LxBx1xKxDh: jax.Array
    order_B: jax.Array


def nothing_new(model: ModelConfig, rows: int) -> Newest:
    """What a loop's first turn finds."""
    shape = (model.num_layers, rows, 1, model.num_kv_heads, model.head_dim)
    none = jnp.zeros(shape, model.dtype)
    return Newest(none, none, jnp.full(rows, PAD_ORDER, jnp.int32))


def note(notes: Cache, turn: jax.Array, newest: Newest) -> Cache:
    """Adds the tokens of a turn.

    A turn that begins by noting those of the one before, and reads the notes after that, changes
    them in place. One that ends by noting its own has some copied: the compiler does not know that
    all were read before.
    """

    def layers(x: jax.Array) -> Any:
        x = x[:, :, 0]
        return [x] if _stacked(notes.k) else x

    def put(old: jax.Array, new: jax.Array, axis: int) -> jax.Array:
        new = jnp.expand_dims(new, axis)
        return jax.lax.dynamic_update_slice_in_dim(old, new, turn, old.ndim + axis)

    k_LxBx1xKxDh, v_LxBx1xKxDh, order_B = newest
    used_B = order_B >= 0
    return Cache(
        tuple(put(old, new, -1) for old, new in zip(notes.k, layers(k_LxBx1xKxDh), strict=True)),
        tuple(put(old, new, -2) for old, new in zip(notes.v, layers(v_LxBx1xKxDh), strict=True)),
        put(notes.visible_from_BxC, jnp.where(used_B, order_B, NEVER), -1),
        put(notes.visible_to_BxC, jnp.where(used_B, FOREVER, PAD_ORDER), -1),
    )


def keep(pool: Pool, index_B: jax.Array, slot_BxM: jax.Array, notes: Cache) -> Pool:
    """Writes a loop's tokens into slots of rows; see `write`."""

    def tokens(parts: tuple[jax.Array, ...], axis: int) -> jax.Array:
        moved = [jnp.moveaxis(x, axis, -3) for x in parts]
        return moved[0] if _stacked(parts) else jnp.stack(moved)

    return write(pool, index_B, slot_BxM, tokens(notes.k, -1), tokens(notes.v, -2))


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
        out = jax.random.key(seed_4[0], impl=UNROLLED)
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
