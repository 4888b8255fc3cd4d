"""Attention in C++, compiled here (`kernels.native`); more in `test_interval_attention.py`."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from process_gen.core.attention_mask import NEVER, PAD_ORDER
from process_gen.kernels import native_library as native_lib
from process_gen.kernels.dense import dense
from process_gen.kernels.interval_attention import interval_attention
from process_gen.kernels.key_block import CachedKeys, KeyBlock, PooledKeys
from process_gen.kernels.native import native
from tests.kernels.against_dense import (
    check,
    check_bfloat16,
    check_zeros,
    differences,
    on,
    packs,
    tensors,
)

pytestmark = pytest.mark.skipif(native_lib.compiler() is None, reason="needs a C++ compiler")


def test_equals_dense_with_three_gradients():
    place = packs(2, 4)
    assert place.order.shape[1] % 64
    check_zeros(place, check(native, place, 4, 2)[0])


@pytest.mark.parametrize(("heads", "kv_heads", "cuts"), [(7, 1, ()), (3, 3, (170, 171))])
def test_every_grouping_of_heads_and_split_of_keys(heads, kv_heads, cuts):
    check(native, packs(3, 4), heads, kv_heads, cuts, relative=True)


@pytest.mark.parametrize("width", [3, 8, 24, 32, 40, 56, 64])
def test_every_width_of_a_head(width):
    """Each takes other tiles of the products; widths that eight does not divide are filled up."""
    place = packs(1, 1)
    arrays = tensors(place, 2, 1, width)
    expected, got = on(dense, place, arrays), on(native, place, arrays)
    largest = [max(1.0, float(np.abs(np.asarray(x)).max())) for x in expected]
    errors = differences(got, expected)
    assert max(e / x for e, x in zip(errors, largest, strict=True)) < 1e-5
    other = (arrays[0], arrays[1], -arrays[2], arrays[3])
    assert differences(on(native, place, other), expected)[0] > 0.1


def test_bfloat16_stays_close():
    check_bfloat16(native, packs(2, 0))


def test_the_same_bytes_every_time():
    """Whichever thread takes which row."""
    place = packs(6, 6)
    arrays = tensors(place, 4, 2)
    first = on(native, place, arrays)
    for _ in range(5):
        for a, b in zip(first, on(native, place, arrays), strict=True):
            assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
    moved = on(native, place, tensors(place, 4, 2, seed=1))
    assert np.asarray(moved[0]).tobytes() != np.asarray(first[0]).tobytes()


def test_many_calls_at_a_time_end():
    """All threads of the pool may be inside a call, and wait for no other thread to come free."""
    place = packs(2, 2)
    q, k, v, _ = tensors(place, 4, 2)
    block = KeyBlock(k, v, jnp.asarray(place.visible_from), jnp.asarray(place.visible_to))
    order = jnp.asarray(place.order)

    def several(q):
        return [native(q + i / 8, order, [block]) for i in range(8)]

    outs = jax.block_until_ready([jax.jit(several)(q + n) for n in range(4)])
    assert differences([outs[1][4]], [dense(q + 1.5, order, [block])])[0] < 1e-5
    assert differences([outs[1][4]], [outs[0][4]])[0] > 0.1


def test_strips_that_nobody_sees_are_not_visited():
    """Keys that would spoil every sum: two strips of them, seen by nobody or by the last query."""
    q, k, v = (jax.random.normal(jax.random.key(i), (1, 64, 2, 8)) for i in range(3))
    order = jnp.arange(64)[None]

    def out(more, start, end):
        spoiled = [jnp.pad(x, ((0, 0), (0, more), (0, 0), (0, 0)), constant_values=jnp.nan)
                   for x in (k, v)]  # fmt: skip
        first = jnp.pad(order, ((0, 0), (0, more)), constant_values=start)
        last = jnp.pad(jnp.full_like(order, 99), ((0, 0), (0, more)), constant_values=end)
        return native(q, order, [KeyBlock(*spoiled, first, last)])

    plain = out(0, 0, 0)
    assert differences([out(32, NEVER, PAD_ORDER)], [plain])[0] == 0.0
    seen_by_the_last = jnp.isfinite(out(32, 63, 63))
    assert bool(seen_by_the_last[:, :63].all()) and not bool(seen_by_the_last[:, 63].any())


def with_cache(slots, width, queries=70, rows=3, heads=4, kv_heads=2):
    """Queries of one order a row, a cache that is filled to various lengths, and new keys."""
    rng = np.random.default_rng(slots + width)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    order = jnp.asarray(np.repeat([[40], [90], [5]], queries, 1), jnp.int32)
    used = np.arange(slots) < np.array([[slots], [slots // 2 + 3], [0]])
    start = np.where(used, rng.integers(0, 60, used.shape), NEVER).astype(np.int32)
    end = np.where(used, start + rng.integers(0, 60, used.shape), PAD_ORDER).astype(np.int32)
    k, v = normal(rows, kv_heads, width, slots), normal(rows, kv_heads, slots, width)
    cache = CachedKeys(k, v, jnp.asarray(start), jnp.asarray(end))
    new = [normal(rows, queries, kv_heads, width) for _ in range(2)]
    return normal(rows, queries, heads, width), order, (cache, KeyBlock(*new, order, order))


@pytest.mark.parametrize(
    ("slots", "width"), [(64, 8), (192, 24), (256, 64), (80, 8), (100, 8), (64, 12)]
)
def test_over_a_cache(slots, width):
    """Whole strips of whole vectors are read as they lie, others are copied first."""
    q, order, blocks = with_cache(slots, width)
    out = jax.jit(native)(q, order, blocks)
    assert differences([out], [dense(q, order, blocks)])[0] < 1e-5
    assert differences([out], [dense(q, order, blocks[1:])])[0] > 0.1


def in_a_pool(cache, pool_slots):
    """The same keys as rows 4, 0 and 2 of five, before more slots; all else is nan."""
    row = jnp.array([4, 0, 2], jnp.int32)
    k, v, *interval = cache
    slots, width = k.shape[3], k.shape[2]
    pool_k = jnp.full((5, k.shape[1], width, pool_slots), jnp.nan).at[row, ..., :slots].set(k)
    pool_v = jnp.full((5, k.shape[1], pool_slots, width), jnp.nan).at[row, :, :slots].set(v)
    return PooledKeys(pool_k, pool_v, row, *interval)


@pytest.mark.parametrize("implementation", ["native", "chunked", "dense"])
@pytest.mark.parametrize(("slots", "width", "queries"), [(64, 24, 70), (48, 8, 3), (40, 8, 70)])
def test_rows_of_a_pool(slots, width, queries, implementation):
    """Read where they lie, or taken out where that cannot be."""
    q, order, (cache, new) = with_cache(slots, width, queries)
    run = jax.jit(interval_attention, static_argnums=3)
    out = run(q, order, [in_a_pool(cache, 100), new], implementation)
    assert differences([out], [dense(q, order, [cache, new])])[0] < 1e-5
    beyond = in_a_pool(cache, 100)._replace(row_B=jnp.array([9, 0, 2], jnp.int32))
    assert np.array_equal(run(q, order, [beyond, new], implementation), out)  # the last one
    moved = in_a_pool(cache, 100)._replace(row_B=jnp.array([0, 4, 2], jnp.int32))
    assert not differences([run(q, order, [moved, new], implementation)], [out])[0] < 0.1


def test_rows_that_are_kept_are_those_of_the_call():
    """A thread keeps sorted rows; every part of what they are made of makes others of them."""
    q, order, (cache, new) = with_cache(64, 8)
    others = [
        (order.at[0, :9].set(80), (cache, new)),
        (order, (cache._replace(visible_to_BxC=cache.visible_to_BxC - 20), new)),
        (order, (cache._replace(visible_from_BxC=cache.visible_from_BxC + 20), new)),
        (order, (cache, new._replace(visible_to_BxS=order.at[:, ::3].set(3)))),
        (order, (cache, new._replace(visible_from_BxS=order.at[:, ::2].add(9)))),
    ]
    first = native(q, order, (cache, new))
    for own, blocks in others:
        out = native(q, own, blocks)
        assert differences([out], [dense(q, own, blocks)])[0] < 1e-5
        assert differences([out], [first])[0] > 0.01
        assert np.array_equal(native(q, order, (cache, new)), first)


def few_queries(queries, width, heads=4, kv_heads=2):
    """Queries of different orders over a pool, a cache, and their own keys."""
    q, order, (cache, new) = with_cache(40, width, queries, heads=heads, kv_heads=kv_heads)
    _, _, (later, _) = with_cache(72, width, queries, heads=heads, kv_heads=kv_heads)
    order = order + 10 * jnp.arange(queries, dtype=order.dtype)[None]
    new = new._replace(visible_from_BxS=order, visible_to_BxS=order + 15)
    return q, order, [in_a_pool(cache, 100), later, new], [cache, later, new]


@pytest.mark.parametrize(
    ("queries", "width", "heads", "kv_heads"),
    [(1, 24, 4, 2), (1, 8, 3, 3), (3, 16, 7, 1), (15, 32, 4, 2), (2, 40, 4, 4), (1, 128, 8, 4)],
)
def test_few_queries_over_several_caches(queries, width, heads, kv_heads):
    q, order, blocks, plain = few_queries(queries, width, heads, kv_heads)
    run = jax.jit(interval_attention, static_argnums=3)
    out = run(q, order, blocks, "native")
    assert "few_queries_forward" in run.lower(q, order, blocks, "native").as_text()
    assert differences([out], [dense(q, order, plain)])[0] < 1e-5
    for without in range(3):
        others = [block for i, block in enumerate(plain) if i != without]
        assert differences([out], [dense(q, order, others)])[0] > 0.1
    assert np.array_equal(run(q, order, blocks, "native"), out)


def test_few_queries_that_see_nothing_get_zeros():
    q, order, blocks, _ = few_queries(2, 8)
    out = native(q, order.at[1, 0].set(PAD_ORDER), blocks)
    assert not bool(out[1, 0].any()) and bool((out[1, 1] != 0).all())


def test_few_queries_look_at_no_strip_that_nobody_sees():
    q, order, (pool, cache, new), plain = few_queries(1, 8)
    seen = np.asarray(cache.visible_from_BxC <= order) & np.asarray(order <= cache.visible_to_BxC)
    strips = np.repeat(seen.reshape(3, -1, 8).any(-1), 8, 1)
    assert not strips.all() and strips.any()
    spoiled = jnp.where(strips[:, None, :, None], cache.v_BxKxCxDh, jnp.nan)
    out = native(q, order, [pool, cache._replace(v_BxKxCxDh=spoiled), new])
    assert differences([out], [dense(q, order, plain)])[0] < 1e-5
    spoiled = jnp.where(strips[:, None, :, None], jnp.nan, cache.v_BxKxCxDh)
    out = native(q, order, [pool, cache._replace(v_BxKxCxDh=spoiled), new])
    assert bool(jnp.isnan(out).any())


@pytest.mark.parametrize("change", ["bfloat16", "width", "slots"])
def test_few_queries_over_what_does_not_lie_well_are_dense(change):
    queries, width = 2, 12 if change == "width" else 8
    q, order, (cache, new) = with_cache(36 if change == "slots" else 40, width, queries)
    if change == "bfloat16":
        cache = cache._replace(**{name: getattr(cache, name).astype(jnp.bfloat16)
                                  for name in ("k_BxKxDhxC", "v_BxKxCxDh")})  # fmt: skip
    run = jax.jit(interval_attention, static_argnums=3)
    assert "few_queries" not in run.lower(q, order, [cache, new], "native").as_text()
    out, expected = (run(q, order, [cache, new], name) for name in ("native", "dense"))
    assert np.array_equal(out, expected)
    assert differences([out], [dense(q, order, [new])])[0] > 0.1


def test_gradients_pass_through_few_queries():
    q, order, blocks, plain = few_queries(3, 8)

    def gradients(attention, blocks):
        def scalar(q, floats):
            given = [b._make([*kv, *b[2:]]) for kv, b in zip(floats, blocks, strict=True)]
            return jnp.sum(jnp.sin(attention(q, order, given)))

        return jax.grad(scalar, (0, 1))(q, [block[:2] for block in blocks])

    dq, ((d_k, d_v), *rest) = gradients(native, blocks)
    expected_q, (expected_pool, *expected) = gradients(dense, plain)
    row = blocks[0].row_B
    found = [dq, d_k[row, ..., :40], d_v[row, :, :40], *jax.tree.leaves(rest)]
    wanted = [expected_q, *expected_pool, *jax.tree.leaves(expected)]
    assert max(differences(found, wanted)) < 1e-4
    assert min(float(jnp.abs(x).max()) for x in wanted) > 0.1


def test_gradients_pass_through_a_pool():
    q, order, (cache, new) = with_cache(64, 8)
    pool = in_a_pool(cache, 64)

    def by(k):
        return jnp.sum(jnp.sin(native(q, order, [pool._replace(k_RxKxDhxC=k), new])))

    def plain(k):
        return jnp.sum(jnp.sin(dense(q, order, [cache._replace(k_BxKxDhxC=k), new])))

    found, expected = jax.grad(by)(pool.k_RxKxDhxC), jax.grad(plain)(cache.k_BxKxDhxC)
    np.testing.assert_allclose(found[pool.row_B], expected, atol=1e-4)
    assert float(jnp.abs(expected).max()) > 0.1 and not bool(found[1].any() | found[3].any())


def test_two_caches_and_bfloat16():
    q, order, (cache, new) = with_cache(128, 16)
    later = cache._replace(v_BxKxCxDh=-2.0 * cache.v_BxKxCxDh)
    blocks = (cache, new, later)
    assert differences([native(q, order, blocks)], [dense(q, order, blocks)])[0] < 1e-5
    half = [block._make([*(x.astype(jnp.bfloat16) for x in block[:2]), *block[2:]])
            for block in blocks]  # fmt: skip
    out = native(q.astype(jnp.bfloat16), order, half)
    assert out.dtype == jnp.bfloat16
    assert differences([out.astype(jnp.float32)], [dense(q, order, blocks)])[0] < 0.1


def test_gradients_pass_through_a_cache():
    q, order, (cache, new) = with_cache(64, 8)

    def gradients(attention):
        def scalar(q, k, v, cached_k, cached_v):
            blocks = (cache._replace(k_BxKxDhxC=cached_k, v_BxKxCxDh=cached_v),
                      new._replace(k_BxSxKxDh=k, v_BxSxKxDh=v))  # fmt: skip
            return jnp.sum(jnp.sin(attention(q, order, blocks)))

        return jax.grad(scalar, argnums=range(5))(q, *new[:2], *cache[:2])

    expected = gradients(dense)
    assert max(differences(gradients(native), expected)) < 1e-4
    assert min(float(jnp.abs(x).max()) for x in expected) > 0.1
