"""Interval attention for CPUs in C++ (`native_attention.cc`).

Rows are sorted as in `by_row`, whose small products XLA runs on one core: here rows and key heads
are dealt to all cores, and queries visit strips of 16 keys (`native_visits.h`), not blocks of 64.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from process_gen.kernels.dense import dense
from process_gen.kernels.key_block import ATTENDED, CachedKeys, KeyBlock, PooledKeys
from process_gen.kernels.native_library import library

_STRIP, _LANES = 16, 8  # keys that are visited together, and features that a vector holds


def native(
    q_BxSxHxDh: jax.Array,
    order_BxS: jax.Array,
    blocks: Sequence[KeyBlock | CachedKeys | PooledKeys],
) -> jax.Array:
    """The implementation "native" of `interval_attention`; computes in float32.

    The first cache of which whole strips of 16 are seen is read where it lies; all other blocks of
    keys are copied together.

    Args:
      q_BxSxHxDh, order_BxS: see `interval_attention`.
      blocks: at least one of new tokens.

    Raises:
      ConfigError: there is no C++ compiler, or it refuses the sources.
    """
    library()
    cache, rest = None, []
    for block in blocks:
        if isinstance(block, KeyBlock):
            rest.append(block)
        elif cache is None and _lies_well(block):
            cache = block if isinstance(block, PooledKeys) else _pool(block)
        else:
            rest.append((block.taken() if isinstance(block, PooledKeys) else block).block())
    own = KeyBlock(*(jnp.concatenate(part, 1) for part in zip(*rest, strict=True)))
    k, v = own.k_BxSxKxDh.astype(jnp.float32), own.v_BxSxKxDh.astype(jnp.float32)
    own = own._replace(k_BxSxKxDh=k, v_BxSxKxDh=v)
    cache = cache or _no_cache(own)
    return _attend(q_BxSxHxDh.astype(jnp.float32), order_BxS, own, cache).astype(q_BxSxHxDh.dtype)


def _lies_well(cache: CachedKeys | PooledKeys) -> bool:
    keys, seen = cache[0], cache[-1]
    return keys.dtype == jnp.float32 and not (seen.shape[1] % _STRIP or keys.shape[2] % _LANES)


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
        floats = (q, own[:2], cache[:2])

        def plain(q: jax.Array, own_kv: tuple, cache_kv: tuple) -> jax.Array:
            pool = PooledKeys(*cache_kv, *cache[2:])
            return dense(q, order, [pool.taken(), KeyBlock(*own_kv, *own[2:])])

        dq, d_own, d_cache = jax.vjp(plain, *floats)[1](d_out)
    else:
        delta = (d_out * out).sum(-1).swapaxes(1, 2)
        results = [jax.ShapeDtypeStruct(x.shape, jnp.float32) for x in (q, *own[:2])]
        call = jax.ffi.ffi_call("interval_attention_backward", results)
        dq, *d_own = call(q, *own[:2], order, *own[2:], lse, delta, d_out)
        d_cache = (jnp.zeros_like(x) for x in cache[:2])
    # Integers have no gradient.
    return dq, None, KeyBlock(*d_own, None, None), PooledKeys(*d_cache, None, None, None)


_attend.defvjp(_forward, _backward)
