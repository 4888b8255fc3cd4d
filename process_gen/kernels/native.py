"""Interval attention for CPUs in C++ (`native_attention.cc`, `native_few.cc`).

Rows are sorted as in `by_row`, whose small products XLA runs on one core: here rows and key heads
are dealt to all cores, and queries visit strips of 16 keys (`native_visits.h`), not blocks of 64.
Few queries over caches, such as that of a text that is being written, have a function of their own:
nothing is sorted, and any number of caches is read as they lie.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from process_gen.kernels.dense import MIN_QUERIES, dense
from process_gen.kernels.key_block import ATTENDED, CachedKeys, KeyBlock, PooledKeys
from process_gen.kernels.native_library import library

_STRIP = 16  # keys that are visited together
LANES = 8  # of a vector: features come in wholes of it, and few queries visit so many keys


def native(
    q_BxSxHxDh: jax.Array,
    order_BxS: jax.Array,
    blocks: Sequence[KeyBlock | CachedKeys | PooledKeys],
) -> jax.Array:
    """The implementation "native" of `interval_attention`; computes in float32.

    The first cache of which whole strips of 16 are seen is read where it lies; all other blocks of
    keys are copied together. Few queries read all caches where they lie if whole strips of 8 of
    each are seen.

    Args:
      q_BxSxHxDh, order_BxS: see `interval_attention`.
      blocks: at least one of new tokens.

    Raises:
      ConfigError: there is no C++ compiler, or it refuses the sources.
    """
    library()
    few = q_BxSxHxDh.shape[1] < MIN_QUERIES
    strip = LANES if few else _STRIP
    caches, rest = [], []
    for block in blocks:
        if isinstance(block, KeyBlock):
            rest.append(block)
        elif lies_well(block[0], block[-1].shape[1], strip) and (few or not caches):
            caches.append(block if isinstance(block, PooledKeys) else _pool(block))
        else:
            rest.append((block.taken() if isinstance(block, PooledKeys) else block).block())
    own = KeyBlock(*(jnp.concatenate(part, 1) for part in zip(*rest, strict=True)))
    k, v = own.k_BxSxKxDh.astype(jnp.float32), own.v_BxSxKxDh.astype(jnp.float32)
    own, q = own._replace(k_BxSxKxDh=k, v_BxSxKxDh=v), q_BxSxHxDh.astype(jnp.float32)
    if few and caches:
        out = _attend_few(q, order_BxS, own, caches)
    else:
        out = _attend(q, order_BxS, own, caches[0] if caches else _no_cache(own))
    return out.astype(q_BxSxHxDh.dtype)


def lies_well(keys: jax.Array, slots: int, strip: int = LANES) -> bool:
    """Whether so many slots of keys ``[..., Dh, C]`` are read as they lie, by default by few."""
    return keys.dtype == jnp.float32 and not (slots % strip or keys.shape[-2] % LANES)


def _pool(cache: CachedKeys) -> PooledKeys:
    """A pool of these rows alone."""
    k, v, *interval = cache
    return PooledKeys(k, v, jnp.arange(len(k), dtype=jnp.int32), *interval)


def _no_cache(own: KeyBlock) -> PooledKeys:
    b, _, heads, width = own.k_BxSxKxDh.shape
    none = jnp.zeros((b, 0), jnp.int32)
    k, v = jnp.zeros((b, heads, width, 0)), jnp.zeros((b, heads, 0, width))
    return _pool(CachedKeys(k, v, none, none))


@jax.custom_vjp
def _attend(q: jax.Array, order: jax.Array, own: KeyBlock, cache: PooledKeys) -> jax.Array:
    return _call(q, order, own, cache, q.shape)[0]


def _call(
    q: jax.Array, order: jax.Array, own: KeyBlock, cache: PooledKeys, *results: tuple[int, ...]
) -> Sequence[jax.Array]:
    k, v, *interval = own
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in results]
    call = jax.ffi.ffi_call("interval_attention_forward", shapes)
    return call(q, k, v, order, *interval, *cache)


def _forward(
    q: jax.Array, order: jax.Array, own: KeyBlock, cache: PooledKeys
) -> tuple[jax.Array, tuple]:
    b, s, heads, _ = q.shape
    out, lse = _call(q, order, own, cache, q.shape, (b, heads, s))
    out, lse = checkpoint_name(out, ATTENDED), checkpoint_name(lse, ATTENDED)
    return out, (q, order, own, cache, out, lse)


def _backward(kept: tuple, d_out: jax.Array) -> tuple:
    q, order, own, cache, out, lse = kept
    if cache.visible_to_BxS.shape[1]:  # nothing is trained through a cache: no kernel of its own
        dq, _, d_own, (d_cache,) = _by_dense(q, order, own, [cache], d_out)
        return dq, None, d_own, d_cache
    delta = (d_out * out).sum(-1).swapaxes(1, 2)
    results = [jax.ShapeDtypeStruct(x.shape, jnp.float32) for x in (q, *own[:2])]
    call = jax.ffi.ffi_call("interval_attention_backward", results)
    dq, *d_own = call(q, *own[:2], order, *own[2:], lse, delta, d_out)
    d_cache = (jnp.zeros_like(x) for x in cache[:2])
    # Integers have no gradient.
    return dq, None, KeyBlock(*d_own, None, None), PooledKeys(*d_cache, None, None, None)


_attend.defvjp(_forward, _backward)


@jax.custom_vjp
def _attend_few(
    q: jax.Array, order: jax.Array, own: KeyBlock, caches: list[PooledKeys]
) -> jax.Array:
    k, v, *interval = own
    call = jax.ffi.ffi_call("few_queries_forward", jax.ShapeDtypeStruct(q.shape, jnp.float32))
    return call(q, k, v, order, *interval, *(x for cache in caches for x in cache))


def _keep_all(*args: Any) -> tuple[jax.Array, tuple]:
    return _attend_few(*args), args


def _by_dense(
    q: jax.Array, order: jax.Array, own: KeyBlock, caches: list[PooledKeys], d_out: jax.Array
) -> tuple:
    """Gradients through caches."""

    def plain(q: jax.Array, own_kv: tuple, caches_kv: list[tuple]) -> jax.Array:
        pools = [PooledKeys(*kv, *cache[2:]) for kv, cache in zip(caches_kv, caches, strict=True)]
        return dense(q, order, [*(p.taken() for p in pools), KeyBlock(*own_kv, *own[2:])])

    _, back = jax.vjp(plain, q, own[:2], [cache[:2] for cache in caches])
    dq, d_own, d_caches = back(d_out)
    d_pools = [PooledKeys(*d_cache, None, None, None) for d_cache in d_caches]
    return dq, None, KeyBlock(*d_own, None, None), d_pools


_attend_few.defvjp(_keep_all, lambda kept, d_out: _by_dense(*kept, d_out))
